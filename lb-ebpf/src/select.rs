//! Choosing a backend for a new connection, and claiming a port towards it.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use lb_common::{
    layout::{BACKUP, Backend, MAX_SERVICE_BACKENDS, MAX_SNAT, OUT, Service, UP},
    schedule::{self, CHOSEN_BACKUP, CHOSEN_FAIL_OPEN, CHOSEN_TRIAL, CHOSEN_UP, MAGLEV_PLACES, less_loaded},
    time::Instant,
    verdict::Reason,
};

use crate::{atomic, clock, maps, report, slots};

/// Who may be given a connection: a set of classes, see [`class`]. Here: backends that are UP and no backups.
const PRIMARY: u32 = 1 << (UP << 1);
/// Backups that are UP.
const SPARE: u32 = 1 << (UP << 1 | BACKUP);
/// Whatever is not administratively out: nothing better is left.
const ANY: u32 = PRIMARY | SPARE | trials(PRIMARY) | trials(SPARE);
/// One after the other, from the lowest byte on. An array would stand on the stack, of which the deepest chain of calls
/// has nothing left.
const MODES: u32 = PRIMARY << (8 * CHOSEN_UP) | SPARE << (8 * CHOSEN_BACKUP) | ANY << (8 * CHOSEN_FAIL_OPEN);
/// Beside one of the three: it is only asked who would be chosen (`trace`), and nobody's turn passes by that. The highest
/// bit, which is no class.
pub const ASKED: u32 = 1 << 31;

/// Whether it is the last of the three.
#[inline(always)]
fn is_any(mode: u32) -> bool {
    mode & ANY == ANY
}

/// The classes that a trial may bring among those of `mode`: the same, but OUT.
const fn trials(mode: u32) -> u32 {
    mode >> ((UP - OUT) << 1)
}

/// The class of a backend, a number for its admission and whether it is a backup: one look instead of several branches, of
/// which the verifier would follow every combination.
#[inline(always)]
unsafe fn class(backend: *const Backend) -> u32 {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe { (atomic::load(&raw const (*backend).admission) << 1 | (*backend).flags & BACKUP) & 31 }
}

/// How often a CPU tries to get the lock before it goes on without: then two CPUs may give the same share twice.
const LOCK_TRIES: u32 = 128;
/// Points of the Maglev table that are tried.
const POINTS: u32 = 64;
/// Backends without a free port that are passed over for one connection.
pub const FULL_POOLS: u32 = 4;

/// A backend chosen and a slot claimed towards it.
#[derive(Clone, Copy)]
pub struct Choice {
    /// Position in the service's list, and from bit 6 on how it was chosen (`schedule::CHOSEN`).
    pub chosen: u32,
    /// pool << 16 | slot.
    pub place: u32,
}

/// Why there is no choice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// No backend may take it.
    NoBackend,
    /// Those that may have no free port.
    NoSlot,
}

impl Turned {
    /// The same among all reasons.
    #[inline(always)]
    pub fn reason(self) -> Reason {
        if self == Turned::NoSlot { Reason::NoSlot } else { Reason::NoBackend }
    }
}

/// Chooses a backend that is not in the mask `tried`, counts the flow in its `active`, and claims a slot.
/// `client` is a hash of the client's address.
#[inline(always)]
pub fn backend(service: u32, tried: u64, client: u32) -> Result<Choice, Turned> {
    let choice = choose_and_claim(service, tried, client);
    match choice {
        -1 => Err(Turned::NoBackend),
        -2 => Err(Turned::NoSlot),
        _ => Ok(Choice { chosen: (choice >> 32) as u32 & 255, place: choice as u32 }),
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn choose_and_claim(service: u32, tried: u64, client: u32) -> i64 {
    let mut tried = tried;
    let mut failure = -1;
    for _ in 0..FULL_POOLS {
        let chosen = choose(service, tried, client, 0);
        if chosen < 0 {
            return failure;
        }
        let backend = backend_at(service, chosen as u32);
        if backend < 0 {
            return failure;
        }
        let place = claim_towards(backend as u32, client);
        if place >= 0 {
            return (chosen as i64) << 32 | place;
        }
        uncount(backend as u32);
        tried |= 1 << (chosen & 63);
        failure = -2;
    }
    failure
}

/// A slot towards the backend, from one of its SNAT addresses, or -1. Used for a fresh port to the same backend too.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn claim_towards(backend: u32, client: u32) -> i64 {
    let Some(record) = maps::BACKENDS.get_ptr_mut(backend) else { return -1 };
    // SAFETY: from a map lookup.
    let count = unsafe { (*record).pool_count } as u32;
    if count == 0 {
        return -1;
    }
    for i in 0..MAX_SNAT {
        if i >= count {
            break;
        }
        // SAFETY: from a map lookup.
        let pool = unsafe { pool_at(record, i, client, count) };
        if let Some(slot) = slots::claim(pool) {
            return (pool << 16 | slot) as i64;
        }
    }
    -1
}

/// The pool to try in the `i`th place, of `count`: the client decides where it begins.
#[inline(always)]
pub unsafe fn pool_at(backend: *const Backend, i: u32, client: u32, count: u32) -> u32 {
    // Mostly there is one SNAT address, and nothing to divide.
    let mut which = if count == 1 { 0 } else { client.wrapping_add(i) % count };
    // SAFETY: touches one register; MAX_SNAT is 8.
    unsafe { core::arch::asm!("{0} &= 7", inout(reg) which) };
    // SAFETY: the caller's pointer is from a map lookup; 0..=7 lies in `pools`.
    unsafe { *(&raw const (*backend).pools).cast::<u16>().add(which as usize) as u32 }
}

/// Takes back what `count_in` has counted: no flow came of it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn uncount(backend: u32) -> u32 {
    let Some(record) = maps::BACKENDS.get_ptr_mut(backend) else { return 0 };
    // SAFETY: from a map lookup.
    unsafe {
        atomic::add(&raw mut (*record).active, u32::MAX);
        atomic::add(&raw mut (*record).opened, u64::MAX);
    }
    0
}

/// The backend at a position of the service's list, or -1.
#[inline(always)]
pub fn backend_at(service: u32, position: u32) -> i32 {
    match maps::SERVICES.get_ptr_mut(service) {
        // SAFETY: from a map lookup.
        Some(record) => unsafe { number_at(record, position) as i32 },
        None => -1,
    }
}

#[inline(always)]
unsafe fn number_at(service: *const Service, position: u32) -> u32 {
    let mut position = position;
    // SAFETY: touches one register; MAX_SERVICE_BACKENDS is 64.
    unsafe { core::arch::asm!("{0} &= 63", inout(reg) position) };
    // SAFETY: the caller's pointer is from a map lookup; 0..=63 lies in `backends`.
    unsafe { *(&raw const (*service).backends).cast::<u16>().add(position as usize) as u32 }
}

/// The record of the backend at a position of the service's list.
#[inline(always)]
unsafe fn member(service: *const Service, position: u32) -> Option<*mut Backend> {
    // SAFETY: the caller's pointer is from a map lookup.
    maps::BACKENDS.get_ptr_mut(unsafe { number_at(service, position) })
}

/// A service with so many backends.
#[inline(always)]
fn list_of(service: u32) -> Option<(*mut Service, u32)> {
    let record = maps::SERVICES.get_ptr_mut(service)?;
    // SAFETY: from a map lookup.
    Some((record, unsafe { atomic::load(&raw const (*record).backend_count) }))
}

/// The backend to use, as [`Choice::chosen`], already counted in its `active`; or -1. `asked` is 0 or [`ASKED`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn choose(service: u32, tried: u64, client: u32, asked: u32) -> i32 {
    let Some(record) = maps::SERVICES.get_ptr_mut(service) else { return -1 };
    lock(record);
    let mut chosen = -1;
    for how in CHOSEN_UP..=CHOSEN_FAIL_OPEN {
        let mode = MODES >> (8 * how) & 0xff | asked;
        // SAFETY: from a map lookup.
        let is_slow = unsafe { atomic::load(&raw const (*record).slow_until) } != Instant::ZERO;
        let held_back = if is_slow { held_back(service, tried, mode) } else { 0 };
        // SAFETY: from a map lookup.
        let balance = unsafe { (*record).balance };
        let mut picked = pick(service, tried | held_back, mode, client, balance);
        if picked < 0 && held_back != 0 {
            picked = pick(service, tried, mode, client, balance);
        }
        if picked >= 0 {
            count_in(service, picked as u32, mode);
            chosen = picked | (how << 6) as i32;
            break;
        }
    }
    // SAFETY: from a map lookup.
    unsafe { atomic::store(&raw mut (*record).lock, 0) };
    chosen
}

/// Backends that have come back a short while ago and have had their share of that time: a mask of positions.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn held_back(service: u32, tried: u64, mode: u32) -> u64 {
    let Some(record) = maps::SERVICES.get_ptr_mut(service) else { return 0 };
    let now = clock::coarse();
    // SAFETY: from a map lookup.
    let (until, balance) = unsafe { (atomic::load(&raw const (*record).slow_until), (*record).balance) };
    if until <= now || is_any(mode) {
        return 0;
    }
    // A method that prefers the less busy would give it everything: its share of all is counted. The others choose it
    // as often as its weight says.
    let prefers = balance == schedule::LEAST_CONN || balance == schedule::RANDOM_TWO;
    let total = if prefers { total_weight(service, tried, mode) } else { 0 };
    let count = backend_count(service);
    let mut held_back = 0;
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        if eligible(service, position, tried, mode) != 0 && save_up(service, position, total, now.0, mode & ASKED) == 0
        {
            held_back |= 1 << position;
        }
    }
    held_back
}

/// Adds to what a backend has saved up of its share since it came back. 1: that is a whole connection, or it has its
/// whole share. If it is only `asked`, nothing is added.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn save_up(service: u32, position: u32, total: u32, now: u64, asked: u32) -> u32 {
    let backend = backend_at(service, position);
    let (Some(record), Some(slow)) =
        (maps::BACKENDS.get_ptr_mut(backend as u32), maps::SLOW_STARTS.get_ptr_mut(backend as u32))
    else {
        return 1;
    };
    // SAFETY: from map lookups; the service's lock is held.
    unsafe {
        let until = atomic::load(&raw const (*slow).until);
        if until.0 <= now {
            return 1;
        }
        let share = schedule::slow_share(until.0 - now, (*slow).ms, (*record).weight, total);
        let before = (*slow).credit;
        let credit = before.wrapping_add(share);
        if asked == 0 {
            (*slow).credit = credit;
        }
        (credit < before) as u32
    }
}

/// A bounded lock: its holder runs a few hundred instructions and cannot be interrupted by another holder on the same CPU.
/// Who does not get it goes on, at the price of a share given twice; nobody ever waits for good.
#[inline(always)]
fn lock(service: *mut Service) {
    for _ in 0..LOCK_TRIES {
        // SAFETY: from a map lookup.
        if unsafe { atomic::compare_swap(&raw mut (*service).lock, 0, 1) } == 0 {
            break;
        }
    }
}

#[inline(always)]
fn count_in(service: u32, position: u32, mode: u32) -> u32 {
    if mode & ASKED != 0 {
        return 0;
    }
    let Some(record) = maps::BACKENDS.get_ptr_mut(backend_at(service, position) as u32) else { return 0 };
    // SAFETY: from a map lookup.
    unsafe {
        atomic::add(&raw mut (*record).active, 1);
        atomic::add(&raw mut (*record).opened, 1);
    }
    if is_any(mode) {
        report::count(Reason::FailOpen);
    }
    0
}

/// A load that is above no other.
const MOST_LOADED: u64 = (u32::MAX as u64) << 32 | 1;

/// One pass over the backends in `mode`, by the service's method: a position, or -1. A trial that is due goes before
/// everything else, and says so from bit 6 on.
#[inline(always)]
fn pick(service: u32, tried: u64, mode: u32, client: u32, balance: u32) -> i32 {
    let trial = due_trial(service, tried, mode);
    if trial >= 0 {
        return trial | (CHOSEN_TRIAL << 6) as i32;
    }
    if balance == schedule::HASH {
        let position = hashed(service, tried, mode, client);
        if position >= 0 {
            return position;
        }
    }
    if balance == schedule::RANDOM_TWO {
        let position = of_two(service, tried, mode);
        if position >= 0 {
            return position;
        }
    } else if balance != schedule::ROUND_ROBIN {
        let least = least_loaded(service, tried, mode);
        let position = if least == MOST_LOADED { -1 } else { round_robin(service, tried, mode, least) };
        if position >= 0 {
            return position;
        }
    }
    // Connections end while loads are compared, so that nobody may have been found: whoever may take it, takes it. Only
    // if there is nobody at all the next mode's turn has come.
    round_robin(service, tried, mode, MOST_LOADED)
}

/// [`load`] for the loops that are not run for every connection: the verifier looks at it once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn eligible(service: u32, position: u32, tried: u64, mode: u32) -> u64 {
    match maps::BACKENDS.get_ptr_mut(backend_at(service, position) as u32) {
        // SAFETY: from a map lookup.
        Some(record) => unsafe { load(record, position, tried, mode) },
        None => 0,
    }
}

/// The load and weight of a backend that may be given a connection in `mode`, as active << 32 | weight; 0 if it may not.
#[inline(always)]
unsafe fn load(record: *const Backend, position: u32, tried: u64, mode: u32) -> u64 {
    // SAFETY: the caller's pointer is from a map lookup.
    unsafe {
        let active = atomic::load(&raw const (*record).active);
        // No limit is 0, which becomes the highest number. One bit: the limit is exceeded.
        let is_full = ((*record).max_conns.wrapping_sub(1) as u64).wrapping_sub(active as u64) >> 63;
        let is_tried = tried >> (position & 63);
        if (mode >> class(record)) as u64 & !is_tried & !is_full & 1 == 0 || !is_reachable(record) {
            return 0;
        }
        (active as u64) << 32 | (*record).weight as u64
    }
}

/// Whether the next hop towards it is known. All its pools have the same one.
#[inline(always)]
unsafe fn is_reachable(backend: *const Backend) -> bool {
    // SAFETY: the caller's pointer is from a map lookup.
    match maps::POOLS.get_ptr_mut(unsafe { (*backend).pools[0] } as u32) {
        // SAFETY: from a map lookup.
        Some(pool) => unsafe { atomic::load(&raw const (*pool).hop) }.is_known(),
        None => false,
    }
}

/// A backend that is out and whose time for a trial has come. Whoever moves its `retry_at` has the one trial of the whole
/// system; it lapses when the outcome would be known.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn due_trial(service: u32, tried: u64, mode: u32) -> i32 {
    if is_any(mode) {
        return -1;
    }
    let Some((list, count)) = list_of(service) else { return -1 };
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        // SAFETY: from a map lookup.
        let Some(record) = (unsafe { member(list, position) }) else { break };
        // SAFETY: as above.
        let may_be_due = (trials(mode) >> unsafe { class(record) }) as u64 & !(tried >> position) & 1;
        if may_be_due != 0 && take_trial(service, position, mode) != 0 {
            return position as i32;
        }
    }
    -1
}

#[inline(always)]
fn backend_count(service: u32) -> u32 {
    match list_of(service) {
        Some((_, count)) => count,
        None => 0,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take_trial(service: u32, position: u32, mode: u32) -> u32 {
    let backend = backend_at(service, position);
    let (Some(record), Some(service)) =
        (maps::BACKENDS.get_ptr_mut(backend as u32), maps::SERVICES.get_ptr_mut(service))
    else {
        return 0;
    };
    // SAFETY: from map lookups.
    unsafe {
        if trials(mode) >> class(record) & 1 == 0 {
            return 0;
        }
        let (now, due) = (clock::coarse(), atomic::load(&raw const (*record).retry_at));
        if now < due || !is_reachable(record) {
            return 0;
        }
        if mode & ASKED != 0 {
            return 1;
        }
        let lapse = now.0 + (*service).connect_timeout + (*record).retry_after;
        (atomic::compare_swap((&raw mut (*record).retry_at).cast::<u64>(), due.0, lapse) == due.0) as u32
    }
}

/// least_conn: the load and weight of the least loaded backend, as `load` gives it; `MOST_LOADED` if there is none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn least_loaded(service: u32, tried: u64, mode: u32) -> u64 {
    let Some((list, count)) = list_of(service) else { return MOST_LOADED };
    let mut least = forgotten(MOST_LOADED);
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        // SAFETY: from map lookups.
        let Some(backend) = (unsafe { member(list, position) }) else { break };
        // SAFETY: as above.
        let load = unsafe { load(backend, position, tried, mode) };
        if load != 0 && less_loaded((load >> 32) as u32, load as u32, (least >> 32) as u32, least as u32) {
            least = load;
        }
    }
    least
}

/// Zero, which the verifier does not know, for it is the program's to change.
#[unsafe(no_mangle)]
static mut ZERO: u64 = 0;

/// The same number, of which the verifier no longer knows which one it is: it would follow every choice of a loop to the
/// end of the next.
#[inline(always)]
fn forgotten(number: u64) -> u64 {
    // SAFETY: a word of this program's own.
    number ^ unsafe { atomic::load(&raw const ZERO) }
}

/// Smooth weighted round-robin (nginx) among the backends that are not more loaded than `least`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn round_robin(service: u32, tried: u64, mode: u32, least: u64) -> i32 {
    let Some((list, count)) = list_of(service) else { return -1 };
    let mut total = 0_i32;
    let mut best = forgotten(u64::MAX) as i32;
    let mut highest = forgotten(i64::MIN as u64) as i64;
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        // SAFETY: from map lookups.
        let Some(backend) = (unsafe { member(list, position) }) else { break };
        // SAFETY: as above.
        let load = unsafe { load(backend, position, tried, mode) };
        if load == 0 || less_loaded((least >> 32) as u32, least as u32, (load >> 32) as u32, load as u32) {
            continue;
        }
        let weight = load as u32 as i32;
        total = total.wrapping_add(weight);
        // SAFETY: as above.
        let current = unsafe { add_current(backend, weight, mode) } as i64;
        if current > highest {
            best = forgotten(position as u64) as i32;
            highest = current;
        }
    }
    // SAFETY: from map lookups.
    unsafe {
        if best >= 0
            && let Some(backend) = member(list, best as u32)
        {
            add_current(backend, total.wrapping_neg(), mode);
        }
    }
    best
}

/// Moves a backend's current weight, unless it is only asked; its new value.
#[inline(always)]
unsafe fn add_current(record: *mut Backend, change: i32, mode: u32) -> i32 {
    // SAFETY: the caller's pointer is from a map lookup; the service's lock is held.
    unsafe {
        let current = ((*record).current as i32).wrapping_add(change);
        if mode & ASKED == 0 {
            (*record).current = current as u32;
        }
        current
    }
}

/// random_two: of two drawn by weight the less loaded one.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn of_two(service: u32, tried: u64, mode: u32) -> i32 {
    let first = drawn(service, tried, mode);
    if first < 0 {
        return first;
    }
    let second = drawn(service, tried | 1 << (first & 63), mode);
    if second < 0 {
        return first;
    }
    let a = eligible(service, first as u32, tried, mode);
    let b = eligible(service, second as u32, tried, mode);
    if less_loaded((b >> 32) as u32, b as u32, (a >> 32) as u32, a as u32) { second } else { first }
}

/// One drawn by weight.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn drawn(service: u32, tried: u64, mode: u32) -> i32 {
    let total = total_weight(service, tried, mode);
    if total == 0 {
        return -1;
    }
    // SAFETY: plain helper.
    let mut left = unsafe { bpf_get_prandom_u32() } % total;
    let count = backend_count(service);
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        let weight = eligible(service, position, tried, mode) as u32;
        if weight > left {
            return position as i32;
        }
        left -= weight;
    }
    -1
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn total_weight(service: u32, tried: u64, mode: u32) -> u32 {
    let count = backend_count(service);
    let mut total = 0_u32;
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        total = total.wrapping_add(eligible(service, position, tried, mode) as u32);
    }
    total
}

/// hash: the client's point of the Maglev table, or the next ones while their backends may take nothing.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hashed(service: u32, tried: u64, mode: u32, client: u32) -> i32 {
    let start = lb_common::hash::scale(client, MAGLEV_PLACES);
    let count = backend_count(service);
    for step in 0..POINTS {
        let position = maglev_at(service, (start + step) % MAGLEV_PLACES);
        if position < count && eligible(service, position, tried, mode) != 0 {
            return position as i32;
        }
    }
    // Sixty-four points in a row of backends that are out: least_conn among those that are left.
    -1
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn maglev_at(service: u32, point: u32) -> u32 {
    let Some(line) = maps::MAGLEV.get_value_ptr_mut(service, &(point >> 2)) else { return u32::MAX };
    let mut place = point;
    // SAFETY: touches one register.
    unsafe { core::arch::asm!("{0} &= 3", inout(reg) place) };
    // SAFETY: 0..=3 lies in the line.
    unsafe { *line.cast::<u16>().add(place as usize) as u32 }
}
