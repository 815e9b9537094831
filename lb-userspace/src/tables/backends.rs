//! The backends: what the controller decides about them, and what it reads of their counters.

use std::{mem::offset_of, sync::atomic::Ordering, time::Duration};

use lb_common::{
    layout::{
        BACKUP, Backend, CONNECT_TIME_BUCKETS, ConnectTimes, Failures, MAX_SERVICES, MAX_SNAT, NONE, Service, SlowStart,
    },
    time::{Instant, nanoseconds},
};

use super::{Tables, word_of};

/// How a backend is used: the controller's part of a record of BACKENDS, without its health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendRow {
    /// Its service, a row of SERVICES.
    pub service: u16,
    /// The pools of its new connections, one per SNAT address of the service: at least one, at most
    /// [`MAX_SNAT`](lb_common::layout::MAX_SNAT). Earlier connections may be in others, see
    /// [`pools_of`](super::Installed::pools_of).
    pub pools: Vec<u16>,
    /// Its share of new connections; at least 1.
    pub weight: u32,
    /// The most active connections; 0: unlimited.
    pub max_conns: u32,
    /// Used only when no other backend is up.
    pub backup: bool,
    /// How many failed tries within `retry_after` take it out; 0: no number does.
    pub max_fails: u32,
    /// Within how long they have to come, and how long they, or a failed trial, keep it out:
    /// `fail_timeout`.
    pub retry_after: Duration,
    /// How long it gets less than its share after it has come back, in milliseconds.
    pub slow_start_ms: u32,
    /// Gets no connections, however healthy: `down`, or a tombstone. Its admission is `NONE`.
    pub closed: bool,
}

impl Tables {
    /// Clears a backend's record, for the next owner of the row. No connection may be open to it.
    pub fn reset_backend(&self, number: u16) {
        self.fixed.backends.publish(number.into(), &Backend::default(), offset_of!(Backend, admission));
        self.fixed.connect_times.publish(number.into(), &[0; CONNECT_TIME_BUCKETS], 0);
        self.fixed.slow_starts.publish(number.into(), &SlowStart::default(), 0);
        self.fixed.failures.publish(number.into(), &Failures::default(), 0);
    }

    /// Writes the controller's part of a backend; its counters are left alone. Its admission
    /// becomes `NONE` if the row is closed, and otherwise stays as it is.
    pub fn configure_backend(&self, number: u16, row: &BackendRow) {
        let index = usize::from(number);
        let store =
            |offset: usize, value: u32| self.fixed.backends.word32(index, offset).store(value, Ordering::Relaxed);
        store(offset_of!(Backend, weight), row.weight.max(1));
        store(offset_of!(Backend, max_conns), row.max_conns);
        store(offset_of!(Backend, flags), if row.backup { BACKUP } else { 0 });
        let retry_after = self.fixed.backends.word64(index, offset_of!(Backend, retry_after));
        retry_after.store(nanoseconds(row.retry_after), Ordering::Relaxed);
        self.fixed.slow_starts.word32(index, offset_of!(SlowStart, ms)).store(row.slow_start_ms, Ordering::Release);
        let max_fails = self.fixed.failures.word32(index, offset_of!(Failures, max_fails));
        max_fails.store(row.max_fails, Ordering::Release);
        let mut pools = [0; MAX_SNAT as usize];
        let count = row.pools.len().min(pools.len());
        pools[..count].copy_from_slice(&row.pools[..count]);
        for (pair, two) in pools.chunks_exact(2).enumerate() {
            store(offset_of!(Backend, pools) + pair * 4, word_of(two[0], two[1]));
        }
        let word = self.fixed.backends.word32(index, offset_of!(Backend, service));
        word.store(word_of(row.service, count as u16), Ordering::Release);
        if row.closed {
            self.admit(number, NONE, Instant::NEVER);
        }
    }

    /// The controller's part of a backend; `None` if the row is not in use. A record carries no
    /// separate mark: it is in use if it names a pool.
    pub fn backend_row(&self, number: u16) -> Option<BackendRow> {
        let record = self.backend(number);
        let pools = record.pools.get(..usize::from(record.pool_count))?;
        (!pools.is_empty()).then(|| BackendRow {
            service: record.service,
            pools: pools.to_vec(),
            weight: record.weight,
            max_conns: record.max_conns,
            backup: record.flags & BACKUP != 0,
            max_fails: self.fixed.failures.read(number.into()).max_fails,
            retry_after: Duration::from_nanos(record.retry_after),
            slow_start_ms: self.slow_start(number).ms,
            closed: record.admission == NONE,
        })
    }

    /// Decides what a backend may be given: `NONE`, `OUT` (a trial connection from `retry_at` on)
    /// or `UP`.
    pub fn admit(&self, backend: u16, admission: u32, retry_at: Instant) {
        let index = usize::from(backend);
        self.forget_failures(backend);
        self.fixed.backends.word64(index, offset_of!(Backend, retry_at)).store(retry_at.0, Ordering::Release);
        self.fixed.backends.word32(index, offset_of!(Backend, admission)).store(admission, Ordering::Release);
    }

    /// [`admit`](Self::admit), unless the kernel program has changed the admission in the meantime
    /// (a trial succeeded, a try too many failed). Until `slow_until` the backend gets less than its share.
    pub fn swap_admission(&self, backend: u16, (from, to): (u32, u32), retry_at: Instant, slow_until: Instant) -> bool {
        let index = usize::from(backend);
        let word = self.fixed.backends.word32(index, offset_of!(Backend, admission));
        if word.load(Ordering::Acquire) != from {
            return false;
        }
        self.start_slowly(backend, slow_until);
        if from != to {
            self.forget_failures(backend);
        }
        self.fixed.backends.word64(index, offset_of!(Backend, retry_at)).store(retry_at.0, Ordering::Release);
        word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Records why a backend is out, and when its state changed last. The kernel program writes the
    /// same when it takes a backend out, and reads neither.
    pub fn remember_standing(&self, backend: u16, out_reason: u32, changed_at: Instant) {
        let index = usize::from(backend);
        self.fixed.backends.word32(index, offset_of!(Backend, out_reason)).store(out_reason, Ordering::Relaxed);
        self.fixed.backends.word64(index, offset_of!(Backend, changed_at)).store(changed_at.0, Ordering::Relaxed);
    }

    /// A backend that goes out or comes back has a clean record.
    fn forget_failures(&self, backend: u16) {
        self.fixed.failures.word64(backend.into(), offset_of!(Failures, window)).store(0, Ordering::Release);
    }

    fn start_slowly(&self, backend: u16, until: Instant) {
        let service = self.backend(backend).service;
        self.fixed.slow_starts.word64(backend.into(), offset_of!(SlowStart, until)).store(until.0, Ordering::Release);
        if u32::from(service) < MAX_SERVICES {
            let latest = self.fixed.services.word64(service.into(), offset_of!(Service, slow_until));
            latest.fetch_max(until.0, Ordering::AcqRel);
        }
    }

    /// How many connections are open to a backend.
    pub fn active(&self, backend: u16) -> u32 {
        // If it is read between two changes, it may be one below zero for an instant.
        self.backend(backend).active.cast_signed().max(0).cast_unsigned()
    }

    /// A copy of a backend's record.
    pub fn backend(&self, number: u16) -> Backend {
        self.fixed.backends.read(number.into())
    }

    /// Corrects the count of active connections: by the drift that a full count has shown, or for a
    /// flow of the other host.
    pub fn correct_active(&self, backend: u16, by: i32) {
        if usize::from(backend) >= self.fixed.backends.len() {
            return;
        }
        let active = self.fixed.backends.word32(backend.into(), offset_of!(Backend, active));
        active.fetch_add(by as u32, Ordering::AcqRel);
    }

    /// Until when a backend gets less than its share, and how long that takes.
    pub fn slow_start(&self, backend: u16) -> SlowStart {
        self.fixed.slow_starts.read(backend.into())
    }

    /// The histogram of the connect times of a backend.
    pub fn connect_times(&self, backend: u16) -> ConnectTimes {
        self.fixed.connect_times.read(backend.into())
    }
}
