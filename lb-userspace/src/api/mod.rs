//! HTTP and JSON, served twice: over the control socket in `state_dir`, whose users may do
//! everything, and over TCP (`[api]`), where anyone may read: the status page, metrics, health and
//! the same JSON.

pub mod admin;
mod commands;
mod hosts;
mod listener;
mod metrics;
mod page;
mod report;
mod request;
mod routes;
mod server;
#[cfg(test)]
pub mod tests;
pub mod trace;
pub mod types;

pub use commands::Peer;
pub use hosts::Hosts;
pub use listener::Listener;
pub use report::{Connects, PoolUse, Report};
pub use request::{Conns, ConnsFilter, EventsFilter, Order, QUEUE, Reply, Request};
pub use routes::Daemon;
pub use server::Server;

/// Header of `/api/v1/conns`: the number of connections without the limit.
pub const TOTAL_HEADER: &str = "x-total-count";
