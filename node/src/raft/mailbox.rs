//! MPSC mailbox whose consumer takes everything that waits in one swap. What goes in is bounded by
//! the senders (bytes in flight, frames per peer, one notice per task).
use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

pub struct Mailbox<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
}

struct State<T> {
    items: Vec<T>,
    waiting: bool,
    closed: bool,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        let state = State { items: Vec::new(), waiting: false, closed: false };
        Mailbox { state: Mutex::new(state), wake: Condvar::new() }
    }
}

impl<T> Mailbox<T> {
    /// Gives the item back once the mailbox is closed.
    pub fn push(&self, item: T) -> Result<(), T> {
        self.push_within(item, usize::MAX, || false)
    }

    /// Gives the item back also while `items_max` wait. Where `can_wait` says that something else will
    /// wake the consumer soon, this does not. It is asked only while the consumer waits, so it sees
    /// all that the consumer did before.
    pub fn push_within(
        &self,
        item: T,
        items_max: usize,
        can_wait: impl FnOnce() -> bool,
    ) -> Result<(), T> {
        let mut s = self.state.lock();
        if s.closed || s.items.len() >= items_max {
            return Err(item);
        }
        s.items.push(item);
        let wakes = s.waiting && !can_wait();
        if wakes {
            s.waiting = false;
        }
        drop(s);
        if wakes {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Swaps all waiting items into `out` (empty); returns at `deadline` at the latest. False once
    /// the mailbox is closed and empty.
    pub fn receive(&self, out: &mut Vec<T>, deadline: Option<Instant>) -> bool {
        let mut s = self.state.lock();
        loop {
            if !s.items.is_empty() {
                std::mem::swap(&mut s.items, out);
                return true;
            }
            if s.closed {
                return false;
            }
            let wait = match deadline {
                None => Duration::from_secs(3600),
                Some(d) => d.saturating_duration_since(Instant::now()),
            };
            if wait.is_zero() {
                return true;
            }
            s.waiting = true;
            self.wake.wait_for(&mut s, wait);
            s.waiting = false;
        }
    }

    /// No more items; what waits is still received.
    pub fn close(&self) {
        let mut s = self.state.lock();
        s.closed = true;
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn no_more_goes_in_than_is_allowed_and_nothing_once_it_is_closed() {
        let mailbox = Mailbox::default();
        assert_eq!(mailbox.push_within(1, 2, || false), Ok(()));
        assert_eq!(mailbox.push_within(2, 2, || true), Ok(()));
        assert_eq!(mailbox.push_within(3, 2, || false), Err(3));
        assert_eq!(mailbox.push(3), Ok(()));
        mailbox.close();
        assert_eq!(mailbox.push(4), Err(4));
        let mut out = Vec::new();
        assert!(mailbox.receive(&mut out, None));
        assert_eq!(out, [1, 2, 3]);
        assert!(!mailbox.receive(&mut Vec::new(), None));
    }

    #[test]
    fn an_item_that_something_else_will_call_for_waits_for_that() {
        let mailbox: Arc<Mailbox<u32>> = Arc::default();
        let consumer = {
            let mailbox = mailbox.clone();
            std::thread::spawn(move || {
                let mut out = Vec::new();
                mailbox.receive(&mut out, None);
                out
            })
        };
        while !mailbox.state.lock().waiting {
            std::thread::yield_now();
        }
        mailbox.push_within(1, 9, || true).unwrap();
        assert!(mailbox.state.lock().waiting, "the consumer was woken");
        mailbox.push(2).unwrap();
        assert_eq!(consumer.join().unwrap(), [1, 2]);
    }
}
