//! The ring of half-open flows of a service: there are never more than it has cells.

use lb_common::{
    flow::{HalfOpenCell, SlotAt},
    slot::State,
    verdict::Reason,
};

use super::end;
use crate::records;

/// Enters a half-open flow in its service's ring. A flow in that cell that is still half-open is
/// the oldest one, and is closed.
#[inline(always)]
pub fn enter(service: u32, at: SlotAt, generation: u32) {
    enter_half_open_global(service, at.0, generation);
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn enter_half_open_global(service: u32, at: u32, generation: u32) -> u32 {
    let Some(record) = records::service(service) else { return 0 };
    let (cells, turn) = (record.half_open_cells(), record.next_half_open());
    if cells == 0 {
        return 0;
    }
    match records::swap_half_open(service, turn % cells, HalfOpenCell::new(SlotAt(at), generation)) {
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
