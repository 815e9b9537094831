//! The only place in user space with `unsafe` and libc: memory shared with the kernel, clocks,
//! mounts, sockets that std lacks, and netlink. Everything above works with safe types.

pub mod allocator;
pub mod append;
pub mod bpf;
pub mod clock;
pub mod host;
pub mod inherit;
pub mod lock;
pub mod memory;
pub mod mount;
pub mod netdev;
pub mod netlink;
pub mod packet_socket;
pub mod program;
pub mod random;
pub mod raw_ip;
pub mod readiness;
pub mod realtime;
pub mod syn_tap;
pub mod udp;
pub mod wake;
pub mod xdp_features;
