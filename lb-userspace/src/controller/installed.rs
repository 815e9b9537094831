//! The rows of the tables, by the name that the controller has for them.

pub use crate::tables::{BackendRow, Installed, ServiceRow, rows::*};
