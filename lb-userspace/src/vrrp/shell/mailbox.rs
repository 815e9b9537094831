//! Queues between the thread that must not be late and those that may wait. The lock is held for moves of pointers only,
//! but its holder may be an ordinary thread that does not get the CPU: so the real-time side never waits for it, and
//! comes again a little later when it is taken.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
};

use crate::sys::wake::Bell;

/// A bounded queue with a bell.
pub struct Mailbox<T> {
    items: Mutex<VecDeque<T>>,
    bell: Bell,
    room: usize,
}

impl<T> Mailbox<T> {
    /// An empty one with room for so many.
    pub fn new(room: usize) -> io::Result<Mailbox<T>> {
        Ok(Mailbox { items: Mutex::new(VecDeque::with_capacity(room)), bell: Bell::new()?, room })
    }

    /// Puts something in, waiting for the lock if it has to; `false`: it is full.
    pub fn post(&self, item: T) -> bool {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = items.len() < self.room;
        if fits {
            items.push_back(item);
        }
        drop(items);
        self.bell.ring();
        fits
    }

    /// Takes everything out, waiting for the lock if it has to.
    pub fn take(&self) -> Vec<T> {
        // Hushed first: what is put in after that rings again.
        self.bell.hush();
        self.items.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// Wakes whoever waits, with nothing to take.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// As [`post`](Self::post), for as many as there are; without waiting. `false`: come again.
    pub fn try_post(&self, from: &mut VecDeque<T>) -> bool {
        if from.is_empty() {
            return true;
        }
        let Some(mut items) = self.try_lock() else { return false };
        while items.len() < self.room
            && let Some(item) = from.pop_front()
        {
            items.push_back(item);
        }
        drop(items);
        self.bell.ring();
        from.is_empty()
    }

    /// As [`take`](Self::take), without waiting. Nothing: come again.
    pub fn try_take(&self) -> Option<Vec<T>> {
        self.bell.hush();
        Some(self.try_lock()?.drain(..).collect())
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, VecDeque<T>>> {
        match self.items.try_lock() {
            Ok(items) => Some(items),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::wake;

    fn rings(mailbox: &Mailbox<u32>) -> bool {
        wake::wait(&[mailbox.as_fd()], Some(Duration::ZERO)).unwrap()[0]
    }

    #[test]
    fn what_is_put_in_rings_and_comes_out_in_order_and_no_more_than_there_is_room_for() {
        let mailbox = Mailbox::new(3).unwrap();
        assert!(!rings(&mailbox));
        assert_eq!([1, 2, 3, 4].map(|item| mailbox.post(item)), [true, true, true, false]);
        assert!(rings(&mailbox));
        assert_eq!(mailbox.take(), [1, 2, 3]);
        assert!(!rings(&mailbox));
        let mut more = VecDeque::from([5, 6, 7, 8]);
        assert!(!mailbox.try_post(&mut more));
        assert_eq!((mailbox.try_take(), more), (Some(vec![5, 6, 7]), [8].into()));
    }

    #[test]
    fn while_another_holds_the_lock_nobody_waits_who_must_not() {
        let mailbox = Mailbox::new(3).unwrap();
        let held = mailbox.items.lock().unwrap();
        assert_eq!(mailbox.try_take(), None);
        let mut items = VecDeque::from([1]);
        assert!(!mailbox.try_post(&mut items));
        drop(held);
        assert!(mailbox.try_post(&mut items));
        assert_eq!(mailbox.try_take(), Some(vec![1]));
    }
}
