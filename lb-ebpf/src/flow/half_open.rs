//! The ring of half-open flows of a service: there are never more than it has cells.

use lb_common::{
    flow::{HalfOpenCell, SlotAt},
    slot::State,
    verdict::Reason,
};

use super::end;
use crate::{outcome::Outcome, records};

/// Enters a flow that is to be connected now in its service's ring. A flow in that cell that is
/// still half-open is the oldest one, and is closed.
#[inline(always)]
pub fn enter(outcome: Outcome) {
    if matches!(outcome.kind(), Outcome::OPENED | Outcome::SEND_SYN) {
        enter_half_open_global(outcome.at().0);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn enter_half_open_global(at: u32) -> u32 {
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return 0 };
    let generation = slot.ctl().generation();
    let Some(backend) = records::backend(slot.backend() as u32) else { return 0 };
    let number = backend.service() as u32;
    let Some(service) = records::service(number) else { return 0 };
    let (cells, turn) = (service.half_open_cells(), service.next_half_open());
    if cells == 0 {
        return 0;
    }
    match records::swap_half_open(number, turn % cells, HalfOpenCell::new(at, generation)) {
        Some(old) if old.is_used() => evict(old),
        _ => 0,
    }
}

#[inline(always)]
fn evict(cell: HalfOpenCell) -> u32 {
    let Some(slot) = records::slot(cell.at()) else { return 0 };
    let ctl = slot.ctl();
    if ctl.state() != State::HalfOpen || !ctl.is_of_low31(cell.generation()) {
        return 0;
    }
    end::close(cell.at(), ctl, Reason::HalfOpenEvicted) as u32
}
