//! Flow sync: the host that has the VIP streams its established connections to its peers, so that they go on there when
//! the VIP moves. The SNAT address is the VIP and the slot is the port, so a flow works on the other host in the moment
//! in which the address arrives.
//!
//! ```text
//! wire      what stands in a datagram: messages, byte for byte
//! seal      encryption, authentication, sessions, the replay window
//! link      one peer, as a machine without I/O: whom to believe, what was lost, when to ask for a copy
//! mirror    from slots to records and back: the only part that touches the tables
//! shell     the thread: socket, clock, turns
//! ```
//! Who sends: whoever has the listener's address on an interface. A host without it takes what comes; a host with it
//! takes only flows that it does not have (after a split both may have had it). A lost datagram is noticed by its number
//! and healed by a full copy; every flow is sent again in turn anyway, with its sequence numbers and its idle time.
//! Half-open connections are not synced: their clients send the SYN again.

pub mod link;
pub mod mirror;
pub mod peer;
pub mod seal;
pub mod shell;
pub mod station;
pub mod wire;
