//! Flow sync: the host that holds the VIP streams its established connections to its peers, so that
//! they continue there when the VIP moves. The SNAT address is the VIP and the slot is the port, so
//! a flow works on the other host from the moment the address arrives.
//!
//! ```text
//! wire        the messages in a datagram, byte for byte
//! seal        encryption, authentication, sessions
//! sequence    the order of datagrams: what is late, lost or received before
//! link        one peer, as a machine without I/O: whom to believe, what was lost, when to copy
//! mirror      between slots and records: the only part that touches the tables
//! peer        what is on its way to one peer: a queue of changes, and a full copy as well
//! station     one host with all its peers, without socket and clock
//! mastership  which listeners this host is master of
//! shell       the thread: socket, clock, turns
//! ```
//! A host sends the flows of those listeners whose address it holds. For the other listeners it
//! takes whatever arrives; for its own it takes only flows that it does not have (after a split
//! both hosts may have held the address). A lost datagram shows by its number, and a full copy
//! makes up for it; one that is late is waited for. In addition, every flow is sent again in turn, with its sequence numbers and
//! its idle time. Half-open connections are not synced: their clients repeat the SYN.

pub mod link;
pub mod mastership;
pub mod mirror;
pub mod peer;
pub mod seal;
pub mod sequence;
pub mod shell;
pub mod station;
pub mod wire;
