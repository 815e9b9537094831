//! The control socket: HTTP and JSON over a Unix socket in `state_dir`. Who may open the socket may do everything.

pub mod admin;
mod orders;
mod request;
mod routes;
mod server;
#[cfg(test)]
mod tests;
pub mod types;

pub use orders::Peer;
pub use request::{Conns, ConnsFilter, EventsFilter, Order, QUEUE, Reply, Request};
pub use routes::Daemon;
pub use server::Server;

/// Header of `/api/v1/conns`: how many connections there are without the limit.
pub const TOTAL_HEADER: &str = "x-total-count";
