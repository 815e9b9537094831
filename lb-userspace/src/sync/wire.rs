//! What stands in a datagram once it is opened: messages, one after the other.
//!
//! ```text
//! kind (1) | length of the body (2) | body            numbers in network order
//! ```
//! Who meets a kind it does not know passes over it, and a body may be longer than what is known of it: so two versions
//! of the program understand each other as far as they both go. An address is its family (4 or 6), its bytes and a port.

use std::net::{IpAddr, SocketAddr};

/// Most bytes of messages in one datagram: with all headers it stays below an Ethernet frame of 1,500 bytes.
pub const MOST: usize = 1_380;

/// A flow, by what both hosts know: never by a number of one host's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// The address clients connect to: the service.
    pub listener: SocketAddr,
    /// The client.
    pub client: SocketAddr,
    /// The backend.
    pub backend: SocketAddr,
    /// What the backend sees as the client.
    pub snat: SocketAddr,
}

/// How far a flow is in its life.
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

/// Everything the other host needs to carry a flow on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Which one.
    pub name: Name,
    /// How far it is.
    pub phase: Phase,
    /// Backends that were tried for it.
    pub tries: u8,
    /// The MAC address of the next hop towards the client; zero: not known.
    pub mac: [u8; 6],
    /// Initial sequence numbers of client and backend.
    pub initial: [u32; 2],
    /// Highest sequence ends of client and backend, wraps counted in the upper half.
    pub ends: [u64; 2],
    /// Last acknowledgement numbers of client and backend.
    pub acks: [u32; 2],
    /// When its first SYN came: milliseconds since 1970.
    pub established_at: u64,
    /// Milliseconds since its last packet.
    pub idle_ms: u32,
    /// Microseconds that the backend took to answer.
    pub connect_us: u32,
}

/// What an operator has decided about a backend, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The name of the service.
    pub service: String,
    /// The name of the backend.
    pub backend: String,
    /// 0: nothing, 1: drain, 2: maint.
    pub state: u8,
    /// Milliseconds since 1970: the later decision holds.
    pub decided_at: u64,
    /// Of a drain: when what is left is reset, in milliseconds since 1970; 0: never.
    pub deadline: u64,
    /// Of a drain: resets a second, from then on.
    pub rate: u32,
}

/// What the master's connections have shown of a backend that is not probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The name of the service.
    pub service: String,
    /// The name of the backend.
    pub backend: String,
    /// Why it is out, the number of a reason; 0: it is not.
    pub reason: u8,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who is there: a fresh random number of the sender's, the last one it has heard from us, and its version.
    Hello {
        /// To be echoed.
        challenge: [u8; 16],
        /// What it has heard; zero: nothing yet.
        echo: [u8; 16],
        /// The program's version, for the operator.
        version: String,
    },
    /// A flow, new or again.
    Flow(Flow),
    /// A flow has ended.
    Ended(Name),
    /// Send me all flows.
    Request {
        /// Chosen by who asks.
        copy: u32,
    },
    /// What follows up to `CopyEnd` holds every flow.
    CopyBegin {
        /// Of the request.
        copy: u32,
    },
    /// The copy holds every flow of this listener: the sender has its address.
    Covers(SocketAddr),
    /// The sender has become master of something, or has left something out: it is better to ask for a copy.
    CopyOffered,
    /// The copy is whole.
    CopyEnd {
        /// As in `CopyBegin`.
        copy: u32,
        /// How many flows were sent since it began, changes that came between included.
        flows: u32,
    },
    /// An operator's decision.
    Admin(Admin),
    /// How a backend does.
    Health(Health),
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

/// A message that is cut short or says what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Appends a message.
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
            out.push(admin.state);
            out.extend_from_slice(&admin.decided_at.to_be_bytes());
            out.extend_from_slice(&admin.deadline.to_be_bytes());
            out.extend_from_slice(&admin.rate.to_be_bytes());
            ADMIN
        }
    };
    let length = (out.len() - start - 3) as u16;
    out[start] = kind;
    out[start + 1..start + 3].copy_from_slice(&length.to_be_bytes());
}

fn write_flow(flow: &Flow, out: &mut Vec<u8>) {
    write_name(&flow.name, out);
    out.extend_from_slice(&[flow.phase as u8, flow.tries]);
    out.extend_from_slice(&flow.mac);
    flow.initial.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
    flow.ends.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
    flow.acks.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
    out.extend_from_slice(&flow.established_at.to_be_bytes());
    out.extend_from_slice(&flow.idle_ms.to_be_bytes());
    out.extend_from_slice(&flow.connect_us.to_be_bytes());
}

fn write_name(name: &Name, out: &mut Vec<u8>) {
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

/// A text of at most 255 bytes; a longer one is cut at a character.
fn write_text(text: &str, out: &mut Vec<u8>) {
    let end = (0..=text.len().min(255)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    out.push(end as u8);
    out.extend_from_slice(&text.as_bytes()[..end]);
}

/// Reads all messages of a datagram. One that is malformed spoils the whole: who can seal a datagram does not err.
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
        COPY_END => Message::CopyEnd { copy: body.u32()?, flows: body.u32()? },
        COVERS => Message::Covers(body.address()?),
        COPY_OFFERED => Message::CopyOffered,
        HEALTH => Message::Health(Health { service: body.text()?, backend: body.text()?, reason: body.byte()? }),
        ADMIN => Message::Admin(Admin {
            service: body.text()?,
            backend: body.text()?,
            state: body.byte()?,
            decided_at: body.u64()?,
            deadline: body.u64()?,
            rate: body.u32()?,
        }),
        _ => return Ok(None),
    }))
}

fn read_flow(body: &mut Reader<'_>) -> Result<Flow, Malformed> {
    Ok(Flow {
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
    })
}

fn read_name(body: &mut Reader<'_>) -> Result<Name, Malformed> {
    Ok(Name { listener: body.address()?, client: body.address()?, backend: body.address()?, snat: body.address()? })
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
