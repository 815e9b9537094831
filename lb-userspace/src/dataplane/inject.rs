//! Sending frames that answer no packet: through the program itself, so that one engine decides
//! about every frame, and out by a packet socket.

use anyhow::{Context, Result, bail};
use aya::{TestRunOptions, programs::TestRun};
use lb_common::{address::socket_address, flow::SlotAt};
use std::{io, net::SocketAddr};

use super::{Dataplane, attach::Mode};
use crate::tables::{Flow, frames};

/// What the program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// Its verdict, in the hook's own numbers.
    pub verdict: u32,
    /// The frame as it left it.
    pub frame: Vec<u8>,
    /// The verdict means that the frame is to be sent.
    pub sent: bool,
}

/// Room for what comes out: a frame with all headers, options and no payload.
const OUTPUT: usize = 2048;

/// `xdp_action` (linux/bpf.h).
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;
/// TC_ACT_REDIRECT (linux/pkt_cls.h).
const TC_REDIRECT: u32 = 7;

impl Dataplane {
    /// Runs a frame through the program of an interface, as if it had come in there. Nothing is
    /// sent.
    pub fn inject(&self, ifindex: u32, frame: &[u8]) -> Result<Injected> {
        let attached = self.attached.get(&ifindex).with_context(|| format!("no program on interface {ifindex}"))?;
        let mut output = vec![0; OUTPUT];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut output);
        let (result, sent): (_, &[u32]) = if attached.mode == Mode::Tc {
            let context = skb_context(ifindex);
            options.ctx_in = Some(&context);
            (self.programs.tc.test_run(options)?, &[TC_REDIRECT])
        } else {
            let context = xdp_context(ifindex, frame.len() as u32);
            options.ctx_in = Some(&context);
            (self.programs.xdp.test_run(options)?, &[XDP_TX, XDP_REDIRECT])
        };
        output.truncate(result.data_size_out as usize);
        Ok(Injected { verdict: result.return_value, frame: output, sent: sent.contains(&result.return_value) })
    }

    /// Sends a frame as it is.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        self.socket.send(ifindex, frame)
    }

    /// For a half-open flow whose backend is silent: the client's SYN again, so that the program
    /// moves the flow on to the next backend or refuses the client. `true`: a frame went out.
    pub fn resend_syn(&self, flow: &Flow) -> Result<bool> {
        let listener = self.tables.listener(flow.listener());
        let inside = self.tables.interface(flow.record.hop.interface());
        let Some(syn) = frames::client_syn(flow, &listener, inside.mac) else {
            bail!("the slot of {} holds no SYN that can be sent again", flow.client());
        };
        let result = self.inject(inside.ifindex, &syn)?;
        if !result.sent {
            return Ok(false);
        }
        let ifindex = self.outlet(flow, &result.frame).context("the program's answer goes to nobody we know")?;
        self.send(ifindex, &result.frame).context("cannot send the program's answer")?;
        Ok(true)
    }

    /// The interface by which a frame about this flow leaves: towards its client, or towards the
    /// backend of a pool.
    fn outlet(&self, flow: &Flow, frame: &[u8]) -> Option<u32> {
        let (source, target) = frames::endpoints(frame)?;
        let listener = self.tables.listener(flow.listener());
        let vip = socket_address(listener.address, listener.port);
        let hop = if SocketAddr::V4(target) == flow.client() && SocketAddr::V4(source) == vip {
            flow.record.hop
        } else {
            self.tables.pool(self.tables.find_pool(target, *source.ip())?).hop
        };
        let ifindex = self.tables.interface(hop.interface()).ifindex;
        (hop.is_known() && ifindex != 0).then_some(ifindex)
    }

    /// Asks the backend of an open flow for a sign of life: an answer is forwarded to the client,
    /// which takes it for the answer to a keepalive that it sent itself.
    pub fn ask(&self, flow: &Flow) -> Result<()> {
        let pool = self.tables.pool(flow.at.pool());
        let interface = self.tables.interface(pool.hop.interface());
        if let Some(frame) = frames::keepalive(flow, &pool, interface.mac) {
            self.send(interface.ifindex, &frame)?;
        }
        Ok(())
    }

    /// Resets whatever the backend of a port holds there, if it expects this number.
    pub fn reset_port(&self, at: SlotAt, sequence: u32, acknowledgement: Option<u32>) -> io::Result<()> {
        let pool = self.tables.pool(at.pool());
        let interface = self.tables.interface(pool.hop.interface());
        match frames::port_reset(&pool, at.slot(), (sequence, acknowledgement), interface.mac) {
            Some(frame) => self.send(interface.ifindex, &frame),
            None => Ok(()),
        }
    }

    /// Resets both sides of a flow that [`Tables::close`](crate::tables::Tables::close) has just
    /// given us.
    pub fn reset(&self, flow: &Flow, both: bool) -> Result<()> {
        let listener = self.tables.listener(flow.listener());
        let pool = self.tables.pool(flow.at.pool());
        let mac = |interface| self.tables.interface(interface).mac;
        let to_client = if both { 0 } else { usize::from(flow.record.hop.is_known()) };
        for out in frames::resets(flow, &listener, &pool, mac).into_iter().skip(to_client) {
            let ifindex = self.tables.interface(out.interface).ifindex;
            self.send(ifindex, &out.frame).with_context(|| format!("cannot reset {}", flow.client()))?;
        }
        Ok(())
    }
}

/// `struct xdp_md` (linux/bpf.h): data, data_end, data_meta, ingress_ifindex, rx_queue_index,
/// egress_ifindex.
pub(super) fn xdp_context(ifindex: u32, len: u32) -> [u8; 24] {
    words([0, len, 0, ifindex, 0, 0])
}

/// The beginning of `struct __sk_buff` (linux/bpf.h), up to `ifindex`: with it the kernel takes the
/// frame for one that came in by that interface (`pkt_type`). On the ingress hook of TC `ifindex` is
/// always what `ingress_ifindex` is (`__netif_receive_skb_core`), and a test run's context with
/// `ingress_ifindex` is refused before 5.16.
fn skb_context(ifindex: u32) -> [u8; 44] {
    words([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ifindex])
}

fn words<const N: usize, const BYTES: usize>(words: [u32; N]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (to, from) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before 5.16 a context with `ingress_ifindex`, the word before, is refused.
    #[test]
    fn the_context_of_a_frame_on_tc_names_only_its_interface() {
        let mut expected = [0; 44];
        expected[40..].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(skb_context(7), expected);
    }
}
