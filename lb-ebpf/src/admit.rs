//! Whether a client may open a connection at all, before a backend is chosen for it.

use lb_common::{
    layout::{MAX_RULES, RuleLine},
    rules::DENY,
};

use crate::maps;

/// Rules in one line of the list.
const LINE: usize = core::mem::size_of::<RuleLine>() / core::mem::size_of::<lb_common::layout::Rule>();

/// What the service's rules say about a client: `number of the rule << 8 | verdict`, or 0 if none is about it. The list
/// is looked up once, so that one replaced meanwhile is not mixed with the new one.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn ruled(service: u32, client: u32) -> u32 {
    let Some(list) = maps::RULES.get(service) else { return 0 };
    for number in 0..MAX_RULES / LINE as u32 {
        let Some(line) = list.get(number) else { break };
        for (place, rule) in line.iter().enumerate() {
            if rule.verdict == 0 {
                return 0;
            }
            if rule.matches_v4(client) {
                return (number * LINE as u32 + place as u32) << 8 | rule.verdict as u32;
            }
        }
    }
    0
}

/// Whether the rules keep a client out.
#[inline(always)]
pub fn is_denied(service: u32, client: u32) -> bool {
    ruled(service, client) as u8 == DENY
}
