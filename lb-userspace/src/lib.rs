//! The user-space part of evenkeel: daemon, command line and everything below them.

pub mod access_log;
pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod controller;
pub mod daemon;
pub mod dataplane;
pub mod handover;
pub mod notice;
pub mod probe;
pub mod sync;
pub mod sys;
pub mod tables;
pub mod top;
pub mod vrrp;
pub mod words;
