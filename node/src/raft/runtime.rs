//! The threads around the driver: one that steps it, one that writes and syncs the log, some that
//! apply, one that flushes databases and gives log space back.
use crate::clock;
use crate::failpoint;
use crate::ids::{GroupId, NodeId};
use crate::panics;
use crate::raft::apply::{Applier, ApplyNotice, ApplyTask, Reopen};
use crate::raft::driver::{
    Channel, Counters, Driver, DriverSettings, Input, NewGroup, Now, PeerMessage, PersistedItem,
    Write,
};
use crate::raft::handle::{RaftHandle, ReplicaView, Replicas, Request, Role};
use crate::raft::log::{LogBatch, LogError, LogOp, RaftLog};
use crate::raft::mailbox::Mailbox;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Sends messages to peers; never waits, may drop.
pub type SendMessages = Arc<dyn Fn(Vec<(NodeId, Channel, PeerMessage)>) + Send + Sync>;
/// Told of a replica that is behind the kept log: (group, replica, its node).
pub type CheckpointWanted = Arc<dyn Fn(GroupId, crate::ids::ReplicaId, NodeId) + Send + Sync>;
/// Called after each synced batch with its number.
pub type Synced = Box<dyn Fn(u64) -> Result<(), LogError> + Send>;
/// Called when the log cannot be written: nothing may go on from memory that was not synced.
pub type Fatal = Arc<dyn Fn(&LogError) + Send + Sync>;

/// What the runtime is made of.
pub struct Parts {
    pub settings: DriverSettings,
    pub log: Arc<dyn RaftLog>,
    pub replicas: Arc<Replicas>,
    pub send: SendMessages,
    pub checkpoint_wanted: CheckpointWanted,
    pub synced: Synced,
    pub fatal: Fatal,
    pub reopen: Reopen,
    pub apply_threads: usize,
    pub flush: FlushSettings,
}

/// When a database is flushed, so that no idle partition pins the log.
#[derive(Debug, Clone, Copy)]
pub struct FlushSettings {
    /// Unflushed bytes of one partition beyond which it is flushed.
    pub bytes: u64,
    /// Age of its oldest unflushed write beyond which it is flushed.
    pub age_ms: u64,
}

impl Default for FlushSettings {
    fn default() -> Self {
        FlushSettings { bytes: 16 << 20, age_ms: 60_000 }
    }
}

/// The running threads. Dropping it does not stop them: call `stop`.
pub struct RaftRuntime {
    pub handle: RaftHandle,
    pub counters: Arc<Counters>,
    inputs: Arc<Mailbox<Input>>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

fn panicked(thread: &str) -> LogError {
    LogError::Io {
        path: format!("thread {thread}"),
        action: "continued",
        reason: "it panicked (see above)".into(),
    }
}

fn now() -> Now {
    Now { boot_ns: clock::boottime_ns(), wall_ms: clock::wall_ms() }
}

/// Requests and inputs that may wait at once; beyond it callers hear that the node is busy.
const INPUTS_MAX: usize = 262_144;

impl RaftRuntime {
    /// Starts the threads with the groups found at start.
    pub fn start(parts: Parts, groups: Vec<NewGroup>) -> std::io::Result<RaftRuntime> {
        let inputs: Arc<Mailbox<Input>> = Arc::default();
        let stopping = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        // Without one of its threads a node would go on half alive: no panic stays in its thread.
        // raft-engine panics where a sync fails, so a panic of the log thread is the log's failure.
        let fatal = parts.fatal.clone();
        let mut spawn = |name: &str, f: Box<dyn FnOnce() + Send>| -> std::io::Result<()> {
            let (fatal, thread) = (fatal.clone(), name.to_owned());
            let supervised = move || {
                let ended = match &*thread {
                    "log" => panics::catch(f),
                    _ => catch_unwind(AssertUnwindSafe(f)),
                };
                if ended.is_err() {
                    fatal(&panicked(&thread));
                }
            };
            threads.push(std::thread::Builder::new().name(name.into()).spawn(supervised)?);
            Ok(())
        };
        let mut appliers: Vec<Arc<Mailbox<ApplyTask>>> = Vec::new();
        for i in 0..parts.apply_threads.max(1) {
            let tasks: Arc<Mailbox<ApplyTask>> = Arc::default();
            appliers.push(tasks.clone());
            let (inputs, reopen) = (inputs.clone(), parts.reopen.clone());
            spawn(&format!("apply-{i}"), Box::new(move || apply_loop(&tasks, &inputs, reopen)))?;
        }
        let writes: Arc<Mailbox<Write>> = Arc::default();
        {
            let (writes, inputs, log, send) =
                (writes.clone(), inputs.clone(), parts.log.clone(), parts.send.clone());
            let (synced, fatal) = (parts.synced, parts.fatal.clone());
            spawn(
                "log",
                Box::new(move || log_loop(&writes, &inputs, &*log, &send, &synced, &fatal)),
            )?;
        }
        let mut driver = Driver::new(parts.settings, parts.log.clone(), now());
        let counters = driver.counters.clone();
        for g in groups {
            let _ = inputs.push(Input::Create(Box::new(g)));
        }
        {
            let inputs = inputs.clone();
            let (send, wanted) = (parts.send.clone(), parts.checkpoint_wanted);
            spawn(
                "driver",
                Box::new(move || {
                    drive(&mut driver, &inputs, &writes, &appliers, &send, &wanted);
                    writes.close();
                    for a in &appliers {
                        a.close();
                    }
                }),
            )?;
        }
        {
            let (replicas, inputs, log, stopping) =
                (parts.replicas.clone(), inputs.clone(), parts.log, stopping.clone());
            let flush = parts.flush;
            spawn(
                "flush",
                Box::new(move || flush_loop(&replicas, &inputs, &*log, flush, &stopping)),
            )?;
        }
        let sender = {
            let inputs = inputs.clone();
            Arc::new(move |request: Request, view: Option<&ReplicaView>| {
                let is_read = matches!(request, Request::ReadIndex { .. });
                let can_wait = || {
                    view.is_some_and(|v| match is_read {
                        true => v.read_in_flight.load(Ordering::Acquire),
                        false => v.entry_in_flight.load(Ordering::Acquire),
                    })
                };
                match inputs.push_within(Input::Request(request), INPUTS_MAX, can_wait) {
                    Err(Input::Request(request)) => Err(request),
                    _ => Ok(()),
                }
            })
        };
        let handle = RaftHandle { replicas: parts.replicas, sender };
        Ok(RaftRuntime { handle, counters, inputs, stopping, threads })
    }

    /// Gives an input to the driver; dropped once it stops.
    pub fn input(&self, input: Input) {
        let _ = self.inputs.push(input);
    }

    /// A cheap way to give inputs from elsewhere.
    pub fn sender(&self) -> Arc<dyn Fn(Input) + Send + Sync> {
        let inputs = self.inputs.clone();
        Arc::new(move |input| {
            let _ = inputs.push(input);
        })
    }

    /// Stops after the round that runs: what waits is answered as unknown. Everything
    /// acknowledged is in the synced log.
    pub fn stop(mut self) {
        self.stopping.store(true, Ordering::Release);
        self.inputs.close();
        for t in self.threads.drain(..) {
            t.thread().unpark();
            if t.join().is_err() {
                tracing::error!("a thread of replication panicked");
            }
        }
    }
}

fn drive(
    driver: &mut Driver,
    inputs: &Mailbox<Input>,
    writes: &Mailbox<Write>,
    appliers: &[Arc<Mailbox<ApplyTask>>],
    send: &SendMessages,
    wanted: &CheckpointWanted,
) {
    let mut inbox = Vec::new();
    loop {
        let wait_ns = driver.next_tick_ns().saturating_sub(clock::boottime_ns());
        let deadline = Instant::now() + Duration::from_nanos(wait_ns);
        if !inputs.receive(&mut inbox, Some(deadline)) {
            return;
        }
        let round = driver.step(now(), &mut inbox);
        if !round.messages.is_empty() {
            send(round.messages);
        }
        if !round.write.is_empty() {
            let _ = writes.push(round.write);
        }
        for task in round.apply {
            let at = task.group().0 as usize % appliers.len();
            let _ = appliers[at].push(task);
        }
        for (group, replica, node) in round.checkpoints_wanted {
            wanted(group, replica, node);
        }
    }
}

/// All rounds that wait become one batch with one sync.
fn log_loop(
    writes: &Mailbox<Write>,
    inputs: &Mailbox<Input>,
    log: &dyn RaftLog,
    send: &SendMessages,
    synced: &Synced,
    fatal: &Fatal,
) {
    let mut inbox: Vec<Write> = Vec::new();
    let mut number = log.last_number();
    while writes.receive(&mut inbox, None) {
        let mut batch = LogBatch::default();
        let mut persisted: Vec<PersistedItem> = Vec::new();
        let mut messages = Vec::new();
        for w in inbox.drain(..) {
            batch.ops.extend(w.ops);
            persisted.extend(w.persisted);
            messages.extend(w.messages);
        }
        if !batch.ops.is_empty() {
            number += 1;
            let points = record_points(&batch.ops);
            for (group, (before, _)) in &points {
                failpoint::hit(before, *group);
            }
            // raft-engine panics where a sync fails: that ends the process as well.
            if let Err(e) = log.write(number, batch).and_then(|()| synced(number)) {
                return fatal(&e);
            }
            for (group, (_, after)) in &points {
                failpoint::hit(after, *group);
            }
        }
        // The driver hears of it before any peer can answer: raft asserts that a candidate whose
        // votes come in has persisted its log.
        if !persisted.is_empty() {
            let _ = inputs.push(Input::Persisted(persisted));
        }
        if !messages.is_empty() {
            send(messages);
        }
    }
}

/// Failpoints before and after the sync of records that moves live by.
fn record_points(ops: &[LogOp]) -> Vec<(GroupId, (&'static str, &'static str))> {
    let mut points = Vec::new();
    for (i, op) in ops.iter().enumerate().filter(|_| failpoint::EXISTS) {
        let LogOp::Record(r) = op else { continue };
        let clears = |op: &LogOp| matches!(op, LogOp::Clear { replica } if *replica == r.replica);
        let compacts =
            |op: &LogOp| matches!(op, LogOp::Compact { replica, .. } if *replica == r.replica);
        points.push((
            r.group,
            if r.destroyed {
                ("destroy-unsynced", "destroy-synced")
            } else if i.checked_sub(1).and_then(|i| ops.get(i)).is_some_and(clears) {
                ("install-unsynced", "install-synced")
            } else if ops.get(i + 1).is_some_and(compacts) {
                continue;
            } else if r.membership_index == 0 {
                ("create-unsynced", "create-synced")
            } else {
                ("membership-unsynced", "membership-synced")
            },
        ));
    }
    points
}

fn apply_loop(tasks: &Mailbox<ApplyTask>, inputs: &Mailbox<Input>, reopen: Reopen) {
    let mut applier = Applier::new(reopen);
    let mut inbox = Vec::new();
    while tasks.receive(&mut inbox, None) {
        let mut notices = Vec::new();
        for task in inbox.drain(..) {
            let (group, replica) = (task.group(), task.replica());
            // A panic closes the group that it was in, and no other.
            let run = panics::catch(|| applier.run(task));
            notices.extend(run.unwrap_or_else(|_| {
                let reason = "apply panicked (see the log above)".into();
                Some(ApplyNotice::Failed { group, replica, reason })
            }));
        }
        if !notices.is_empty() {
            let _ = inputs.push(Input::Notices(notices));
        }
    }
}

/// Flushes databases by bytes and age, so that the log can be compacted behind them.
fn flush_loop(
    replicas: &Replicas,
    inputs: &Mailbox<Input>,
    log: &dyn RaftLog,
    settings: FlushSettings,
    stopping: &AtomicBool,
) {
    let mut since: HashMap<GroupId, Instant> = HashMap::new();
    let mut purged = Instant::now();
    while !stopping.load(Ordering::Acquire) {
        std::thread::park_timeout(Duration::from_millis(500));
        let views: Vec<_> = replicas.read().values().cloned().collect();
        for view in views {
            if stopping.load(Ordering::Acquire) {
                return;
            }
            let bytes = view.unflushed_bytes.load(Ordering::Relaxed);
            if bytes == 0 || view.status.read().role == Role::Closed {
                since.remove(&view.group);
                continue;
            }
            let first = *since.entry(view.group).or_insert_with(Instant::now);
            // So that small data moves by checkpoints too, and not by the log alone.
            let is_early = failpoint::hit("flush-early", view.group);
            if !is_early
                && bytes < settings.bytes
                && first.elapsed() < Duration::from_millis(settings.age_ms)
            {
                continue;
            }
            since.remove(&view.group);
            match view.reader.flush() {
                Ok(index) => {
                    let left = view.reader.unflushed_bytes();
                    view.unflushed_bytes.store(left, Ordering::Relaxed);
                    let flushed =
                        Input::Flushed { group: view.group, replica: view.replica, index };
                    let _ = inputs.push(flushed);
                }
                Err(e) => {
                    let reason = format!("flush failed: {e}");
                    let notice = ApplyNotice::Failed {
                        group: view.group,
                        replica: view.replica,
                        reason: reason.into(),
                    };
                    let _ = inputs.push(Input::Notices(vec![notice]));
                }
            }
        }
        if purged.elapsed() > Duration::from_secs(10) {
            purged = Instant::now();
            if let Err(e) = log.purge() {
                tracing::error!(error = %e, "the log gives no space back");
            }
        }
    }
}
