//! SYN cookies: while a service sends them, a SYN opens nothing until its client has shown that it
//! gets what is sent to its address; see `lb_common::cookie`.

use lb_common::{
    address::V4,
    cookie::{EPOCH_BITS, KNOWN, Mark, REPEATED, ROWS, acknowledgement, hash},
    flow::Key,
    layout::{COOKIES_ON, EXEMPTS, Listener},
    tcp::{ACK, RST},
    verdict::Reason,
};

use crate::{
    clock, maps,
    parse::Segment,
    records::{self, Held},
    report::count,
};

/// Whether a client that is about to open a connection gets a cookie first: its service sends them,
/// and it has answered none lately. One that was sent a cookie a second ago and comes again without
/// an answer is counted.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn is_due_global(service: u32, key: u64) -> u32 {
    let Some(record) = records::service(service) else { return 0 };
    if record.flags() & EXEMPTS != 0 && records::is_exempt::<V4>(service, Key(key).address_word()) {
        return 0;
    }
    let (row, tag) = Mark::place(maps::seed(), key);
    let (Some(marks), Some(challenged)) = (marks(row), records::challenged(row)) else { return 0 };
    let now = clock::ticks();
    if Mark::is_known(&marks, tag, now) {
        return 0;
    }
    // The mark of another client stays as long as it means something: a flood leaves most as they
    // are, and costs them no writing.
    let last = Mark(challenged.load());
    if last.age(now) >= KNOWN {
        challenged.store(Mark::new(tag, now).0);
    } else if last.is_of(tag) && last.age(now) >= REPEATED {
        count(Reason::CookieUnanswered);
    }
    1
}

/// What a SYN's cookie acknowledges.
#[inline(always)]
pub fn number(segment: Segment) -> u32 {
    let cookie = cookie_global(segment.source, segment.destination, ports(segment), 0);
    acknowledgement(segment.sequence, cookie as u16)
}

/// Whether a segment of no flow answers a cookie. Its client is known from now on.
#[inline(always)]
pub fn is_answer(segment: Segment, listener: Held<Listener>, key: Key) -> bool {
    if segment.flags & (RST | ACK) != RST || !is_sent_by(listener.service() as u32) {
        return false;
    }
    answer_global(segment.source, segment.destination, ports(segment), segment.sequence, key.0) != 0
}

/// Whether a service sends cookies now.
#[inline(always)]
pub fn is_sent_by(service: u32) -> bool {
    records::service(service).is_some_and(|service| service.cookies() == COOKIES_ON)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn answer_global(source: u32, destination: u32, ports: u32, sequence: u32, key: u64) -> u32 {
    let said = sequence & 0xffff;
    if cookie_global(source, destination, ports, 0) != said && cookie_global(source, destination, ports, 1) != said {
        return 0;
    }
    let (row, tag) = Mark::place(maps::seed(), key);
    let (Some(marks), now) = (marks(row), clock::ticks()) else { return 0 };
    // One that is known already says nothing new: who repeats his answer must not look like many.
    if Mark::is_known(&marks, tag, now) {
        return 0;
    }
    let Some(verified) = records::verified(row ^ Mark::room(&marks, tag, now)) else { return 0 };
    verified.store(Mark::new(tag, now).0);
    1
}

/// The marks in the rows of a client.
#[inline(always)]
fn marks(row: u32) -> Option<[Mark; ROWS]> {
    let mut marks = [Mark(0); ROWS];
    for (i, mark) in marks.iter_mut().enumerate() {
        *mark = Mark(records::verified(row ^ i as u32)?.load());
    }
    Some(marks)
}

/// The cookie of a connection, this epoch's or one that was `before`. All as they lie in the packet.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn cookie_global(source: u32, destination: u32, ports: u32, before: u32) -> u32 {
    let Some(key) = records::cookie_key() else { return 0 };
    let epoch = (clock::coarse().0.wrapping_add(key.offset()) >> EPOCH_BITS) as u32;
    let addresses = (source as u64) << 32 | destination as u64;
    hash(key.key(), addresses, ports, epoch.wrapping_sub(before)) as u32
}

#[inline(always)]
fn ports(segment: Segment) -> u32 {
    segment.source_port as u32 | (segment.destination_port as u32) << 16
}
