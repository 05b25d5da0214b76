//! The decisions of Weir: what a policy asks for ([`config`]) and the state
//! machines that carry it out, one module each.
//!
//! Nothing here does I/O, reads a clock or draws random numbers: the caller
//! passes [`Time`] and randomness in, so that a test can put any machine into
//! any situation at once. Every machine is `Send + Sync` and bounded in memory.
//! A request that is let through takes no lock in any of them, unless the
//! policy asks for a breaker over the last so many requests, or it had to
//! queue.

pub mod backoff;
pub mod balance;
pub mod breaker;
pub mod budget;
pub mod bulkhead;
pub mod config;
mod random;
pub mod retry;
pub mod shed;
mod sync;
mod ticks;
mod time;

pub use time::Time;
