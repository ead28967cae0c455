//! The meta group's state machine: applies entries, keeps one value, and publishes the state.
use super::FEATURE_LEVEL_MAX;
use super::state::apply_command;
use crate::partition::Reader;
use crate::partition::apply::CommandOutcome;
use crate::partition::store::AppliedMark;
use crate::raft::apply::StateMachine;
use bytes::Bytes;
use prost::Message as _;
use ringfold_proto::internal::{MetaEntry, MetaRecord, MetaState};
use std::sync::Arc;
use tokio::sync::watch;

const ENTRY_FORMAT: u8 = 1;
const RECORD_FORMAT: u8 = 1;

/// The database of a meta replica: one value, and the mark that a checkpoint is read by.
pub trait MetaStore: Send {
    fn load(&self) -> Result<Option<Vec<u8>>, String>;
    /// Replaces both in one batch.
    fn save(&mut self, value: &[u8], mark: &AppliedMark) -> Result<(), String>;
    fn unflushed_bytes(&self) -> u64;
    fn reader(&self) -> Reader;
}

pub struct MetaMachine {
    store: Box<dyn MetaStore>,
    publish: watch::Sender<Arc<MetaState>>,
    state: Arc<MetaState>,
    mark: AppliedMark,
}

impl MetaMachine {
    /// Opens the replica's database, which may be empty, and publishes what it holds.
    pub fn open(
        store: Box<dyn MetaStore>,
        publish: watch::Sender<Arc<MetaState>>,
    ) -> Result<MetaMachine, String> {
        let record = match store.load()? {
            Some(value) => decode_record(&value)?,
            None => MetaRecord::default(),
        };
        let mut mark = AppliedMark { index: record.index, term: record.term, ..Default::default() };
        if !record.membership.is_empty() {
            mark.membership = Some((record.membership_index, record.membership.to_vec()));
        }
        let state = Arc::new(record.state.unwrap_or_default());
        check_level(&state)?;
        publish.send_replace(state.clone());
        Ok(MetaMachine { store, publish, state, mark })
    }

    fn save(&mut self, state: Arc<MetaState>, mark: AppliedMark) -> Result<(), String> {
        let (membership_index, membership) = mark.membership.clone().unwrap_or_default();
        let record = MetaRecord {
            index: mark.index,
            term: mark.term,
            state: Some((*state).clone()),
            membership: membership.into(),
            membership_index,
        };
        let mut value = Vec::with_capacity(1 + record.encoded_len());
        value.push(RECORD_FORMAT);
        record.encode_raw(&mut value);
        self.store.save(&value, &mark)?;
        self.mark = mark;
        if !Arc::ptr_eq(&self.state, &state) {
            self.state = state;
            self.publish.send_replace(self.state.clone());
        }
        Ok(())
    }

    fn next_mark(&self, index: u64, term: u64) -> Result<AppliedMark, String> {
        if index != self.mark.index + 1 {
            return Err(format!("entry {index} cannot follow entry {}", self.mark.index));
        }
        Ok(AppliedMark { index, term, ..self.mark.clone() })
    }
}

impl StateMachine for MetaMachine {
    fn applied(&self) -> (u64, u64, u64) {
        (self.mark.index, self.mark.term, 0)
    }

    fn apply(&mut self, index: u64, term: u64, data: Bytes) -> Result<Vec<CommandOutcome>, String> {
        let mark = self.next_mark(index, term)?;
        let mut state = (*self.state).clone();
        let outcomes = decode_entry(data)?
            .commands
            .into_iter()
            .map(|c| apply_command(&mut state, c).map(CommandOutcome::Meta))
            .collect::<Result<Vec<_>, _>>()?;
        check_level(&state)?;
        let state = if state == *self.state { self.state.clone() } else { Arc::new(state) };
        self.save(state, mark)?;
        Ok(outcomes)
    }

    fn skip(&mut self, index: u64, term: u64, membership: Option<&[u8]>) -> Result<(), String> {
        let mut mark = self.next_mark(index, term)?;
        if let Some(m) = membership {
            mark.membership = Some((index, m.to_vec()));
        }
        self.save(self.state.clone(), mark)
    }

    fn unflushed_bytes(&self) -> u64 {
        self.store.unflushed_bytes()
    }

    fn reader(&self) -> Reader {
        self.store.reader()
    }
}

fn decode_entry(data: Bytes) -> Result<MetaEntry, String> {
    match data.first() {
        Some(&ENTRY_FORMAT) => {
            MetaEntry::decode(data.slice(1..)).map_err(|e| format!("a meta entry: {e}"))
        }
        Some(f) => Err(format!(
            "a meta entry of format {f}, {ENTRY_FORMAT} expected: it may be from a newer version"
        )),
        None => Err("a meta entry is empty".into()),
    }
}

fn decode_record(value: &[u8]) -> Result<MetaRecord, String> {
    match value.split_first() {
        Some((&RECORD_FORMAT, record)) => {
            MetaRecord::decode(record).map_err(|e| format!("the meta record: {e}"))
        }
        Some((f, _)) => Err(format!(
            "the meta record has format {f}, {RECORD_FORMAT} expected: it may be from a newer version"
        )),
        None => Err("the meta record is empty".into()),
    }
}

fn check_level(state: &MetaState) -> Result<(), String> {
    if state.feature_level <= FEATURE_LEVEL_MAX {
        return Ok(());
    }
    Err(format!(
        "the cluster is at feature level {}, and this version reads up to {FEATURE_LEVEL_MAX}: \
         start a newer version",
        state.feature_level
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::state::tests::{command, init_command, join_as};
    use crate::partition::apply::MetaOutcome;
    use parking_lot::Mutex;
    use ringfold_proto::internal::MetaCommand;
    use ringfold_proto::internal::meta_command::Command;

    /// The value and the mark that were saved last.
    #[derive(Clone, Default)]
    struct Saved(Arc<Mutex<Option<Written>>>);

    type Written = (Vec<u8>, AppliedMark);

    impl MetaStore for Saved {
        fn load(&self) -> Result<Option<Vec<u8>>, String> {
            Ok(self.0.lock().as_ref().map(|(value, _)| value.clone()))
        }
        fn save(&mut self, value: &[u8], mark: &AppliedMark) -> Result<(), String> {
            *self.0.lock() = Some((value.to_vec(), mark.clone()));
            Ok(())
        }
        fn unflushed_bytes(&self) -> u64 {
            0
        }
        fn reader(&self) -> Reader {
            panic!("not read in these tests")
        }
    }

    fn open(saved: &Saved) -> (MetaMachine, watch::Receiver<Arc<MetaState>>) {
        let (publish, state) = watch::channel(Arc::default());
        (MetaMachine::open(Box::new(saved.clone()), publish).unwrap(), state)
    }

    fn entry(commands: Vec<MetaCommand>) -> Bytes {
        let mut data = vec![ENTRY_FORMAT];
        MetaEntry { commands }.encode_raw(&mut data);
        data.into()
    }

    #[test]
    fn an_entry_is_saved_published_and_found_again() {
        let saved = Saved::default();
        let (mut machine, mut state) = open(&saved);
        machine.skip(1, 1, None).unwrap();
        assert!(!state.has_changed().unwrap() || state.borrow_and_update().cluster_id.is_empty());
        let commands = vec![init_command(4, 3, 3), command(Command::Join(join_as("t", 0)))];
        let outcomes = machine.apply(2, 1, entry(commands)).unwrap();
        let joined = MetaOutcome::Joined { cluster_id: "c".into(), node_id: 2, meta_replica_id: 2 };
        assert_eq!(
            outcomes,
            [CommandOutcome::Meta(MetaOutcome::Done), CommandOutcome::Meta(joined)]
        );
        assert!(state.has_changed().unwrap());
        assert_eq!(state.borrow_and_update().members.len(), 2);
        machine.skip(3, 2, Some(b"membership")).unwrap();
        assert!(!state.has_changed().unwrap(), "nothing changed for those who watch");
        assert_eq!(machine.applied(), (3, 2, 0));

        let (again, state_again) = open(&saved);
        assert_eq!(again.applied(), (3, 2, 0));
        assert_eq!(*state_again.borrow(), *state.borrow());
        let mark = saved.0.lock().as_ref().unwrap().1.clone();
        assert_eq!(mark.membership, Some((3, b"membership".to_vec())));
        assert_eq!(again.mark, mark);
    }

    #[test]
    fn what_this_version_does_not_know_stops_the_group() {
        let (mut machine, state) = open(&Saved::default());
        for (data, why) in [
            (Bytes::new(), "empty"),
            (Bytes::from_static(&[2]), "format 2"),
            (Bytes::from_static(&[1, 0xff]), "meta entry"),
            (entry(vec![MetaCommand::default()]), "unknown"),
        ] {
            let error = machine.apply(1, 1, data).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let mut newer = init_command(4, 3, 3);
        if let Some(Command::Init(i)) = &mut newer.command {
            i.feature_level = FEATURE_LEVEL_MAX + 1;
        }
        assert!(machine.apply(1, 1, entry(vec![newer])).unwrap_err().contains("feature level"));
        assert_eq!(machine.applied(), (0, 0, 0));
        assert!(state.borrow().cluster_id.is_empty());
    }

    #[test]
    fn entries_come_without_gaps() {
        let (mut machine, _state) = open(&Saved::default());
        machine.skip(1, 1, None).unwrap();
        assert!(machine.skip(3, 1, None).is_err());
        assert!(machine.apply(1, 1, entry(vec![])).is_err());
    }
}
