//! Choosing a backend for a new connection, and claiming a port towards it.

mod choice;

use lb_common::{
    address::V4,
    flow::{Chosen, Key, SlotAt, Tried},
    hash,
    layout::{BACKUP, Backend, LISTENED, MAX_SERVICE_BACKENDS, MAX_SNAT, OUT, Service, Slot, UP},
    schedule::{self, CHOSEN_BACKUP, CHOSEN_FAIL_OPEN, CHOSEN_TRIAL, CHOSEN_UP, MAGLEV_PLACES, less_loaded},
    time::Instant,
    verdict::Reason,
};

use crate::{
    clock,
    maps::forgotten,
    outcome::{NONE, found},
    records::{self, Held},
    report, slots,
};

pub use choice::Choice;

/// Which backends may be given a connection: a set of classes, see [`class`]. This one: those that
/// are UP and no backups.
const PRIMARY: u32 = 1 << (UP << 1);
/// Backups that are UP.
const SPARE: u32 = 1 << (UP << 1 | BACKUP);
/// All that are not administratively out: nothing better is left.
const ANY: u32 = PRIMARY | SPARE | trials(PRIMARY) | trials(SPARE);
/// One mode after the other, from the lowest byte on. An array would be on the stack, of which
/// every chain of calls below has so much less.
const MODES: u32 = PRIMARY << (8 * CHOSEN_UP) | SPARE << (8 * CHOSEN_BACKUP) | ANY << (8 * CHOSEN_FAIL_OPEN);
/// In addition to one of the three: `trace` only asks which backend would be chosen, and no backend
/// loses its turn by that. It is the highest bit, which is no class.
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

/// The class of a backend: a number for its admission and whether it is a backup. One look instead
/// of several branches, of which the verifier would follow every combination.
#[inline(always)]
fn class(backend: Held<Backend>) -> u32 {
    (backend.admission() << 1 | backend.flags() & BACKUP) & 31
}

/// How often a CPU tries to get the lock before it goes on without.
const LOCK_TRIES: u32 = 128;
/// Points of the Maglev table that are tried.
const POINTS: u32 = 64;
/// Backends without a free port that are passed over for one connection.
pub const FULL_POOLS: u32 = 4;

/// What matters of a client for what it is given: a hash of its address, and above that the
/// listener it came by. One number, so that global functions can take it.
#[derive(Clone, Copy)]
pub struct Client(u64);

impl Client {
    /// The client with a key.
    #[inline(always)]
    pub const fn of(key: Key) -> Client {
        Client(hash::client(key) as u64 | (key.listener() as u64) << 32)
    }

    #[inline(always)]
    const fn hash(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    const fn listener(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The first backend of a new connection.
#[inline(always)]
pub fn first(service: u32, client: Client) -> Choice {
    Choice(first_global(service, client.0))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn first_global(service: u32, client: u64) -> u64 {
    backend(service, Tried::default(), Client(client)).0
}

/// The next backend of the flow in a slot: one that it has not tried. If the list has changed since
/// the flow noted positions in it, all that is known is which backend it leaves.
#[inline(always)]
pub fn next(at: SlotAt) -> Choice {
    Choice(next_global(at.0))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn next_global(at: u32) -> u64 {
    let Some(slot) = records::slot(SlotAt(at)) else { return Choice::NO_BACKEND.0 };
    let left = slot.backend() as u32;
    let Some(record) = records::backend(left) else { return Choice::NO_BACKEND.0 };
    let number = record.service() as u32;
    let Some(service) = records::service(number) else { return Choice::NO_BACKEND.0 };
    let mut tried = tried(slot, service.list());
    if tried.0 == 0 {
        tried = Tried(bit_of_global(number, left));
    }
    backend(number, tried, Client::of(slot.key())).0
}

/// The positions in `list` that the flow in a slot has tried, as far as they are known.
#[inline(always)]
pub fn tried(slot: Held<Slot>, list: u32) -> Tried {
    if slot.attempt().is_of_list(list) { slot.tried() } else { Tried::default() }
}

/// The bit of a backend's position in the list of a service; 0, or that of a position behind the end
/// of the list, if it is not in it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn bit_of_global(service: u32, backend: u32) -> u64 {
    let Some(list) = records::service(service) else { return 0 };
    for position in 0..MAX_SERVICE_BACKENDS {
        if list.backend_at(position) == backend {
            return 1 << position;
        }
    }
    0
}

/// Chooses a backend that was not tried, counts the flow in its `active`, and claims a slot.
#[inline(always)]
fn backend(service: u32, mut tried: Tried, client: Client) -> Choice {
    for turn in 0..FULL_POOLS {
        let chosen = choose_global(service, tried.0, client.0, 0);
        if chosen < 0 {
            return match turn {
                0 if is_one_full_global(service, tried.0) != 0 => Choice::FULL,
                0 => Choice::NO_BACKEND,
                _ => Choice::NO_SLOT,
            };
        }
        // Both cut it to the position, which is in its low bits.
        let Some(backend) = backend_at(service, chosen as u32) else { return Choice::NO_BACKEND };
        if let Some(at) = claim_towards(backend, client) {
            return Choice::new(chosen as u32, backend, at);
        }
        count_out_global(backend);
        tried = tried.with(chosen as u32);
    }
    Choice::NO_SLOT
}

/// A slot towards the backend, from one of its SNAT addresses. Used for a fresh port to the same
/// backend too.
#[inline(always)]
pub fn claim_towards(backend: u32, client: Client) -> Option<SlotAt> {
    found(slot_towards_global(backend, client.0, 0)).map(SlotAt)
}

/// The slot that [`claim_towards`] would take.
#[inline(always)]
pub fn peek_towards(backend: u32, client: Client) -> Option<SlotAt> {
    found(slot_towards_global(backend, client.0, ASKED)).map(SlotAt)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn slot_towards_global(backend: u32, client: u64, asked: u32) -> i64 {
    let Some(record) = records::backend(backend) else { return NONE };
    let client = Client(client);
    let slot_of = |pool: u32| {
        let slot = if asked == 0 { slots::claim(pool) } else { slots::peek(pool) };
        slot.map_or(NONE, |slot| (pool << 16 | slot) as i64)
    };
    let count = record.pool_count() as u32;
    // Mostly there is one SNAT address, and nothing to choose or to divide.
    if count == 1 {
        return slot_of(record.first_pool());
    }
    let usable = usable_pools_global(backend, client.listener());
    let own = usable >> OWN_SHIFT;
    let start = if own != 0 { own - 1 } else { client.hash() };
    for i in 0..MAX_SNAT {
        if i >= count {
            break;
        }
        let which = start.wrapping_add(i) % count;
        if usable >> (which & 31) & 1 != 0 {
            let at = slot_of(record.pool(which));
            if at >= 0 {
                return at;
            }
        }
    }
    NONE
}

/// Above the pools of [`usable_pools_global`].
const OWN_SHIFT: u32 = MAX_SNAT;

/// Which of the backend's pools a client of a listener may get a port from, one bit each, and above
/// them which has the listener's own address, counted from 1; 0: none has.
///
/// The answers of the backend come to the SNAT address, so it is the address that the client came
/// by if it is among them: both are on one host, whichever that is. Those that are no listener's
/// address may serve too; another listener's may be held by another host. If there is nothing else,
/// the operator has chosen so.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn usable_pools_global(backend: u32, listener: u32) -> u32 {
    let (Some(record), Some(listener)) = (records::backend(backend), records::listener(listener)) else { return 0 };
    let count = record.pool_count() as u32;
    let mut own = forgotten(0) as u32;
    let mut usable = forgotten(0) as u32;
    for which in 0..MAX_SNAT {
        if which >= count {
            break;
        }
        let Some(pool) = records::pool(record.pool(which)) else { break };
        if pool.snat::<V4>() == listener.address::<V4>() {
            own = forgotten(which as u64 + 1) as u32;
            usable |= forgotten(1 << which) as u32;
        } else if pool.flags() & LISTENED == 0 {
            usable |= forgotten(1 << which) as u32;
        }
    }
    if usable == 0 { (1 << MAX_SNAT) - 1 } else { own << OWN_SHIFT | usable }
}

/// Takes back what `count_in` has counted: no flow came of it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_out_global(backend: u32) -> u32 {
    if let Some(record) = records::backend(backend) {
        record.count_out();
    }
    0
}

/// The backend at a position of the service's list.
#[inline(always)]
pub fn backend_at(service: u32, position: u32) -> Option<u32> {
    Some(records::service(service)?.backend_at(position))
}

/// The record of the backend at a position of the service's list.
#[inline(always)]
fn member(service: Held<Service>, position: u32) -> Option<Held<Backend>> {
    records::backend(service.backend_at(position))
}

/// A service, and how many backends it has.
#[inline(always)]
fn list_of(service: u32) -> Option<(Held<Service>, u32)> {
    let record = records::service(service)?;
    Some((record, record.backend_count()))
}

/// The backend to use; if `asked` is 0 and not [`ASKED`], it is already counted in its `active`.
#[inline(always)]
pub fn choose(service: u32, tried: Tried, client: Client, asked: u32) -> Option<Chosen> {
    let chosen = choose_global(service, tried.0, client.0, asked);
    if chosen < 0 { None } else { Some(Chosen(chosen as u8)) }
}

/// What it returns: a [`Chosen`], and above it the low two bits of [`Service::list`]; below zero if
/// there is none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn choose_global(service: u32, tried: u64, client: u64, asked: u32) -> i32 {
    let client = Client(client).hash();
    let Some(record) = records::service(service) else { return -1 };
    // Read before the list is: a list that changes meanwhile is then taken for another one.
    let list = record.list();
    lock(record);
    let mut chosen = -1;
    for how in CHOSEN_UP..=CHOSEN_FAIL_OPEN {
        let mode = MODES >> (8 * how) & 0xff | asked;
        let balance = record.balance();
        let held_back =
            if starts_slowly(record) && !is_any(mode) { held_back(service, tried, mode, balance) } else { 0 };
        let mut picked = pick(service, tried | held_back, mode, client, balance);
        if picked < 0 && held_back != 0 {
            picked = pick(service, tried, mode, client, balance);
        }
        if picked >= 0 {
            count_in(service, picked as u32, mode);
            chosen = picked | (how << 6 | (list & 3) << 8) as i32;
            break;
        }
    }
    record.unlock();
    chosen
}

/// Whether a backend of the service came back a short while ago. Most services never had one.
#[inline(always)]
fn starts_slowly(service: Held<Service>) -> bool {
    let until = service.slow_until();
    until != Instant::ZERO && until > clock::coarse()
}

/// Backends that came back a short while ago and have had their share of that time: a mask of
/// positions.
#[inline(always)]
fn held_back(service: u32, tried: u64, mode: u32, balance: u32) -> u64 {
    // A method that prefers the less busy backend would give it everything, so its share of all
    // connections is counted. The others choose it as often as its weight says.
    let prefers = balance == schedule::LEAST_CONN || balance == schedule::RANDOM_TWO;
    let total = if prefers { total_weight_global(service, tried, mode) } else { 0 };
    held_back_global(service, tried, mode, total)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn held_back_global(service: u32, tried: u64, mode: u32, total: u32) -> u64 {
    let Some(record) = records::service(service) else { return 0 };
    let (now, count) = (clock::coarse(), record.backend_count());
    let mut held_back = forgotten(0);
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        if eligible_global(service, position, tried, mode) != 0
            && save_up_global(service, position, total, now.0, mode & ASKED) == 0
        {
            held_back |= forgotten(1 << position);
        }
    }
    held_back
}

/// Adds to what a backend has saved up of its share since it came back. 1: that makes a whole
/// connection, or it has its whole share. If `asked` is set, nothing is added.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn save_up_global(service: u32, position: u32, total: u32, now: u64, asked: u32) -> u32 {
    let Some(number) = backend_at(service, position) else { return 1 };
    let (Some(record), Some(slow)) = (records::backend(number), records::slow_start(number)) else { return 1 };
    let until = slow.until();
    if until.0 <= now {
        return 1;
    }
    let share = schedule::slow_share(until.0 - now, slow.ms(), record.weight(), total);
    let before = slow.credit();
    let credit = before.wrapping_add(share);
    if asked == 0 {
        // Under the service's lock. A CPU that went on without it may lose this sum or count it
        // twice: a share is given once too often or too seldom.
        slow.set_credit(credit);
    }
    (credit < before) as u32
}

/// A bounded lock. Its holder runs a few hundred instructions and cannot be interrupted by another
/// holder on the same CPU. A CPU that does not get it goes on without it, and may unlock what
/// another one holds; the price is a share that is given twice, and no CPU ever waits forever.
#[inline(always)]
fn lock(service: Held<Service>) {
    for _ in 0..LOCK_TRIES {
        if service.try_lock() {
            break;
        }
    }
}

#[inline(always)]
fn count_in(service: u32, position: u32, mode: u32) {
    if mode & ASKED != 0 {
        return;
    }
    let Some(record) = backend_at(service, position).and_then(records::backend) else { return };
    record.count_in();
    if is_any(mode) {
        report::count(Reason::FailOpen);
    }
}

/// A load that is above no other.
const MOST_LOADED: u64 = (u32::MAX as u64) << 32 | 1;

/// One pass over the backends in `mode`, by the service's method: a position, or a negative number.
/// A trial that is due goes before everything else, and says so from bit 6 on.
#[inline(always)]
fn pick(service: u32, tried: u64, mode: u32, client: u32, balance: u32) -> i32 {
    let trial = due_trial_global(service, tried, mode);
    if trial >= 0 {
        return trial | (CHOSEN_TRIAL << 6) as i32;
    }
    if balance == schedule::HASH {
        let position = hashed_global(service, tried, mode, client);
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
        let least = least_loaded_global(service, tried, mode);
        let position = if least == MOST_LOADED { -1 } else { round_robin_global(service, tried, mode, least) };
        if position >= 0 {
            return position;
        }
    }
    // Connections end while loads are compared, so the least load may no longer be that of any
    // backend: then any backend that may take the connection takes it. Only if no backend may take
    // it is it the next mode's turn.
    round_robin_global(service, tried, mode, MOST_LOADED)
}

/// [`load`] for the loops that are not run for every connection: the verifier looks at it once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn eligible_global(service: u32, position: u32, tried: u64, mode: u32) -> u64 {
    match backend_at(service, position).and_then(records::backend) {
        Some(record) => load(record, position, tried, mode),
        None => 0,
    }
}

/// The load and weight of a backend that may be given a connection in `mode`, as active << 32 |
/// weight; 0 if it may not.
#[inline(always)]
fn load(record: Held<Backend>, position: u32, tried: u64, mode: u32) -> u64 {
    let active = record.active();
    let is_full = is_full(record, active);
    let is_tried = tried >> (position & 63);
    if (mode >> class(record)) as u64 & !is_tried & !is_full & 1 == 0 || !is_reachable(record) {
        return 0;
    }
    (active as u64) << 32 | record.weight() as u64
}

/// One bit: a backend with so many active connections has reached its limit. Unlimited is 0, which
/// becomes the highest number.
#[inline(always)]
fn is_full(record: Held<Backend>, active: u32) -> u64 {
    (record.max_conns().wrapping_sub(1) as u64).wrapping_sub(active as u64) >> 63
}

/// Whether the next hop towards it is known. All its pools have the same one.
#[inline(always)]
fn is_reachable(backend: Held<Backend>) -> bool {
    records::pool(backend.first_pool()).is_some_and(|pool| pool.hop().is_known())
}

/// A backend that is out and whose time for a trial has come. The CPU that moves its `retry_at` has
/// the one trial of the whole system. The next one is due fail_timeout later, but not before the
/// result of this one is known.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn due_trial_global(service: u32, tried: u64, mode: u32) -> i32 {
    if is_any(mode) {
        return -1;
    }
    let Some((list, count)) = list_of(service) else { return -1 };
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        let Some(record) = member(list, position) else { break };
        let may_be_due = (trials(mode) >> class(record)) as u64 & !(tried >> position) & 1;
        if may_be_due != 0 && take_trial_global(service, position, mode) != 0 {
            return position as i32;
        }
    }
    -1
}

/// Whether a backend that is up has as many connections as it may have: 1 or 0.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_one_full_global(service: u32, tried: u64) -> u32 {
    let Some((list, count)) = list_of(service) else { return 0 };
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        let Some(record) = member(list, position) else { break };
        let is_up = (PRIMARY | SPARE) >> class(record) & 1;
        if is_up as u64 & !(tried >> position) & is_full(record, record.active()) != 0 {
            return 1;
        }
    }
    0
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
extern "C" fn take_trial_global(service: u32, position: u32, mode: u32) -> u32 {
    let Some(record) = backend_at(service, position).and_then(records::backend) else { return 0 };
    let Some(service) = records::service(service) else { return 0 };
    if trials(mode) >> class(record) & 1 == 0 {
        return 0;
    }
    let (now, due) = (clock::coarse(), record.retry_at());
    if now < due || !is_reachable(record) || is_full(record, record.active()) != 0 {
        return 0;
    }
    if mode & ASKED != 0 {
        return 1;
    }
    let (timeout, pause) = (service.connect_timeout(), record.retry_after());
    let next = Instant(now.0 + if timeout > pause { timeout } else { pause });
    record.swap_retry_at(due, next) as u32
}

/// least_conn: the load and weight of the least loaded backend, as `load` gives it; `MOST_LOADED`
/// if there is none.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn least_loaded_global(service: u32, tried: u64, mode: u32) -> u64 {
    let Some((list, count)) = list_of(service) else { return MOST_LOADED };
    let mut least = forgotten(MOST_LOADED);
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        let Some(backend) = member(list, position) else { break };
        let load = load(backend, position, tried, mode);
        if load != 0 && less_loaded((load >> 32) as u32, load as u32, (least >> 32) as u32, least as u32) {
            least = load;
        }
    }
    least
}

/// Smooth weighted round-robin (nginx) among the backends that are not more loaded than `least`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn round_robin_global(service: u32, tried: u64, mode: u32, least: u64) -> i32 {
    let Some((list, count)) = list_of(service) else { return -1 };
    let mut total = 0_i32;
    let mut best = forgotten(u64::MAX) as i32;
    let mut highest = forgotten(i64::MIN as u64) as i64;
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        let Some(backend) = member(list, position) else { break };
        let load = load(backend, position, tried, mode);
        if load == 0 || less_loaded((least >> 32) as u32, least as u32, (load >> 32) as u32, load as u32) {
            continue;
        }
        let weight = load as u32 as i32;
        total = total.wrapping_add(weight);
        let current = add_current(backend, weight, mode) as i64;
        if current > highest {
            best = forgotten(position as u64) as i32;
            highest = current;
        }
    }
    if best >= 0
        && let Some(backend) = member(list, best as u32)
    {
        add_current(backend, total.wrapping_neg(), mode);
    }
    best
}

/// Moves a backend's current weight, unless the caller only asks; returns the new value. Under the
/// service's lock: a CPU that went on without it may lose another one's step, and the weights come
/// out even again.
#[inline(always)]
fn add_current(record: Held<Backend>, change: i32, mode: u32) -> i32 {
    let current = (record.current() as i32).wrapping_add(change);
    if mode & ASKED == 0 {
        record.set_current(current as u32);
    }
    current
}

/// random_two: the less loaded of two that are drawn by weight.
#[inline(always)]
fn of_two(service: u32, tried: u64, mode: u32) -> i32 {
    let first = drawn_global(service, tried, mode, total_weight_global(service, tried, mode));
    if first < 0 {
        return first;
    }
    let others = tried | 1 << (first & 63);
    let second = drawn_global(service, others, mode, total_weight_global(service, others, mode));
    if second < 0 || less_loaded_global(service, second as u32, first as u32) == 0 { first } else { second }
}

/// Whether the backend at one position is less loaded than the one at another.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn less_loaded_global(service: u32, position: u32, than: u32) -> u32 {
    let Some((list, _)) = list_of(service) else { return 0 };
    let (Some(one), Some(other)) = (member(list, position), member(list, than)) else { return 0 };
    less_loaded(one.active(), one.weight(), other.active(), other.weight()) as u32
}

/// One drawn by weight, of backends whose weights are `total` together.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn drawn_global(service: u32, tried: u64, mode: u32, total: u32) -> i32 {
    if total == 0 {
        return -1;
    }
    let mut left = clock::random() % total;
    let count = backend_count(service);
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        let weight = eligible_global(service, position, tried, mode) as u32;
        if weight > left {
            return position as i32;
        }
        left -= weight;
    }
    -1
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn total_weight_global(service: u32, tried: u64, mode: u32) -> u32 {
    let count = backend_count(service);
    let mut total = 0_u32;
    for position in 0..MAX_SERVICE_BACKENDS {
        if position >= count {
            break;
        }
        total = total.wrapping_add(eligible_global(service, position, tried, mode) as u32);
    }
    total
}

/// hash: the client's point of the Maglev table, or the next points while their backends may not
/// take the connection.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn hashed_global(service: u32, tried: u64, mode: u32, client: u32) -> i32 {
    let start = lb_common::hash::scale(client, MAGLEV_PLACES);
    let count = backend_count(service);
    for step in 0..POINTS {
        let position = maglev_global(service, (start + step) % MAGLEV_PLACES);
        if position < count && eligible_global(service, position, tried, mode) != 0 {
            return position as i32;
        }
    }
    // Sixty-four points in a row lead to backends that are out: least_conn among those that are
    // left.
    -1
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn maglev_global(service: u32, point: u32) -> u32 {
    records::maglev(service, point)
}
