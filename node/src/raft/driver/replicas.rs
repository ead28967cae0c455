//! Replicas that begin to run here, and those that end for good.
use super::{Driver, NewGroup, PersistedItem, Round};
use crate::ids::{GroupId, ReplicaId};
use crate::panics;
use crate::raft::apply::ApplyTask;
use crate::raft::group::Group;
use crate::raft::handle::ReplicaView;
use crate::raft::log::{LogOp, ReplicaRecord};
use crate::raft::membership::Membership;
use tokio::sync::oneshot;

impl Driver {
    pub(super) fn create(&mut self, new: NewGroup, round: &mut Round) {
        let id = new.record.group;
        if let Some(g) = self.groups.get(&id) {
            if g.replica != new.record.replica {
                let reason = format!("{} of the group runs on this node already", g.replica);
                Self::refuse_group(&new.view, &reason);
            }
            return;
        }
        let (fresh, record, view) = (new.fresh, new.record.clone(), new.view.clone());
        let (vote, last) = (new.vote, new.last_index);
        let made = panics::catch(|| {
            Group::new(
                &self.settings,
                self.log.clone(),
                &new.record,
                vote,
                last,
                &*new.machine,
                view.clone(),
                self.started_ns,
                &self.logger,
            )
        });
        let group = match made {
            Ok(Ok(group)) => group,
            Ok(Err(reason)) => return Self::refuse_group(&view, &reason),
            Err(_) => {
                return Self::refuse_group(
                    &view,
                    "raft refused the replica's state (see the log above)",
                );
            }
        };
        if fresh {
            round.write.ops.push(LogOp::Record(Box::new(record.clone())));
        }
        self.groups.insert(id, Box::new(group));
        round.apply.push(ApplyTask::Open { group: id, machine: new.machine, view });
        if fresh && record.first_placed {
            self.with_group(id, round, |g, _| {
                g.campaign();
                Ok(())
            });
        }
        if let Some(g) = self.groups.get_mut(&id) {
            g.publish();
        }
        self.mark(id);
    }

    fn refuse_group(view: &ReplicaView, reason: &str) {
        tracing::error!(group = %view.group, replica = view.replica.0, reason, "replica closed at start");
        view.close(reason);
    }

    /// Ends a replica for good: its id is never used again.
    pub(super) fn destroy(
        &mut self,
        group: GroupId,
        replica: ReplicaId,
        reply: oneshot::Sender<()>,
        round: &mut Round,
    ) {
        let running = self.groups.get(&group).is_some_and(|g| g.replica == replica);
        let record = match running.then(|| self.groups.remove(&group)).flatten() {
            Some(g) => {
                // Its members are of no use any more, and the record stays for good.
                let record =
                    ReplicaRecord { membership: Membership::default(), ..g.record().clone() };
                g.close("it has left its group");
                record
            }
            // A closed one: nothing of its record is of use any more.
            None => ReplicaRecord {
                group,
                replica,
                directory: 0,
                membership: Membership::default(),
                membership_index: 0,
                truncated_index: 0,
                truncated_term: 0,
                destroyed: true,
                first_placed: false,
            },
        };
        round.write.ops.push(LogOp::Record(Box::new(ReplicaRecord { destroyed: true, ..record })));
        round.write.ops.push(LogOp::Clear { replica });
        round.write.persisted.push(PersistedItem {
            group,
            replica,
            ready: None,
            change: None,
            installed: None,
            destroyed: true,
        });
        self.destroying.push((group, replica, reply));
    }
}
