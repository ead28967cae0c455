//! Appends a history: git on one side, a pipelined appender on the other.
use crate::Fault;
use crate::events::{PathEvent, events};
use crate::git::{GitError, Repository};
use crate::log::Item;
use indicatif::ProgressBar;
use ringfold_client::{Client, Expected, NewEvent, Pending};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Events read ahead of those that are sent.
const WAITING_MAX: usize = 4096;
/// Answers waited for; the appender bounds what is in flight within that.
const PENDING_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, Default)]
pub struct Loaded {
    pub commits: u64,
    pub events: u64,
    pub took: Duration,
}

enum Step {
    Commit,
    Event(PathEvent),
}

/// Loads the first-parent history. Each event is an append of its own, so that a history that has
/// grown since it was loaded is answered with what is stored, event by event.
pub async fn load(
    client: &Client,
    repository: &Repository,
    bar: &ProgressBar,
) -> Result<Loaded, Fault> {
    let (send, mut steps) = mpsc::channel(WAITING_MAX);
    let reader = {
        let repository = repository.clone();
        tokio::task::spawn_blocking(move || read(&repository, &send))
    };
    let started = Instant::now();
    let appender = client.appender();
    let mut loaded = Loaded::default();
    let mut pending: VecDeque<(String, Pending)> = VecDeque::new();
    while let Some(step) = steps.recv().await {
        match step {
            Step::Commit => {
                loaded.commits += 1;
                bar.inc(1);
            }
            Step::Event(event) => {
                if pending.len() == PENDING_MAX {
                    answered(pending.pop_front()).await?;
                }
                let new = NewEvent::json(event.event_type, &event.data)?.id(event.id);
                let sent = appender.push(&event.stream, vec![new], Expected::Any).await;
                pending.push_back((event.stream, sent));
                loaded.events += 1;
                if loaded.events.is_multiple_of(256) {
                    let per_s = loaded.events as f64 / started.elapsed().as_secs_f64();
                    bar.set_message(format!("{} events, {per_s:.0}/s", loaded.events));
                }
            }
        }
    }
    while !pending.is_empty() {
        answered(pending.pop_front()).await?;
    }
    reader.await.map_err(|e| Fault::Reader(e.to_string()))??;
    loaded.took = started.elapsed();
    Ok(loaded)
}

async fn answered(pending: Option<(String, Pending)>) -> Result<(), Fault> {
    if let Some((stream, pending)) = pending {
        pending.await.map_err(|e| Fault::append(&stream, e))?;
    }
    Ok(())
}

fn read(repository: &Repository, send: &mpsc::Sender<Step>) -> Result<(), GitError> {
    let mut commit = None;
    repository.history(|item| match item {
        Item::Commit(c) => {
            commit = Some(c);
            send.blocking_send(Step::Commit).is_ok()
        }
        Item::Change(change) => {
            let Some(commit) = &commit else { return true };
            // False: the other side has stopped, and knows why.
            (events(commit, &change).into_iter())
                .all(|event| send.blocking_send(Step::Event(event)).is_ok())
        }
    })
}
