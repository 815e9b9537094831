//! What the kernel program and the controller share: the records in the BPF maps, and the decisions
//! about them as plain functions.
//!
//! Nothing here does I/O, reads a clock or knows a map: to read this crate is to learn what happens
//! to a packet without meeting a pointer. The kernel program (`lb-ebpf`) and the controller
//! (`lb-userspace`) are two shells around it.

#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod checksum;
pub mod clients;
pub mod cookie;
pub mod event;
pub mod failures;
pub mod flow;
pub mod hash;
pub mod layout;
pub mod ring;
pub mod rules;
pub mod schedule;
pub mod seq;
pub mod slot;
pub mod syn;
pub mod tcp;
pub mod time;
pub mod verdict;
