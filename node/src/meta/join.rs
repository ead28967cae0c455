//! How a node becomes a member, and how a member says its address: over the seeds to the leader of
//! the meta group. Also the other side: what a node answers.
use super::propose;
use super::state::{is_removed, was_removed};
use crate::ids::NodeId;
use crate::partition::apply::MetaOutcome;
use crate::raft::handle::{ProposeError, RaftHandle};
use futures::future::join_all;
use prost::Message as _;
use ringfold_proto::internal::meta_command::Command;
use ringfold_proto::internal::{
    Hello, HelloAnswer, Join, JoinAnswer, MetaCommand, MetaJoin, MetaMember, MetaState,
    NodeAddress, Refusal,
};
use std::sync::Arc;
use std::time::Duration;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Addresses asked in one round.
const ADDRESSES_MAX: usize = 32;

/// Reasons of refused joins.
pub const NODE_REMOVED: &str = "NODE_REMOVED";
pub const JOIN_REFUSED: &str = "JOIN_REFUSED";
pub const NOT_LEADER: &str = "NOT_LEADER";
pub const NO_OUTCOME: &str = "NO_OUTCOME";

/// Requests to peers by address, before their node ids are known.
#[tonic::async_trait]
pub trait ControlClient: Send + Sync {
    async fn hello(&self, address: &str, hello: Hello) -> Result<HelloAnswer, AskError>;
    async fn join(&self, address: &str, join: Join) -> Result<JoinAnswer, AskError>;
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AskError {
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// No answer: it may have happened all the same.
    #[error("{0}")]
    Failed(String),
}

/// Why a node gives up. All else is tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The process must end, and its data directory is of no more use.
    #[error("this node was removed from the cluster: {0}")]
    Removed(String),
    #[error(
        "this node belongs to cluster {ours}, and the seeds are of cluster {theirs}: name this \
         cluster's seeds, or another data_dir"
    )]
    ForeignCluster { ours: String, theirs: String },
}

/// A node that joins, or a member that reports where it is.
#[derive(Debug, Clone, Default)]
pub struct Joining {
    /// Empty: in no cluster yet.
    pub cluster_id: String,
    /// Its token, its node id if it has one, names and addresses.
    pub me: MetaJoin,
}

/// Asks until the meta leader answers; drop the future to stop. `addresses` are peers to ask, read
/// anew for each try: the seeds, and what a member knows of others.
pub async fn join_loop(
    client: &dyn ControlClient,
    joining: &Joining,
    addresses: impl Fn() -> Vec<String>,
) -> Result<JoinAnswer, JoinError> {
    let mut backoff = BACKOFF_MIN;
    let mut said = String::new();
    loop {
        match attempt(client, joining, addresses()).await? {
            Ok(answer) => {
                tracing::info!(node = answer.node_id, cluster = answer.cluster_id, "joined");
                return Ok(answer);
            }
            Err(why) if why != said => {
                tracing::info!(why, "not joined yet, trying again");
                said = why;
            }
            Err(_) => {}
        }
        tokio::time::sleep(backoff.mul_f64(rand::random_range(0.75..1.25))).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// One round: hello to all, then join at whoever is said to lead.
async fn attempt(
    client: &dyn ControlClient,
    joining: &Joining,
    mut addresses: Vec<String>,
) -> Result<Result<JoinAnswer, String>, JoinError> {
    addresses.sort();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    let hello = Hello {
        cluster_id: joining.cluster_id.clone(),
        node_id: joining.me.node_id,
        peer_address: joining.me.peer_address.clone(),
        client_url: joining.me.client_url.clone(),
    };
    let mut why = String::from("no peer's address is known: name seeds");
    let mut answers = Vec::new();
    let asked = addresses.iter().map(|a| within(client.hello(a, hello.clone())));
    for (address, answer) in addresses.iter().zip(join_all(asked).await) {
        match answer {
            Ok(answer) => answers.push((address.clone(), answer)),
            Err(e) => why = format!("{address}: {e}"),
        }
    }
    let leaders = match leaders(&joining.cluster_id, &answers)? {
        Ok(leaders) => leaders,
        Err(reason) => return Ok(Err(if answers.is_empty() { why } else { reason })),
    };
    let meta_join = joining.me.encode_to_vec();
    for address in leaders {
        match within(client.join(&address, Join { meta_join: meta_join.clone().into() })).await {
            Ok(answer) if answer.node_id != 0 && !answer.cluster_id.is_empty() => {
                return Ok(Ok(answer));
            }
            Ok(_) => why = format!("{address}: its answer has no ids"),
            Err(AskError::Refused(r)) if r.reason == NODE_REMOVED => {
                return Err(JoinError::Removed(r.message));
            }
            Err(e) => why = format!("{address}: {e}"),
        }
    }
    Ok(Err(why))
}

async fn within<T>(answer: impl Future<Output = Result<T, AskError>>) -> Result<T, AskError> {
    tokio::time::timeout(ANSWER_TIMEOUT, answer)
        .await
        .unwrap_or_else(|_| Err(AskError::Failed("no answer in time".into())))
}

/// Addresses of whom the answers say that they lead the meta group, without a repeat.
fn leaders(
    ours: &str,
    answers: &[(String, HelloAnswer)],
) -> Result<Result<Vec<String>, String>, JoinError> {
    let in_cluster = || answers.iter().filter(|(_, a)| !a.cluster_id.is_empty());
    let Some((first_address, first)) = in_cluster().next() else {
        return Ok(Err("no seed is in a cluster yet: has it been bootstrapped?".into()));
    };
    if !ours.is_empty() && in_cluster().all(|(_, a)| a.cluster_id != ours) {
        let theirs = first.cluster_id.clone();
        return Err(JoinError::ForeignCluster { ours: ours.into(), theirs });
    }
    if ours.is_empty()
        && let Some((address, a)) = in_cluster().find(|(_, a)| a.cluster_id != first.cluster_id)
    {
        return Ok(Err(format!(
            "the seeds are of different clusters: {first_address} of {}, {address} of {}",
            first.cluster_id, a.cluster_id
        )));
    }
    let mut found = Vec::new();
    for (address, a) in in_cluster().filter(|(_, a)| ours.is_empty() || a.cluster_id == ours) {
        if a.meta_leader_node_id == 0 {
            continue;
        }
        let leader = if a.node_id == a.meta_leader_node_id {
            Some(address)
        } else {
            a.nodes.iter().find(|n| n.node_id == a.meta_leader_node_id).map(|n| &n.peer_address)
        };
        if let Some(leader) = leader.filter(|l| !l.is_empty() && !found.contains(*l)) {
            found.push(leader.clone());
        }
    }
    if found.is_empty() {
        return Ok(Err("no seed knows a leader of the meta group".into()));
    }
    Ok(Ok(found))
}

/// Answers a hello from what this node has applied of the meta group. `leader`: of the meta group.
pub fn answer_hello(state: &MetaState, me: NodeId, leader: Option<NodeId>) -> HelloAnswer {
    HelloAnswer {
        cluster_id: state.cluster_id.clone(),
        node_id: me.0,
        nodes: state
            .members
            .iter()
            .filter(|m| !is_removed(m))
            .map(|m| NodeAddress {
                node_id: m.node_id,
                peer_address: m.peer_address.clone(),
                client_url: m.client_url.clone(),
            })
            .collect(),
        meta_leader_node_id: leader.map_or(0, |n| n.0),
        you_are_removed: false,
    }
}

/// Answers a join: proposes it to the meta group, which this node must lead. `state` is read after
/// the outcome is known.
pub async fn answer_join(
    raft: &RaftHandle,
    state: &tokio::sync::watch::Receiver<Arc<MetaState>>,
    join: Join,
) -> Result<JoinAnswer, Refusal> {
    let refusal = |reason: &str, message: String| Refusal { reason: reason.into(), message };
    let join = MetaJoin::decode(join.meta_join)
        .map_err(|e| refusal(JOIN_REFUSED, format!("the join cannot be read: {e}")))?;
    let (token, node_id) = (join.token.clone(), join.node_id);
    let command = MetaCommand { if_epoch: 0, command: Some(Command::Join(join)) };
    match propose(raft, &command).await {
        Ok(MetaOutcome::Joined { cluster_id, node_id, meta_replica_id }) => {
            Ok(JoinAnswer { cluster_id, node_id, meta_replica_id })
        }
        Ok(MetaOutcome::Refused(message)) => {
            let state = state.borrow();
            let is_it = |m: &&MetaMember| match node_id {
                0 => m.token == token,
                id => m.node_id == id,
            };
            let gone = match state.members.iter().find(is_it) {
                Some(m) => is_removed(m) && m.token == token,
                None => was_removed(&state, node_id),
            };
            Err(refusal(if gone { NODE_REMOVED } else { JOIN_REFUSED }, message))
        }
        Ok(other) => Err(refusal(NO_OUTCOME, format!("a join came to {other:?}"))),
        Err(e @ (ProposeError::NotLeader { .. } | ProposeError::NoReplica)) => {
            Err(refusal(NOT_LEADER, e.to_string()))
        }
        Err(e) => Err(refusal(NO_OUTCOME, e.to_string())),
    }
}

/// Whether the meta group knows this node elsewhere, or otherwise, than it is: then it reports.
pub fn must_report(state: &MetaState, me: &MetaJoin) -> bool {
    state.members.iter().find(|m| m.node_id == me.node_id).is_none_or(|m| {
        (&m.token, &m.name, &m.client_url, &m.peer_address, &m.zone, m.feature_level_max)
            != (
                &me.token,
                &me.name,
                &me.client_url,
                &me.peer_address,
                &me.zone,
                me.feature_level_max,
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::state::apply_command;
    use crate::meta::state::tests::{apply, init_command, join_as};
    use crate::partition::apply::CommandOutcome;
    use crate::raft::handle::Request;
    use parking_lot::Mutex;
    use std::collections::HashMap;
    use tokio::sync::watch;

    fn answer(cluster: &str, node: u64, leader: u64) -> HelloAnswer {
        let state = MetaState {
            cluster_id: cluster.into(),
            members: (1..=3)
                .map(|n| MetaMember {
                    node_id: n,
                    peer_address: format!("n{n}"),
                    ..Default::default()
                })
                .collect(),
            ..MetaState::default()
        };
        answer_hello(&state, NodeId(node), (leader != 0).then_some(NodeId(leader)))
    }

    fn asked(answers: &[(&str, HelloAnswer)]) -> Vec<(String, HelloAnswer)> {
        answers.iter().map(|(a, h)| (a.to_string(), h.clone())).collect()
    }

    #[test]
    fn the_leader_is_found_through_any_member() {
        let found = |answers: &[(&str, HelloAnswer)]| leaders("", &asked(answers)).unwrap();
        let none = HelloAnswer::default();
        assert_eq!(found(&[("n2", answer("c", 2, 3))]), Ok(vec!["n3".into()]));
        // Where the leader itself answered, that address works, whatever the members' list says.
        assert_eq!(found(&[("seed", answer("c", 1, 1))]), Ok(vec!["seed".into()]));
        assert_eq!(
            found(&[("x", none.clone()), ("n1", answer("c", 1, 2)), ("n3", answer("c", 3, 1))]),
            Ok(vec!["n2".into(), "n1".into()])
        );
        assert!(found(&[("n1", answer("c", 1, 0))]).unwrap_err().contains("no seed knows"));
        assert!(found(&[("x", none)]).unwrap_err().contains("bootstrapped"));
    }

    #[test]
    fn clusters_are_never_mixed() {
        let two = asked(&[("a1", answer("a", 1, 1)), ("b1", answer("b", 1, 1))]);
        assert!(leaders("", &two).unwrap().unwrap_err().contains("different clusters"));
        assert_eq!(leaders("b", &two).unwrap(), Ok(vec!["b1".into()]));
        assert_eq!(
            leaders("c", &two),
            Err(JoinError::ForeignCluster { ours: "c".into(), theirs: "a".into() })
        );
    }

    /// Peers by address; an address that is not there does not answer.
    #[derive(Default)]
    struct Net {
        hellos: Mutex<HashMap<String, HelloAnswer>>,
        joins: Mutex<HashMap<String, Result<JoinAnswer, AskError>>>,
        asked: Mutex<Vec<(String, MetaJoin)>>,
    }

    fn nobody() -> AskError {
        AskError::Failed("connection refused".into())
    }

    #[tonic::async_trait]
    impl ControlClient for Net {
        async fn hello(&self, address: &str, _: Hello) -> Result<HelloAnswer, AskError> {
            self.hellos.lock().get(address).cloned().ok_or_else(nobody)
        }
        async fn join(&self, address: &str, join: Join) -> Result<JoinAnswer, AskError> {
            let join = MetaJoin::decode(join.meta_join).unwrap();
            self.asked.lock().push((address.into(), join));
            self.joins.lock().get(address).cloned().unwrap_or_else(|| Err(nobody()))
        }
    }

    fn joining() -> Joining {
        Joining { cluster_id: String::new(), me: join_as("new", 0) }
    }

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_node_joins_once_there_is_a_leader() {
        let net = Arc::new(Net::default());
        let seeds = || vec!["n1".to_owned(), "n2".to_owned(), "down".to_owned()];
        let running = tokio::spawn({
            let net = net.clone();
            async move { join_loop(&*net, &joining(), seeds).await }
        });
        tokio::time::sleep(Duration::from_millis(150)).await;
        net.hellos.lock().insert("n2".into(), answer("c", 2, 0));
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(net.asked.lock().is_empty());
        let ids = JoinAnswer { cluster_id: "c".into(), node_id: 4, meta_replica_id: 9 };
        net.joins.lock().insert("n3".into(), Ok(ids.clone()));
        net.hellos.lock().insert("n2".into(), answer("c", 2, 3));
        let joined = tokio::time::timeout(LIMIT, running).await.unwrap().unwrap();
        assert_eq!(joined, Ok(ids));
        assert_eq!(*net.asked.lock(), [("n3".to_owned(), join_as("new", 0))]);
    }

    #[tokio::test]
    async fn a_removed_node_gives_up() {
        let net = Net::default();
        net.hellos.lock().insert("n1".into(), answer("c", 1, 1));
        let refusal = Refusal { reason: NODE_REMOVED.into(), message: "gone".into() };
        net.joins.lock().insert("n1".into(), Err(AskError::Refused(refusal)));
        let joining = joining();
        let end = join_loop(&net, &joining, || vec!["n1".to_owned()]);
        let end = tokio::time::timeout(LIMIT, end).await.unwrap();
        assert_eq!(end, Err(JoinError::Removed("gone".into())));
    }

    /// A meta group whose leader is this node, or is not.
    fn raft(state: watch::Sender<Arc<MetaState>>, leads: bool) -> RaftHandle {
        RaftHandle {
            replicas: Arc::default(),
            sender: Arc::new(move |request, _| {
                let Request::Propose { commands, reply, .. } = request else { return Ok(()) };
                let answer = if leads {
                    let mut next = (**state.borrow()).clone();
                    let outcomes = commands
                        .into_iter()
                        .map(|c| MetaCommand::decode(c).unwrap())
                        .map(|c| CommandOutcome::Meta(apply_command(&mut next, c).unwrap()))
                        .collect();
                    state.send_replace(Arc::new(next));
                    Ok(outcomes)
                } else {
                    Err(ProposeError::NotLeader { leader: None })
                };
                let _ = reply.send(answer);
                Ok(())
            }),
        }
    }

    #[tokio::test]
    async fn the_leader_answers_joins_and_others_refuse() {
        let (publish, state) = watch::channel(Arc::<MetaState>::default());
        let leader = raft(publish.clone(), true);
        let ask = |join: MetaJoin| Join { meta_join: join.encode_to_vec().into() };
        let early = answer_join(&leader, &state, ask(join_as("new", 0))).await.unwrap_err();
        assert_eq!(early.reason, JOIN_REFUSED);
        publish.send_modify(|s| {
            apply_command(Arc::make_mut(s), init_command(4, 3, 3)).unwrap();
        });
        let ids = JoinAnswer { cluster_id: "c".into(), node_id: 2, meta_replica_id: 2 };
        for _ in 0..2 {
            assert_eq!(answer_join(&leader, &state, ask(join_as("new", 0))).await, Ok(ids.clone()));
        }
        let other = raft(publish.clone(), false);
        let refused = answer_join(&other, &state, ask(join_as("new", 0))).await.unwrap_err();
        assert_eq!(refused.reason, NOT_LEADER);
        publish.send_modify(|s| Arc::make_mut(s).members[1].state = 4);
        let refused = answer_join(&leader, &state, ask(join_as("new", 2))).await.unwrap_err();
        assert_eq!(refused.reason, NODE_REMOVED);
        let garbage = Join { meta_join: bytes::Bytes::from_static(&[0xff]) };
        let refused = answer_join(&leader, &state, garbage).await.unwrap_err();
        assert_eq!(refused.reason, JOIN_REFUSED);
    }

    #[test]
    fn a_member_reports_what_has_changed() {
        let mut state = MetaState::default();
        apply_command(&mut state, init_command(4, 3, 3)).unwrap();
        let mut me = join_as("token-1", 1);
        assert!(!must_report(&state, &me));
        me.peer_address = "elsewhere:1".into();
        assert!(must_report(&state, &me));
        apply(&mut state, Command::Join(me.clone()));
        assert!(!must_report(&state, &me));
        me.node_id = 9;
        assert!(must_report(&state, &me), "not heard of it yet");
    }
}
