//! What acts at the destination, on real sockets.

mod callers;
mod load;
