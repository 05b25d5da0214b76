//! Weir on a real API server: what people do with kubectl, and what they see.

#![allow(clippy::print_stdout, reason = "tests print what they measured")]

mod foreign;
mod merging;
mod outages;
mod overrides;
mod pods;
mod release;
mod rollout;
mod skew;
mod story;
