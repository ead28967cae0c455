//! Threads for reads that may wait for a disk: RocksDB is never called on an async thread, but
//! for reads of its cache.
use super::errors::ApiError;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// Reads that may wait; one more is refused.
const WAITING_MAX: usize = 4_096;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// Its threads end when it is dropped.
pub struct ReadPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadPool {
    pub fn new(threads: usize) -> std::io::Result<ReadPool> {
        let shared = Arc::new(Shared::default());
        let threads = (0..threads.max(1))
            .map(|i| {
                let shared = shared.clone();
                std::thread::Builder::new().name(format!("read-{i}")).spawn(move || work(&shared))
            })
            .collect::<Result<_, _>>()?;
        Ok(ReadPool { shared, threads })
    }

    /// Runs a read on one of the threads. Dropped before it began, it never runs.
    ///
    /// `OVERLOADED` when too many wait, `INTERNAL` when it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            if !reply.is_closed() {
                let _ = reply.send(crate::panics::catch(read));
            }
        });
        {
            let mut queue = self.shared.queue.lock();
            if queue.jobs.len() >= WAITING_MAX {
                return Err(ApiError::Overloaded("too many reads wait for the disk"));
            }
            queue.jobs.push_back(job);
        }
        self.shared.wake.notify_one();
        match answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(ApiError::internal("a read panicked")),
            Err(_) => Err(ApiError::NodeStopping),
        }
    }
}

fn work(shared: &Shared) {
    loop {
        let job = {
            let mut queue = shared.queue.lock();
            loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                if queue.closed {
                    return;
                }
                shared.wake.wait(&mut queue);
            }
        };
        job();
    }
}

impl Drop for ReadPool {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.queue.lock();
            queue.closed = true;
            queue.jobs.clear();
        }
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // The last owner may be a job: a thread does not wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::errors::Reason;
    use std::sync::mpsc;

    #[tokio::test]
    async fn reads_run_beside_the_runtime_and_a_panic_ends_one_alone() {
        let pool = ReadPool::new(2).unwrap();
        let here = std::thread::current().id();
        assert!(pool.run(move || std::thread::current().id() != here).await.unwrap());
        let failed = pool.run(|| -> u32 { panic!("planted") }).await.unwrap_err();
        assert_eq!(failed.reason(), Some(Reason::Internal));
        assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn beyond_its_bound_the_pool_refuses_and_what_was_given_up_never_runs() {
        let pool = Arc::new(ReadPool::new(1).unwrap());
        let (hold, held) = mpsc::channel::<()>();
        let (started, start) = mpsc::channel::<()>();
        let blocked = {
            let pool = pool.clone();
            tokio::spawn(async move {
                pool.run(move || {
                    started.send(()).unwrap();
                    held.recv().unwrap();
                })
                .await
            })
        };
        while start.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
        let mut waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| Box::pin(pool.run(|| panic!("was given up and must not run"))))
            .collect();
        for w in &mut waiting {
            assert!(futures::poll!(w).is_pending());
        }
        let refused = pool.run(|| ()).await.unwrap_err();
        assert_eq!(refused.reason(), Some(Reason::Overloaded));
        drop(waiting);
        hold.send(()).unwrap();
        blocked.await.unwrap().unwrap();
        // What was given up is still to be passed over.
        let answer = loop {
            match pool.run(|| 1).await {
                Err(e) if e.reason() == Some(Reason::Overloaded) => tokio::task::yield_now().await,
                answer => break answer,
            }
        };
        assert_eq!(answer.unwrap(), 1);
    }
}
