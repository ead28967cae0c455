//! The replicas on this node's disk: opened at start, created from the placement, installed from
//! checkpoints.
use crate::disk::sync_folder;
use crate::failpoint;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::meta::database::MetaDatabase;
use crate::meta::machine::MetaMachine;
use crate::partition::apply::{Genesis, PartitionMachine};
use crate::partition::store::{SharedResources, open_rocks};
use crate::raft::apply::StateMachine;
use crate::raft::driver::NewGroup;
use crate::raft::handle::{Applied, ReplicaView, Replicas};
use crate::raft::log::{LoadedReplica, ReplicaRecord};
use crate::raft::membership::Membership;
use parking_lot::Mutex;
use ringfold_proto::internal::{MetaState, ReducerTable};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// Databases that are opened at the same time.
const OPENED_AT_ONCE: usize = 8;

/// Opens and creates replicas' databases below one data directory.
#[derive(Clone)]
pub struct ReplicaHome {
    partitions: PathBuf,
    resources: SharedResources,
    meta: watch::Sender<Arc<MetaState>>,
}

impl ReplicaHome {
    pub fn new(
        data_dir: &Path,
        resources: SharedResources,
        meta: watch::Sender<Arc<MetaState>>,
    ) -> std::io::Result<ReplicaHome> {
        let partitions = data_dir.join("partitions");
        std::fs::create_dir_all(&partitions)?;
        Ok(ReplicaHome { partitions, resources, meta })
    }

    /// Opens the database in a directory that a record names.
    pub fn open(
        &self,
        group: GroupId,
        replica: ReplicaId,
        directory: u32,
    ) -> Result<Box<dyn StateMachine>, String> {
        let path = self.partitions.join(format!("{}.{directory}", replica.0));
        match group.partition() {
            None => self.open_meta(&path, false),
            Some(partition) => {
                let genesis = Genesis { partition, reducers: ReducerTable::default() };
                let m = PartitionMachine::open(&path, &self.resources, &genesis, false);
                Ok(Box::new(m.map_err(|e| e.to_string())?))
            }
        }
    }

    fn open_meta(&self, path: &Path, create: bool) -> Result<Box<dyn StateMachine>, String> {
        let store = open_rocks(path, &self.resources, create).map_err(|e| e.to_string())?;
        let store = Box::new(MetaDatabase::new(store));
        Ok(Box::new(MetaMachine::open(store, self.meta.clone())?))
    }

    /// Makes an empty database where no record names one yet.
    fn create(
        &self,
        record: &ReplicaRecord,
        reducers: &ReducerTable,
    ) -> Result<Box<dyn StateMachine>, String> {
        let path = self.partitions.join(record.directory_name());
        let io = |e: std::io::Error| format!("{} cannot be made: {e}", path.display());
        if path.exists() {
            // Left by a crash before its record was written.
            std::fs::remove_dir_all(&path).map_err(io)?;
        }
        let machine: Box<dyn StateMachine> = match record.group.partition() {
            None => self.open_meta(&path, true)?,
            Some(partition) => {
                let genesis = Genesis { partition, reducers: reducers.clone() };
                let m = PartitionMachine::open(&path, &self.resources, &genesis, true);
                Box::new(m.map_err(|e| e.to_string())?)
            }
        };
        failpoint::hit("create-folder-unsynced", record.group);
        // The record that names it must not be there before its folder is.
        sync_folder(&self.partitions).map_err(io)?;
        Ok(machine)
    }

    /// A replica as the log tells of it. An error closes it: its view says why.
    pub fn load(&self, loaded: LoadedReplica, replicas: &Replicas) -> Option<NewGroup> {
        let record = loaded.record;
        let opened = self.open(record.group, record.replica, record.directory);
        let last = loaded.entries.map_or(0, |(_, last)| last);
        self.register(record, loaded.vote, last, false, opened, replicas)
    }

    /// All of them, several at a time: opening one waits for the disk and for its own recovery.
    pub fn load_all(&self, loaded: Vec<LoadedReplica>, replicas: &Replicas) -> Vec<NewGroup> {
        let threads = OPENED_AT_ONCE.min(loaded.len());
        let waiting = Mutex::new(loaded.into_iter());
        let opened = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        // Apart, so that the lock is not held while the database opens.
                        let next = waiting.lock().next();
                        let Some(l) = next else { return };
                        if let Some(group) = self.load(l, replicas) {
                            opened.lock().push(group);
                        }
                    }
                });
            }
        });
        opened.into_inner()
    }

    /// A new replica of a group that began with these voters; `first_placed` campaigns at once.
    pub fn found(
        &self,
        group: GroupId,
        replica: ReplicaId,
        voters: &[(ReplicaId, NodeId)],
        first_placed: bool,
        reducers: &ReducerTable,
        replicas: &Replicas,
    ) -> Option<NewGroup> {
        let record = ReplicaRecord {
            group,
            replica,
            directory: 1,
            membership: Membership::genesis(voters),
            membership_index: 0,
            truncated_index: 0,
            truncated_term: 0,
            destroyed: false,
            first_placed,
        };
        let opened = self.create(&record, reducers);
        self.register(record, None, 0, true, opened, replicas)
    }

    fn register(
        &self,
        record: ReplicaRecord,
        vote: Option<crate::raft::log::Vote>,
        last_index: u64,
        fresh: bool,
        opened: Result<Box<dyn StateMachine>, String>,
        replicas: &Replicas,
    ) -> Option<NewGroup> {
        let (group, replica) = (record.group, record.replica);
        let machine = match opened {
            Ok(machine) => machine,
            Err(reason) => {
                tracing::error!(%group, %replica, reason, "replica closed: its database cannot be opened");
                Self::register_closed(group, replica, &reason, replicas);
                return None;
            }
        };
        let (index, _, position) = machine.applied();
        let view = Arc::new(ReplicaView::new(
            group,
            replica,
            machine.reader(),
            Applied { index, position },
        ));
        view.directory.store(record.directory, std::sync::atomic::Ordering::Release);
        replicas.write().insert(group, view.clone());
        Some(NewGroup { record, vote, last_index, fresh, machine, view })
    }

    /// Shows a replica that does not run, and why.
    pub fn register_closed(group: GroupId, replica: ReplicaId, reason: &str, replicas: &Replicas) {
        let reader = crate::partition::Reader::closed(reason);
        let view = ReplicaView::new(group, replica, reader, Applied::default());
        view.close(reason);
        replicas.write().insert(group, Arc::new(view));
    }

    /// Removes all directories of a replica that is destroyed.
    pub fn remove(&self, replica: ReplicaId) -> std::io::Result<()> {
        let prefix = format!("{}.", replica.0);
        for entry in std::fs::read_dir(&self.partitions)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                match std::fs::remove_dir_all(entry.path()) {
                    // Whoever read it last has removed it meanwhile, or does so now.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    done => done?,
                }
            }
        }
        Ok(())
    }

    /// Removes directories that no record names: checkpoints that were not taken, replicas whose
    /// record was not written.
    pub fn clean(&self, live: &HashSet<String>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.partitions)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !live.contains(&name) {
                tracing::info!(directory = name, "removing a database that no record names");
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}
