//! Nodes that come and go while `dev` runs: its answers to `dev scale`.
use super::control::{Answer, Ask, Running, RunningNode};
use super::plan::{self, NODES_MAX};
use super::process::{self, Nodes};
use super::settled::{PlanError, check_ports};
use super::{Cluster, say};
use crate::error::{CliError, Exit};
use std::io;

impl Cluster<'_> {
    /// Does what is asked. Call it from the main thread.
    pub(super) async fn answer(&mut self, ask: Ask, nodes: &mut Nodes) -> Answer {
        match ask {
            Ask::Nodes => {}
            Ask::Start { count } => {
                for _ in 0..count {
                    self.start_next(nodes).await?;
                }
            }
            Ask::Retire { numbers } => {
                for number in numbers {
                    if !nodes.expect_end(number, process::STOP_WITHIN) {
                        self.forget(number).await?;
                    }
                }
            }
        }
        Ok(Running {
            cluster_id: self.settled.cluster_id,
            nodes: self.plans.iter().map(RunningNode::from).collect(),
        })
    }

    /// Starts a further node. It is remembered first: a restart starts it as well.
    async fn start_next(&mut self, nodes: &mut Nodes) -> Result<(), CliError> {
        let before = self.settled.clone();
        if before.nodes() >= NODES_MAX {
            return Err(PlanError::Nodes(before.nodes() + 1).into());
        }
        let number = before.next_number();
        let mut after = before.clone();
        after.numbers.push(number);
        check_ports(&after)?;
        let plans = plan::nodes(&after, self.folder.path());
        let Some(new) = plans.iter().find(|p| p.number == number).cloned() else {
            return Err(CliError::other("a node without a plan"));
        };
        process::check_ports(std::slice::from_ref(&new))?;
        // Of a node that was removed, should this have been killed before it removed it.
        remove_data(&new.data_dir).await?;
        self.folder.remember(&after)?;
        if let Err(e) = nodes.add(&new, &self.binary) {
            self.folder.remember(&before)?;
            return Err(e);
        }
        say(format_args!("started {} at {}", new.name, new.endpoint()));
        (self.settled, self.plans) = (after, plans);
        Ok(())
    }

    /// Takes a node out that is no member any more: a restart does not start it.
    pub(super) async fn forget(&mut self, number: u32) -> Result<(), CliError> {
        let Some(gone) = self.plans.iter().find(|p| p.number == number).cloned() else {
            return Ok(());
        };
        if self.settled.nodes() == 1 {
            let message = format!("{} was removed from the cluster: no node is left", gone.name);
            return Err(CliError::new(Exit::Refused, message));
        }
        self.settled.numbers.retain(|n| *n != number);
        self.folder.remember(&self.settled)?;
        self.plans = plan::nodes(&self.settled, self.folder.path());
        remove_data(&gone.data_dir).await?;
        say(format_args!("{} was removed from the cluster; its log stays", gone.name));
        Ok(())
    }
}

/// Data of a node that is no member: nothing in it is anybody's.
async fn remove_data(folder: &std::path::Path) -> Result<(), CliError> {
    match tokio::fs::remove_dir_all(folder).await {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(CliError::other(format!("cannot remove {}: {e}", folder.display())))
        }
        _ => Ok(()),
    }
}
