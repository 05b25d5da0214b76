//! Capture as a whole, in network namespaces that the tests make.

mod connections;
mod documented;
mod failing;
mod finding;
mod ground;
mod inbound;
mod outbound;
mod proxy;
mod rules;
mod weight;
