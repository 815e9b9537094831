//! The content of an opened datagram: messages, one after the other.
//!
//! ```text
//! kind (1) | length of the body (2) | body            numbers in network order
//! ```
//! A receiver skips a kind that it does not know, and a body may be longer than the receiver
//! expects: so two versions of the program understand each other as far as both go. An address is
//! its family (4 or 6), its bytes and a port.

use std::net::{IpAddr, SocketAddr};

use lb_common::{seq::MAX_STEP, syn::MAX_SCALE};

/// The most bytes of messages in one datagram: with all headers it fits an Ethernet frame of 1,500
/// bytes.
pub const MOST: usize = 1_380;

/// A flow's identity in terms that both hosts know: addresses, never a number from one host's
/// tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowName {
    /// The address that clients connect to.
    pub listener: SocketAddr,
    /// The client's address.
    pub client: SocketAddr,
    /// The backend's address.
    pub backend: SocketAddr,
    /// The address that the backend sees as the client's.
    pub snat: SocketAddr,
}

/// The state of a flow that is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Open in both directions.
    Established = 3,
    /// The client has closed its side.
    ClosingClient = 4,
    /// The backend has closed its side.
    ClosingBackend = 5,
}

/// Everything that the other host needs to continue a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// Its identity.
    pub name: FlowName,
    /// Its state.
    pub phase: Phase,
    /// How many backends were tried for it.
    pub tries: u8,
    /// The MAC address of the next hop towards the client; zero: unknown.
    pub mac: [u8; 6],
    /// The initial sequence numbers of client and backend.
    pub initial: [u32; 2],
    /// The highest sequence ends of client and backend; the upper half counts wraps.
    pub ends: [u64; 2],
    /// The last acknowledgement numbers of client and backend.
    pub acks: [u32; 2],
    /// When its first SYN arrived, in milliseconds since 1970.
    pub established_at: u64,
    /// Milliseconds since its last packet.
    pub idle_ms: u32,
    /// Microseconds that the backend took to answer the SYN.
    pub connect_us: u32,
    /// Its windows; `None` from a version that does not know them.
    pub windows: Option<Windows>,
}

/// What both sides take of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// The first sequence numbers that are not taken yet: from the client, from the backend.
    pub edges: [u32; 2],
    /// The window scales of client and backend.
    pub scales: [u8; 2],
}

impl Windows {
    /// The largest windows there are, beyond the last acknowledgements of client and backend.
    pub fn widest([client, backend]: [u32; 2]) -> Windows {
        Windows { edges: [backend, client].map(|ack| ack.wrapping_add(MAX_STEP)), scales: [MAX_SCALE; 2] }
    }
}

/// What an operator has decided about a backend, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminDecision {
    /// The service's name.
    pub service: String,
    /// The backend's name.
    pub backend: String,
    /// The decision.
    pub decision: Decision,
    /// Milliseconds since 1970: the later decision prevails.
    pub decided_at: u64,
}

/// What an operator can decide about a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// In service: nothing is decided, or what was is revoked.
    Ready,
    /// No new connections; those it has go on until the deadline.
    Drain {
        /// When the remaining ones are reset, in milliseconds since 1970; `None`: never.
        deadline: Option<u64>,
        /// Resets per second from then on.
        rate: u32,
    },
    /// Out of service at once.
    Maint,
}

impl Decision {
    /// State, deadline and rate as they are sent; a deadline of 0: never.
    fn fields(self) -> (u8, u64, u32) {
        match self {
            Decision::Ready => (0, 0, 0),
            Decision::Drain { deadline, rate } => (1, deadline.unwrap_or(0), rate),
            Decision::Maint => (2, 0, 0),
        }
    }

    /// `None` for a state that only a newer version knows.
    fn of_fields((state, deadline, rate): (u8, u64, u32)) -> Option<Decision> {
        match state {
            0 => Some(Decision::Ready),
            1 => Some(Decision::Drain { deadline: Some(deadline).filter(|at| *at != 0), rate }),
            2 => Some(Decision::Maint),
            _ => None,
        }
    }
}

/// What the master's connections have shown about a backend that is not probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendHealth {
    /// The service's name.
    pub service: String,
    /// The backend's name.
    pub backend: String,
    /// The number of the reason why it is out; 0: it is not out.
    pub reason: u8,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The sender is there: its own random number, the last one received from us, and its version.
    Hello {
        /// The random number, which the receiver echoes.
        challenge: [u8; 16],
        /// The receiver's last challenge; zero: none was received yet.
        echo: [u8; 16],
        /// The program's version, shown to the operator.
        version: String,
    },
    /// A flow, new or repeated.
    Flow(FlowRecord),
    /// A flow has ended.
    Ended(FlowName),
    /// The sender wants a copy of all flows.
    Request {
        /// The copy's number, chosen by the sender.
        copy: u32,
    },
    /// A copy begins: what follows up to `CopyEnd` holds every flow.
    CopyBegin {
        /// The number in the request.
        copy: u32,
    },
    /// The copy holds every flow of this listener, because the sender holds its address.
    Covers(SocketAddr),
    /// The sender has become master of a listener, or had to leave something out: the receiver
    /// should request a copy.
    CopyOffered,
    /// The copy is not complete yet.
    CopyGoesOn {
        /// The number in the request.
        copy: u32,
    },
    /// The copy is complete.
    CopyEnd {
        /// The number in the request.
        copy: u32,
        /// The number of flows sent since it began, including changes sent in between.
        flows: u32,
    },
    /// An operator's decision.
    Admin(AdminDecision),
    /// The health of a backend.
    Health(BackendHealth),
}

const HELLO: u8 = 1;
const FLOW: u8 = 2;
const ENDED: u8 = 3;
const REQUEST: u8 = 4;
const COPY_BEGIN: u8 = 5;
const COPY_END: u8 = 6;
const ADMIN: u8 = 7;
const COVERS: u8 = 8;
const COPY_OFFERED: u8 = 9;
const HEALTH: u8 = 10;
const COPY_GOES_ON: u8 = 11;

/// A message that is cut short or holds impossible values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Appends a message to `out`.
pub fn write(message: &Message, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 3]);
    let kind = match message {
        Message::Hello { challenge, echo, version } => {
            out.extend_from_slice(challenge);
            out.extend_from_slice(echo);
            write_text(version, out);
            HELLO
        }
        Message::Flow(flow) => {
            write_flow(flow, out);
            FLOW
        }
        Message::Ended(name) => {
            write_name(name, out);
            ENDED
        }
        Message::Request { copy } => {
            out.extend_from_slice(&copy.to_be_bytes());
            REQUEST
        }
        Message::CopyBegin { copy } => {
            out.extend_from_slice(&copy.to_be_bytes());
            COPY_BEGIN
        }
        Message::CopyGoesOn { copy } => {
            out.extend_from_slice(&copy.to_be_bytes());
            COPY_GOES_ON
        }
        Message::CopyEnd { copy, flows } => {
            out.extend_from_slice(&copy.to_be_bytes());
            out.extend_from_slice(&flows.to_be_bytes());
            COPY_END
        }
        Message::Covers(listener) => {
            write_address(*listener, out);
            COVERS
        }
        Message::CopyOffered => COPY_OFFERED,
        Message::Health(health) => {
            write_text(&health.service, out);
            write_text(&health.backend, out);
            out.push(health.reason);
            HEALTH
        }
        Message::Admin(admin) => {
            write_text(&admin.service, out);
            write_text(&admin.backend, out);
            let (state, deadline, rate) = admin.decision.fields();
            out.push(state);
            out.extend_from_slice(&admin.decided_at.to_be_bytes());
            out.extend_from_slice(&deadline.to_be_bytes());
            out.extend_from_slice(&rate.to_be_bytes());
            ADMIN
        }
    };
    let length = (out.len() - start - 3) as u16;
    out[start] = kind;
    out[start + 1..start + 3].copy_from_slice(&length.to_be_bytes());
}

fn write_flow(flow: &FlowRecord, out: &mut Vec<u8>) {
    write_name(&flow.name, out);
    out.extend_from_slice(&[flow.phase as u8, flow.tries]);
    out.extend_from_slice(&flow.mac);
    flow.initial.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
    flow.ends.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
    flow.acks.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
    out.extend_from_slice(&flow.established_at.to_be_bytes());
    out.extend_from_slice(&flow.idle_ms.to_be_bytes());
    out.extend_from_slice(&flow.connect_us.to_be_bytes());
    if let Some(windows) = flow.windows {
        windows.edges.iter().for_each(|edge| out.extend_from_slice(&edge.to_be_bytes()));
        out.extend_from_slice(&windows.scales);
    }
}

fn write_name(name: &FlowName, out: &mut Vec<u8>) {
    [name.listener, name.client, name.backend, name.snat].iter().for_each(|address| write_address(*address, out));
}

fn write_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

/// Writes a text of at most 255 bytes; a longer one is cut between two characters.
fn write_text(text: &str, out: &mut Vec<u8>) {
    let end = (0..=text.len().min(255)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    out.push(end as u8);
    out.extend_from_slice(&text.as_bytes()[..end]);
}

/// Reads all messages of a datagram. One malformed message condemns the whole datagram: a sender
/// that holds the key does not err.
pub fn read(bytes: &[u8]) -> Result<Vec<Message>, Malformed> {
    let mut reader = Reader(bytes);
    let mut messages = Vec::new();
    while !reader.0.is_empty() {
        let kind = reader.byte()?;
        let length = u16::from_be_bytes(reader.array()?);
        let mut body = Reader(reader.take(length.into())?);
        messages.extend(read_body(kind, &mut body)?);
    }
    Ok(messages)
}

fn read_body(kind: u8, body: &mut Reader<'_>) -> Result<Option<Message>, Malformed> {
    Ok(Some(match kind {
        HELLO => Message::Hello { challenge: body.array()?, echo: body.array()?, version: body.text()? },
        FLOW => Message::Flow(read_flow(body)?),
        ENDED => Message::Ended(read_name(body)?),
        REQUEST => Message::Request { copy: body.u32()? },
        COPY_BEGIN => Message::CopyBegin { copy: body.u32()? },
        COPY_GOES_ON => Message::CopyGoesOn { copy: body.u32()? },
        COPY_END => Message::CopyEnd { copy: body.u32()?, flows: body.u32()? },
        COVERS => Message::Covers(body.address()?),
        COPY_OFFERED => Message::CopyOffered,
        HEALTH => Message::Health(BackendHealth { service: body.text()?, backend: body.text()?, reason: body.byte()? }),
        ADMIN => return Ok(read_admin(body)?.map(Message::Admin)),
        _ => return Ok(None),
    }))
}

/// `None` for a decision that only a newer version knows: it is passed over, as unknown kinds are.
fn read_admin(body: &mut Reader<'_>) -> Result<Option<AdminDecision>, Malformed> {
    let (service, backend) = (body.text()?, body.text()?);
    let (state, decided_at, deadline, rate) = (body.byte()?, body.u64()?, body.u64()?, body.u32()?);
    let decision = Decision::of_fields((state, deadline, rate));
    Ok(decision.map(|decision| AdminDecision { service, backend, decision, decided_at }))
}

fn read_flow(body: &mut Reader<'_>) -> Result<FlowRecord, Malformed> {
    Ok(FlowRecord {
        name: read_name(body)?,
        phase: match body.byte()? {
            3 => Phase::Established,
            4 => Phase::ClosingClient,
            5 => Phase::ClosingBackend,
            _ => return Err(Malformed),
        },
        tries: body.byte()?,
        mac: body.array()?,
        initial: [body.u32()?, body.u32()?],
        ends: [body.u64()?, body.u64()?],
        acks: [body.u32()?, body.u32()?],
        established_at: body.u64()?,
        idle_ms: body.u32()?,
        connect_us: body.u32()?,
        windows: if body.0.is_empty() { None } else { Some(read_windows(body)?) },
    })
}

fn read_windows(body: &mut Reader<'_>) -> Result<Windows, Malformed> {
    let windows = Windows { edges: [body.u32()?, body.u32()?], scales: body.array()? };
    if windows.scales.iter().all(|scale| *scale <= MAX_SCALE) { Ok(windows) } else { Err(Malformed) }
}

fn read_name(body: &mut Reader<'_>) -> Result<FlowName, Malformed> {
    Ok(FlowName { listener: body.address()?, client: body.address()?, backend: body.address()?, snat: body.address()? })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = self.byte()?;
        String::from_utf8(self.take(length.into())?.to_vec()).map_err(|_| Malformed)
    }

    fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = match self.byte()? {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return Err(Malformed),
        };
        Ok(SocketAddr::new(ip, u16::from_be_bytes(self.array()?)))
    }
}

#[cfg(test)]
pub(super) mod tests;
