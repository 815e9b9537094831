//! The lab: network namespaces with clients, a balancer and stand-in API servers, for the tests and for
//! `cargo xtask run`.
//!
//! Everything here needs root and says so. Whatever a lab makes is named after its process (`ek-PID-…`), so that labs
//! run side by side, and is removed when it is dropped; a reaper process does it if ours dies before.

pub mod apiserver;
pub mod arp;
pub mod bench;
pub mod binaries;
pub mod browser;
pub mod capture;
pub mod client;
pub mod daemon;
pub mod frr;
pub mod host;
pub mod keepalived;
pub mod packet;
pub mod peers;
pub mod picture;
pub mod pki;
pub mod process;
pub mod program;
pub mod reaper;
pub mod round;
pub mod show;
pub mod standin;
pub mod terminal;
pub mod topology;
pub mod wait;
pub mod xdp_pass;

pub use arp::Asker;
pub use browser::Browser;
pub use capture::Capture;
pub use daemon::Evenkeel;
pub use host::Host;
pub use keepalived::Keepalived;
pub use process::Process;
pub use standin::StandIn;
pub use terminal::Terminal;
pub use topology::{Lab, Plan};
