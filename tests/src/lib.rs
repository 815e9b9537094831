//! The lab: network namespaces with clients, a balancer and stand-in API servers, for the tests and
//! for `cargo xtask run`.
//!
//! Everything here needs root, and says so. Each lab names what it makes after its process
//! (`ek-PID-…`), so that labs run side by side. Dropping a lab removes all of it; if the process
//! dies first, a reaper process does.

pub mod apiserver;
pub mod arp;
#[cfg(feature = "full")]
pub mod bench;
pub mod binaries;
#[cfg(feature = "full")]
pub mod browser;
pub mod capture;
pub mod client;
pub mod daemon;
#[cfg(feature = "full")]
pub mod foreign;
#[cfg(feature = "full")]
pub mod forger;
pub mod frr;
pub mod host;
pub mod icmp;
pub mod keepalived;
#[cfg(feature = "full")]
pub mod kernels;
pub mod packet;
pub mod peers;
#[cfg(feature = "full")]
pub mod picture;
pub mod pki;
#[cfg(feature = "full")]
pub mod power;
pub mod process;
#[cfg(feature = "full")]
pub mod program;
pub mod reaper;
pub mod round;
pub mod show;
pub mod standin;
#[cfg(feature = "full")]
pub mod terminal;
pub mod topology;
pub mod transport;
#[cfg(feature = "full")]
pub mod verified;
pub mod wait;
pub mod xdp_pass;

pub use arp::Asker;
#[cfg(feature = "full")]
pub use browser::Browser;
pub use capture::Capture;
pub use daemon::Evenkeel;
pub use host::Host;
pub use keepalived::Keepalived;
pub use process::Process;
pub use standin::StandIn;
#[cfg(feature = "full")]
pub use terminal::Terminal;
pub use topology::{Lab, Plan};
