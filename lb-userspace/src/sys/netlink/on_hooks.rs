//! What stands on the hooks of an interface, as far as netlink says it: XDP programs, and filters
//! of clsact.

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::{
    Handle,
    packet_route::{
        link::{LinkAttribute, LinkXdp},
        tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
    },
};

use super::wire::patiently;

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its priority: the lowest sees a frame first.
    pub priority: u16,
    /// Its handle.
    pub handle: u32,
    /// The ID of its program, if it is one of BPF.
    pub program: Option<u32>,
    /// The name it was given, or its kind.
    pub name: String,
}

/// What stands on an interface, in the order in which it sees a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnHooks {
    /// The ID of the XDP program in the driver or the card.
    pub native: Option<u32>,
    /// The ID of the XDP program on socket buffers.
    pub generic: Option<u32>,
    /// The filters of what comes in.
    pub inward: Vec<Filter>,
    /// The filters of what goes out.
    pub outward: Vec<Filter>,
}

/// A socket for these questions.
pub struct Questions(Handle);

const NO_DEVICE: i32 = -19;

impl Questions {
    /// Opens the socket, inside a tokio runtime, in which its task lives.
    pub fn open() -> Result<Questions> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Questions(handle))
    }

    /// What stands on an interface; `None`: it is gone.
    pub async fn about(&self, ifindex: u32) -> Result<Option<OnHooks>> {
        let links = self.0.link().get().match_index(ifindex).execute();
        let links: Vec<_> = match patiently(links.try_collect()).await? {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == NO_DEVICE => return Ok(None),
            links => links.context("cannot ask for a link")?,
        };
        let Some(link) = links.first() else { return Ok(None) };
        let mut found = OnHooks::default();
        let of_xdp = link.attributes.iter().filter_map(|attribute| match attribute {
            LinkAttribute::Xdp(said) => Some(said),
            _ => None,
        });
        for said in of_xdp.flatten() {
            match said {
                LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => found.native = Some(*id),
                LinkXdp::SkbProgId(id) => found.generic = Some(*id),
                _ => {}
            }
        }
        let index = i32::try_from(ifindex)?;
        let filters = || self.0.traffic_filter(index).get();
        let inward: Vec<_> =
            patiently(filters().ingress().execute().try_collect()).await?.context("cannot list filters")?;
        let outward: Vec<_> =
            patiently(filters().egress().execute().try_collect()).await?.context("cannot list filters")?;
        found.inward = inward.iter().filter_map(filter).collect();
        found.outward = outward.iter().filter_map(filter).collect();
        Ok(Some(found))
    }
}

/// `None`: what stands for all filters of a priority.
fn filter(message: &TcMessage) -> Option<Filter> {
    // tcm_info: the priority in the upper half, the protocol in the lower (linux/rtnetlink.h).
    let (priority, handle) = ((message.header.info >> 16) as u16, u32::from(message.header.handle));
    let mut filter = Filter { priority, handle, program: None, name: String::new() };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) if filter.name.is_empty() => filter.name.clone_from(kind),
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name.clone_from(name),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (handle != 0).then_some(filter)
}
