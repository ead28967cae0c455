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
        let mut s = self.state.lock();
        if s.closed {
            return Err(item);
        }
        s.items.push(item);
        if s.waiting {
            s.waiting = false;
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.state.lock().items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
