//! The access log: one line per connection, in the words of nginx's `log_format`.

mod batch;
mod format;
mod limit;
mod output;
mod record;
mod settings;
#[cfg(test)]
mod tests;
mod writer;

pub use format::{Format, Wrong};
pub use record::{Record, Status, Try};
pub use settings::{AccessLog, LogTarget};
pub use writer::{Targets, Writer};
