//! The ring of unconfirmed flows of a service: there are never more than it has cells, and the oldest
//! gives way.

use lb_common::{
    flow::{HalfOpenCell, SlotAt},
    verdict::Reason,
};

use super::end;
use crate::{outcome::Outcome, records};

/// Enters a flow that is to be connected now in its service's ring. A flow in that cell that is
/// still unconfirmed is the oldest one, and is closed: there are more than the service holds, and it
/// begins to send SYN cookies.
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
        Some(old) if old.is_used() && evict(old) != 0 => service.begin_cookies(),
        _ => {}
    }
    0
}

/// Cells that one search for the oldest flows looks at.
const LOOKED_AT: u32 = 64;
/// Flows that one search closes: slots of more than one backend, because the next one to be chosen
/// may be any.
const ROOM: u32 = 4;

/// No slot is free: the oldest unconfirmed flows give theirs, and the service begins to send SYN
/// cookies. False: there are none, and none that
/// was not looked at.
#[inline(always)]
pub fn make_room(service: u32) -> bool {
    make_room_global(service) != 0
}

/// The same for a flow that is to be connected to another backend of its service.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn make_room_beside_global(at: u32) -> u32 {
    let backend = records::slot(SlotAt(at)).and_then(|slot| records::backend(slot.backend() as u32));
    backend.map_or(0, |backend| make_room_global(backend.service() as u32))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn make_room_global(service: u32) -> u32 {
    let mut closed = 0;
    for _ in 0..LOOKED_AT {
        closed += give_way_global(service);
        if closed >= ROOM {
            break;
        }
    }
    let Some(record) = records::service(service) else { return 0 };
    if closed > 0 {
        record.begin_cookies();
    }
    // Those that were looked at may all have been confirmed: there may be more behind them.
    closed + (record.oldest() != record.half_open()) as u32
}

/// Looks at the next of the oldest cells; 1: a flow in it was closed.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn give_way_global(number: u32) -> u32 {
    let Some(service) = records::service(number) else { return 0 };
    let (cells, next, oldest) = (service.half_open_cells(), service.half_open(), service.oldest());
    if cells == 0 || next == oldest {
        return 0;
    }
    // Cells of an earlier lap hold younger flows by now.
    let position = if next.wrapping_sub(oldest) > cells { next.wrapping_sub(cells) } else { oldest };
    if !service.swap_oldest(oldest, position.wrapping_add(1)) {
        return 0;
    }
    match records::half_open(number, position % cells) {
        Some(cell) if cell.is_used() => evict(cell),
        _ => 0,
    }
}

#[inline(always)]
fn evict(cell: HalfOpenCell) -> u32 {
    let Some(slot) = records::slot(cell.at()) else { return 0 };
    let ctl = slot.ctl();
    if !ctl.state().is_unconfirmed() || !ctl.is_of_low31(cell.generation()) {
        return 0;
    }
    end::close(cell.at(), ctl, Reason::HalfOpenEvicted) as u32
}
