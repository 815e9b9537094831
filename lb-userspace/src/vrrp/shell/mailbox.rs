//! Queues between the thread that must not be late and those that may wait. The lock is only held
//! while pointers are moved, but its holder may be an ordinary thread that does not get the CPU. So
//! the real-time side never waits for the lock; if it is taken, it tries again a little later.

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
    /// An empty queue for up to `room` items.
    pub fn new(room: usize) -> io::Result<Mailbox<T>> {
        Ok(Mailbox { items: Mutex::new(VecDeque::with_capacity(room)), bell: Bell::new()?, room })
    }

    /// Appends an item, waiting for the lock if necessary. Returns `false` if the queue is full.
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

    /// Takes all items, waiting for the lock if necessary.
    pub fn take(&self) -> Vec<T> {
        // Hushed first: an item that arrives after this rings again.
        self.bell.hush();
        self.items.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// Wakes the receiver without an item.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// Appends items until the queue is full, without waiting. Returns `false` if any are left: try
    /// again.
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

    /// Takes all items without waiting. `None`: the lock is taken, try again.
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
    fn an_item_rings_items_come_out_in_order_and_no_more_fit_than_there_is_room_for() {
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
    fn while_the_lock_is_taken_the_side_that_must_not_wait_does_not() {
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
