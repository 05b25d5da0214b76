//! The decisions of Weir: what a policy asks for ([`config`]) and the state
//! machines that carry it out, one module each.
//!
//! Nothing here does I/O, reads a clock or draws random numbers: the caller
//! passes [`Time`] and randomness in, so that a test can put any machine into
//! any situation at once. Every machine is `Send + Sync`, bounded in memory,
//! and lock-free where a request passes through it.

pub mod backoff;
pub mod balance;
pub mod breaker;
pub mod budget;
pub mod bulkhead;
pub mod config;
mod random;
pub mod retry;
mod sync;
mod ticks;
mod time;

pub use time::Time;
