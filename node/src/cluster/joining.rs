//! How this node becomes a member: bootstrap, join, and greeting the others.
use super::Cluster;
use crate::api::errors::ApiError;
use crate::identity;
use crate::meta::controller;
use crate::meta::join::{self, JoinError, Joining, join_loop};
use crate::meta::state::was_removed;
use ringfold_proto::internal::{Hello, Identity, JoinAnswer, MetaGenesis};
use ringfold_proto::v1;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// A bootstrap must be applied within this time; said again it goes on.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(20);
const GREET_EVERY: Duration = Duration::from_secs(1);
const GREET_TIMEOUT: Duration = Duration::from_secs(1);

impl Cluster {
    fn save(&self, identity: &Identity) -> Result<(), ApiError> {
        identity::write(&self.data_dir, identity).map_err(ApiError::internal)
    }

    pub(super) async fn bootstrap(
        self: Arc<Self>,
        request: v1::BootstrapRequest,
    ) -> Result<v1::BootstrapResponse, ApiError> {
        let mut identity = self.identity.lock().await;
        if identity.cluster_id.is_empty() {
            let (replica, node) = controller::first_voter();
            let reducers = request.category_reducers.iter().map(|(c, r)| (c.clone(), *r as u32));
            let next = Identity {
                cluster_id: request.cluster_id.clone(),
                node_id: node.0,
                meta_replica_id: replica.0,
                bootstrap: Some(MetaGenesis {
                    partitions: request.partitions,
                    replication_factor: request.replication_factor,
                    initial_members: request.initial_members,
                    default_reducer: request.default_reducer as u32,
                    category_reducers: reducers.collect(),
                }),
                token: identity.token.clone(),
            };
            self.save(&next)?;
            *identity = next;
            self.become_member(&identity);
            self.start_member(&identity);
        }
        if identity.cluster_id != request.cluster_id {
            return Err(ApiError::AlreadyBootstrapped { cluster_id: identity.cluster_id.clone() });
        }
        let node_id = identity.node_id;
        self.finish_bootstrap(&mut identity).await?;
        Ok(v1::BootstrapResponse { cluster_id: request.cluster_id, node_id })
    }

    /// Waits until the cluster's first command is applied, then forgets that it was to be said.
    pub(super) async fn finish_bootstrap(&self, identity: &mut Identity) -> Result<(), ApiError> {
        if identity.bootstrap.is_none() {
            return Ok(());
        }
        let mut meta = self.meta.clone();
        let applied = meta.wait_for(|m| m.cluster_id == identity.cluster_id);
        match tokio::time::timeout(BOOTSTRAP_TIMEOUT, applied).await {
            Ok(Ok(_)) => {}
            _ => {
                return Err(ApiError::internal(
                    "the meta group has not taken its first command yet",
                ));
            }
        }
        let done = Identity { bootstrap: None, ..identity.clone() };
        self.save(&done)?;
        *identity = done;
        Ok(())
    }

    /// Where other nodes may be: as known, and the seeds.
    fn peers(&self) -> Vec<String> {
        let known = self.transport.address_book().nodes().into_values();
        let mut all: Vec<String> = known.map(|a| a.peer_address.to_string()).collect();
        all.extend(self.seeds.iter().filter(|s| **s != self.me.peer_address).cloned());
        all.sort();
        all.dedup();
        all
    }

    /// At its start, and while it knows no leader of the meta group, a member tells its peers where it is and hears
    /// where they are: it may know nothing yet, or everybody may have moved. Peers that are all of
    /// another cluster say that the data directory is not of this one.
    pub async fn greet(self: Arc<Self>) -> Result<(), JoinError> {
        let mut local = self.transport.local().subscribe();
        if local.wait_for(Option::is_some).await.is_err() {
            return Ok(());
        }
        let mut at_start = true;
        loop {
            if let Some(local) = self.transport.local().get()
                && (std::mem::take(&mut at_start) || self.meta_leader().is_none())
            {
                let ours = local.cluster_id.to_string();
                let hello = Hello {
                    cluster_id: ours.clone(),
                    node_id: local.node.0,
                    peer_address: self.me.peer_address.clone(),
                    client_url: self.me.client_url.clone(),
                };
                let mut heard = BTreeSet::new();
                for address in self.peers() {
                    // A peer that cannot be reached is asked again with the next round.
                    let asked = self.transport.hello(&address, hello.clone());
                    let answer = match tokio::time::timeout(GREET_TIMEOUT, asked).await {
                        Ok(Ok(answer)) => Ok(Ok(answer)),
                        _ => {
                            tokio::time::timeout(GREET_TIMEOUT, self.transport.who(&address)).await
                        }
                    };
                    if let Ok(Ok(answer)) = answer
                        && !answer.cluster_id.is_empty()
                    {
                        if answer.you_are_removed && answer.cluster_id == ours {
                            let node = local.node.0;
                            return Err(JoinError::Removed(format!("node {node} was removed")));
                        }
                        heard.insert(answer.cluster_id);
                    }
                }
                if let Some(theirs) = heard.first().filter(|_| !heard.contains(&ours)) {
                    return Err(JoinError::ForeignCluster { ours, theirs: theirs.clone() });
                }
            }
            tokio::time::sleep(GREET_EVERY).await;
        }
    }

    /// Joins where the node has no cluster yet; then reports whenever the cluster knows it
    /// otherwise than it is.
    pub async fn join(self: Arc<Self>) -> Result<(), JoinError> {
        let seeds = || self.peers();
        let identity = self.identity.lock().await.clone();
        if identity.cluster_id.is_empty() {
            let joining = Joining { cluster_id: String::new(), me: self.as_join(&identity) };
            let bootstrapped = async {
                let mut local = self.transport.local().subscribe();
                let _ = local.wait_for(Option::is_some).await;
            };
            tokio::select! {
                // Told to bootstrap meanwhile.
                () = bootstrapped => {}
                answer = join_loop(&*self, &joining, seeds) => self.take_identity(answer?).await,
            }
        }
        let mut meta = self.meta.clone();
        loop {
            let identity = self.identity.lock().await.clone();
            let me = self.as_join(&identity);
            let state = meta.borrow_and_update().clone();
            if was_removed(&state, identity.node_id) {
                return Err(JoinError::Removed(format!("node {} was removed", identity.node_id)));
            }
            if !state.cluster_id.is_empty() && join::must_report(&state, &me) {
                let joining = Joining { cluster_id: identity.cluster_id, me };
                join_loop(&*self, &joining, seeds).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            if meta.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Takes the identity that the cluster gave to this node.
    async fn take_identity(self: &Arc<Self>, answer: JoinAnswer) {
        let mut identity = self.identity.lock().await;
        if !identity.cluster_id.is_empty() {
            return;
        }
        let next = Identity {
            cluster_id: answer.cluster_id,
            node_id: answer.node_id,
            meta_replica_id: answer.meta_replica_id,
            bootstrap: None,
            token: identity.token.clone(),
        };
        if let Err(e) = self.save(&next) {
            tracing::error!(error = %e, "the identity could not be saved: the node has not joined");
            return;
        }
        *identity = next;
        self.become_member(&identity);
        self.start_member(&identity);
    }
}
