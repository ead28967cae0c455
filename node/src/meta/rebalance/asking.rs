//! Asks all nodes side by side, and does not wait long for those that did not answer the last time.
use crate::ids::NodeId;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// An answer that takes longer counts as none.
const ANSWER_MAX: Duration = Duration::from_millis(1_500);
/// How long a node is waited for that did not answer in time before. Its answer is taken by a later
/// round, if it comes.
const SILENT_MAX: Duration = Duration::from_millis(200);
const AT_ONCE: usize = 64;

/// Questions that are under way, at most one to each node.
pub struct Asking<T> {
    under_way: HashMap<NodeId, JoinHandle<Option<T>>>,
    silent: HashSet<NodeId>,
    slots: Arc<Semaphore>,
    answer_max: Duration,
    silent_max: Duration,
}

impl<T> Default for Asking<T> {
    fn default() -> Asking<T> {
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        Asking {
            under_way: HashMap::new(),
            silent: HashSet::new(),
            slots,
            answer_max: ANSWER_MAX,
            silent_max: SILENT_MAX,
        }
    }
}

impl<T: Send + 'static> Asking<T> {
    /// Answers of this round, and late ones of the one before. `ask` gives `None` for a failure.
    pub async fn all<F>(
        &mut self,
        nodes: &BTreeSet<NodeId>,
        ask: impl Fn(NodeId) -> F,
    ) -> Vec<(NodeId, T)>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        self.under_way.retain(|n, task| {
            let stays = nodes.contains(n);
            if !stays {
                task.abort();
            }
            stays
        });
        self.silent.retain(|n| nodes.contains(n));
        let begun = Instant::now();
        for &node in nodes {
            self.under_way.entry(node).or_insert_with(|| {
                let (asked, slots, max) = (ask(node), self.slots.clone(), self.answer_max);
                tokio::spawn(async move {
                    let _slot = slots.acquire().await.ok()?;
                    timeout(max, asked).await.ok().flatten()
                })
            });
        }
        let mut answers = Vec::with_capacity(nodes.len());
        for &node in nodes {
            let Some(task) = self.under_way.get_mut(&node) else { continue };
            let max = if self.silent.contains(&node) { self.silent_max } else { self.answer_max };
            let ended = timeout_at(begun + max, task).await;
            if ended.is_ok() {
                self.under_way.remove(&node);
            }
            match ended {
                Ok(Ok(Some(answer))) => {
                    self.silent.remove(&node);
                    answers.push((node, answer));
                }
                _ => {
                    self.silent.insert(node);
                }
            }
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_node_is_waited_for_once_and_heard_when_it_speaks_again() {
        let nodes = BTreeSet::from([NodeId(1), NodeId(2)]);
        let (speak, speaks) = tokio::sync::watch::channel(false);
        let ask = |node: NodeId| {
            let mut speaks = speaks.clone();
            async move {
                if node == NodeId(2) {
                    speaks.wait_for(|s| *s).await.ok()?;
                }
                Some(node.0)
            }
        };
        let short = Duration::from_millis(20);
        let mut asking = Asking { answer_max: short, ..Asking::default() };
        assert_eq!(asking.all(&nodes, ask).await, [(NodeId(1), 1)]);
        // From now on an answer may take as long as it likes, and is not waited for.
        asking.answer_max = Duration::from_secs(3_600);
        asking.silent_max = short;
        for _ in 0..3 {
            assert_eq!(asking.all(&nodes, ask).await, [(NodeId(1), 1)]);
        }
        speak.send_replace(true);
        let deadline = Instant::now() + Duration::from_secs(60);
        while asking.all(&nodes, ask).await.len() < 2 {
            assert!(Instant::now() < deadline, "node 2 is not heard again");
        }
        assert!(asking.silent.is_empty());
    }

    #[tokio::test]
    async fn a_failure_is_no_answer_and_a_node_that_is_gone_is_forgotten() {
        let nodes = BTreeSet::from([NodeId(1), NodeId(2)]);
        let mut asking = Asking::default();
        let fails = |node: NodeId| async move { (node == NodeId(1)).then_some(()) };
        assert_eq!(asking.all(&nodes, fails).await.len(), 1);
        let one = BTreeSet::from([NodeId(1)]);
        assert_eq!(asking.all(&one, fails).await.len(), 1);
        assert!(asking.silent.is_empty() && asking.under_way.is_empty());
    }
}
