//! What every client of the daemon needs, below both the command line ([`cli`](crate::cli)) and the
//! live screen ([`top`](crate::top)): requests over the control socket, exit codes, numbers and
//! states written for people.

pub mod exit;
mod socket;
pub mod units;
mod wording;

pub use exit::Failure;
pub use socket::{Answer, Client};
pub use wording::standing;
