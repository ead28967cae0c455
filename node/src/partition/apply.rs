//! Applies entries: a pure function of the entry and the database.
mod pending;
#[cfg(test)]
pub(crate) mod tests;

use super::content::CONTENT_HASH_BYTES;
use super::fold::{Fold, Folded, Reducer, STATE_BYTES_MAX};
use super::heads::{Head, Heads};
use super::keys::{self, decode_value, encode_value};
use super::mark::{chain_of, load, put, put_membership};
use super::store::{SharedResources, SharedStore, StoreError, open_rocks};
use super::{Reader, position};
use crate::raft::apply::StateMachine;
use bytes::Bytes;
use pending::{Pending, Run};
use prost::Message;
use ringfold_proto::internal::command::Command as Kind;
use ringfold_proto::internal::{
    Activate, Append, AppliedRecord, Command, Entry, Event, EventRecord, Expected, GenesisRecord,
    IdRecord, ReducerTable, SnapshotRecord, StreamRecord, reducer_table,
};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

/// Format of an entry's data.
const ENTRY_FORMAT: u8 = 1;
/// Effects that go in together, about. What an entry does beyond that goes in with further batches;
/// a single append is never split. Where batches end is part of the format: positions are indexed
/// by batch.
const BATCH_BYTES_MAX: usize = 1 << 20;
const HEADS_BYTES_MAX: usize = 512 << 10;

/// What one command of an entry came to. One refused never fails its neighbours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutcome {
    Appended(Appended),
    Refused(Refusal),
    /// A command without an answer of its own (`Close`, `Activate`, ...).
    Done,
    Meta(MetaOutcome),
}

/// Where an append's events are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub first_revision: u64,
    pub last_revision: u64,
    pub first_position: u64,
    pub last_position: u64,
}

/// Why an append stored nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `actual`: revision of the stream's last event; `None`: there is no such stream.
    #[error("the stream is at another revision")]
    WrongExpectedRevision { actual: Option<u64> },
    /// Some of the append's ids are stored with other content, in another order, or only in part.
    #[error(
        "event id {id} is stored already, at revision {revision}, with other content or in another append"
    )]
    EventIdConflict { id: uuid::Uuid, revision: u64 },
    #[error("an earlier append of this stream failed")]
    EarlierAppendFailed,
    #[error("the stream is deleted for good")]
    Tombstoned,
}

/// What a command of the meta group came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaOutcome {
    Done,
    Joined {
        cluster_id: String,
        node_id: u64,
        meta_replica_id: u64,
    },
    Placed {
        epoch: u64,
    },
    /// What was wrong, as a sentence.
    Refused(String),
}

/// What a database is created for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Genesis {
    pub partition: u32,
    /// Reducers of new streams.
    pub reducers: ReducerTable,
}

impl Genesis {
    /// Generation 1 of each category's reducer (numbers of `ringfold.v1.Reducer`).
    pub fn new<'a>(
        partition: u32,
        default_reducer: u32,
        categories: impl IntoIterator<Item = (&'a String, &'a u32)>,
    ) -> Genesis {
        let active = |reducer| reducer_table::Active { reducer, generation: 1 };
        let categories = categories.into_iter().map(|(c, r)| (c.clone(), active(*r))).collect();
        let reducers = ReducerTable { default: Some(active(default_reducer)), categories };
        Genesis { partition, reducers }
    }
}

/// Faults that simulations plant, to prove that they find them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlantedFaults {
    /// A retry of a stored append is refused by its expected revision.
    pub revision_before_ids: bool,
    /// What the entry itself has stored so far is not seen by the ids of its later appends.
    pub entry_ids_forgotten: bool,
    /// The applied mark does not say where in a large entry it stands.
    pub commands_done_forgotten: bool,
}

/// Applies a partition's entries to its store.
pub struct PartitionMachine {
    store: SharedStore,
    reader: Reader,
    partition: u32,
    reducers: ReducerTable,
    /// As in the store but for what is pending.
    mark: AppliedRecord,
    chain: [u8; 32],
    heads: Heads,
    pending: Pending,
    key: Vec<u8>,
    batch_bytes_max: usize,
    faults: PlantedFaults,
    /// Set by the first error: what memory holds may be wrong then.
    broken: Option<String>,
}

impl PartitionMachine {
    /// Opens the database in a directory. One that is empty or not there is created from `genesis`,
    /// durably, where `create` says so; else only the genesis' partition counts.
    pub fn open(
        path: &Path,
        resources: &SharedResources,
        genesis: &Genesis,
        create: bool,
    ) -> Result<PartitionMachine, StoreError> {
        Self::with_store(open_rocks(path, resources, create)?, genesis, create)
    }

    /// As `open`, over any store. One of another partition is refused.
    pub fn with_store(
        store: SharedStore,
        genesis: &Genesis,
        create: bool,
    ) -> Result<PartitionMachine, StoreError> {
        let error = |reason: String| StoreError::new(store.path(), "opened", reason);
        match load::<GenesisRecord>(&*store, keys::GENESIS)? {
            None if create && store.get(keys::APPLIED)?.is_none() => {
                let mut batch = super::store::Batch::default();
                put(&mut batch, keys::GENESIS, &GenesisRecord { partition: genesis.partition });
                put(&mut batch, keys::REDUCERS, &genesis.reducers);
                let applied = AppliedRecord { chain: vec![0; 32].into(), ..Default::default() };
                put(&mut batch, keys::APPLIED, &applied);
                // Durable before the log names the directory: a start knows no genesis.
                store.write(&batch)?;
                store.flush()?;
            }
            None => {
                return Err(error("it is not a partition's database, or lost its records".into()));
            }
            Some(g) if g.partition != genesis.partition => {
                let (is, not) = (g.partition, genesis.partition);
                return Err(error(format!("it is of partition {is}, not of {not}")));
            }
            Some(_) => {}
        }
        let missing = || error("it lost its applied mark or its reducers".into());
        let mark: AppliedRecord = load(&*store, keys::APPLIED)?.ok_or_else(missing)?;
        let reducers: ReducerTable = load(&*store, keys::REDUCERS)?.ok_or_else(missing)?;
        for active in reducers.default.iter().chain(reducers.categories.values()) {
            Reducer::from_number(active.reducer).map_err(error)?;
        }
        if reducers.default.is_none() {
            return Err(error("its reducer table has no default".into()));
        }
        Ok(PartitionMachine {
            chain: chain_of(&*store, &mark)?,
            reader: Reader::new(store.clone()),
            partition: genesis.partition,
            reducers,
            mark,
            heads: Heads::new(HEADS_BYTES_MAX),
            pending: Pending::default(),
            key: Vec::with_capacity(256),
            batch_bytes_max: BATCH_BYTES_MAX,
            faults: PlantedFaults::default(),
            broken: None,
            store,
        })
    }

    pub fn plant(&mut self, faults: PlantedFaults) {
        self.faults = faults;
    }

    /// After an error nothing may go on from memory.
    fn guarded<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        if let Some(reason) = &self.broken {
            return Err(format!("an earlier entry failed: {reason}"));
        }
        let result = step(self);
        if let Err(reason) = &result {
            self.broken = Some(reason.clone());
        }
        result
    }

    fn follows(&self, index: u64) -> Result<(), String> {
        let next = self.mark.index + 1;
        if index == next {
            return Ok(());
        }
        Err(format!("entry {next} is the next one, {index} came"))
    }

    fn entry(&mut self, index: u64, term: u64, data: Bytes) -> Result<Vec<CommandOutcome>, String> {
        self.follows(index)?;
        let mut entry = decode_entry(data)?;
        let commands = std::mem::take(&mut entry.commands);
        let (count, done) = (commands.len(), self.mark.commands_done as usize);
        if done > count {
            return Err(format!("{done} of its commands are applied, it has {count}"));
        }
        let mut outcomes = Vec::with_capacity(count - done);
        for (i, command) in commands.into_iter().enumerate().skip(done) {
            outcomes.push(self.command(&entry, command)?);
            if self.pending.bytes() >= self.batch_bytes_max && i + 1 < count {
                if !self.faults.commands_done_forgotten {
                    self.mark.commands_done = i as u32 + 1;
                }
                self.write()?;
            }
        }
        self.mark.index = index;
        self.mark.term = term;
        self.mark.commands_done = 0;
        self.mark.earlier_failed = false;
        self.write()?;
        // An entry that goes on in its middle does not know the first answers: whoever waits hears
        // that the outcome is unknown.
        Ok(if done == 0 { outcomes } else { Vec::new() })
    }

    fn command(&mut self, entry: &Entry, command: Command) -> Result<CommandOutcome, String> {
        match command.command {
            Some(Kind::Append(append)) => {
                let chain_broken = append.chained && self.mark.earlier_failed;
                let result = self.append(entry, append, chain_broken)?;
                // A retry that is answered again does not mend the chain before it.
                self.mark.earlier_failed = result.is_err() || chain_broken;
                Ok(match result {
                    Ok(appended) => CommandOutcome::Appended(appended),
                    Err(refusal) => CommandOutcome::Refused(refusal),
                })
            }
            Some(Kind::Close(close)) => {
                if close.position > position::MAX {
                    return Err(format!("a closed position of {} is beyond all", close.position));
                }
                self.mark.closed_position = self.mark.closed_position.max(close.position);
                Ok(CommandOutcome::Done)
            }
            Some(Kind::Activate(activate)) => {
                self.activate(activate).map(|()| CommandOutcome::Done)
            }
            Some(Kind::Truncate(_)) => Err(unsupported("Truncate")),
            Some(Kind::Delete(_)) => Err(unsupported("Delete")),
            Some(Kind::Cut(_)) => Err(unsupported("Cut")),
            None => Err(unsupported("unknown")),
        }
    }

    /// Streams that exist keep the generation that they were folded with.
    fn activate(&mut self, activate: Activate) -> Result<(), String> {
        Reducer::from_number(activate.reducer)?;
        let active =
            reducer_table::Active { reducer: activate.reducer, generation: activate.generation };
        if activate.category.is_empty() {
            self.reducers.default = Some(active);
        } else {
            self.reducers.categories.insert(activate.category, active);
        }
        put(&mut self.pending.batch, keys::REDUCERS, &self.reducers);
        Ok(())
    }

    fn append(
        &mut self,
        entry: &Entry,
        append: Append,
        chain_broken: bool,
    ) -> Result<Result<Appended, Refusal>, String> {
        check(&append)?;
        let at = self.head(&append.stream)?;
        if self.faults.revision_before_ids
            && let Err(refusal) = self.expected(at, &append)?
        {
            return Ok(Err(refusal));
        }
        if let Some(answer) = self.stored_already(at, &append.events)? {
            return Ok(answer);
        }
        if chain_broken {
            return Ok(Err(Refusal::EarlierAppendFailed));
        }
        if let Err(refusal) = self.expected(at, &append)? {
            return Ok(Err(refusal));
        }
        self.store(entry, at, append.events).map(Ok)
    }

    /// Where among the pending heads a stream's is.
    fn head(&mut self, stream: &str) -> Result<usize, String> {
        if let Some(at) = self.pending.find(stream) {
            return Ok(at);
        }
        if let Some((name, head)) = self.heads.take(stream) {
            return Ok(self.pending.add(name, Some(head)));
        }
        self.key.clear();
        keys::stream(&mut self.key, keys::stream_hash(stream), stream);
        let head = match self.store.get(&self.key).map_err(|e| e.to_string())? {
            None => None,
            Some(value) => {
                let record: StreamRecord = decode_value(value)?;
                Some(Head { fold: Fold::of(&record)?, record })
            }
        };
        Ok(self.pending.add(Arc::from(stream), head))
    }

    /// The answer to an append of which some or all ids are stored; `None`: none is.
    fn stored_already(
        &mut self,
        at: usize,
        events: &[Event],
    ) -> Result<Option<Result<Appended, Refusal>>, String> {
        if let Some(twice) = twice(events) {
            // Refused where appends come in; nothing of it may be stored here either.
            let revision = self.pending.heads[at].next_revision();
            return Ok(Some(Err(conflict(twice, revision))));
        }
        let mut found = Vec::new();
        for (i, event) in events.iter().enumerate() {
            match self.find_id(at, &event.id)? {
                Some(id) if found.len() == i => found.push(id),
                Some(id) => return Ok(Some(Err(conflict(&event.id, id.revision)))),
                None => {}
            }
        }
        let (Some(first), Some(last)) = (found.first(), found.last()) else {
            return Ok(None);
        };
        if found.len() < events.len() {
            return Ok(Some(Err(conflict(&events[0].id, first.revision))));
        }
        for (i, (id, event)) in found.iter().zip(events).enumerate() {
            if id.content_hash != event.content_hash || id.revision != first.revision + i as u64 {
                return Ok(Some(Err(conflict(&event.id, id.revision))));
            }
        }
        Ok(Some(Ok(Appended {
            first_revision: first.revision,
            last_revision: last.revision,
            first_position: first.position,
            last_position: last.position,
        })))
    }

    fn find_id(&mut self, at: usize, id: &[u8]) -> Result<Option<IdRecord>, String> {
        if let Some(stored) = self.pending.id(at, id)
            && !self.faults.entry_ids_forgotten
        {
            return Ok(Some(stored.clone()));
        }
        let head = &self.pending.heads[at];
        // A stream that the store does not know has no ids there.
        if !head.in_store {
            return Ok(None);
        }
        self.key.clear();
        keys::id(&mut self.key, head.hash, &head.stream, id);
        let value = self.store.get(&self.key).map_err(|e| e.to_string())?;
        value.map(decode_value).transpose()
    }

    fn expected(&self, at: usize, append: &Append) -> Result<Result<(), Refusal>, String> {
        let record = self.pending.heads[at].head.as_ref().map(|h| &h.record);
        if record.is_some_and(|r| r.tombstone) {
            return Ok(Err(Refusal::Tombstoned));
        }
        let actual = record.map(|r| r.revision);
        let met = match Expected::try_from(append.expected) {
            Ok(Expected::Any) => true,
            Ok(Expected::NoStream) => actual.is_none(),
            Ok(Expected::StreamExists) => actual.is_some(),
            Ok(Expected::Exact) => actual == Some(append.exact),
            Err(_) => {
                let number = append.expected;
                return Err(format!("expectation {number} is not known: run a newer version"));
            }
        };
        Ok(if met { Ok(()) } else { Err(Refusal::WrongExpectedRevision { actual }) })
    }

    fn store(&mut self, entry: &Entry, at: usize, events: Vec<Event>) -> Result<Appended, String> {
        let state_bytes_max = match entry.max_state_bytes {
            0 => STATE_BYTES_MAX,
            bytes => bytes as usize,
        };
        let Pending { batch, heads, ids, .. } = &mut self.pending;
        let slot = &mut heads[at];
        let (hash, stream, first_revision) = (slot.hash, slot.stream.clone(), slot.next_revision());
        let state_bytes_before = slot.state_bytes();
        let head = match &mut slot.head {
            Some(head) => head,
            none => none.insert(new_head(&self.reducers, &stream)?),
        };
        let count = events.len() as u64;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.chain).update(&(stream.len() as u32).to_le_bytes());
        hasher.update(stream.as_bytes());

        let (mut revision, mut at_position) = (first_revision, 0);
        let mut first_position = 0;
        for event in events {
            let floor = self.mark.last_position.max(self.mark.closed_position);
            at_position = position::next(entry.stamp, floor, self.partition)
                .ok_or("positions are used up: the stamp lies beyond the year 2159")?;
            if first_position == 0 {
                first_position = at_position;
            }
            self.mark.last_position = at_position;
            hasher.update(&revision.to_le_bytes()).update(&at_position.to_le_bytes());
            hasher.update(&event.id).update(&event.content_hash);

            let folded = Folded { revision, content_type: &event.content_type, data: &event.data };
            head.fold.add(&folded, state_bytes_max);
            let id = IdRecord {
                revision,
                position: at_position,
                content_hash: event.content_hash.clone(),
            };
            batch.put_with(|k| keys::id(k, hash, &stream, &event.id), |v| encode_value(v, &id));
            if let Ok(key) = event.id[..].try_into() {
                ids.insert((at, key), id);
            }
            let record = EventRecord {
                id: event.id,
                r#type: event.r#type,
                schema_version: event.schema_version,
                content_type: event.content_type,
                data: event.data,
                metadata: event.metadata,
                position: at_position,
                recorded_at_ms: position::unix_ms(at_position) as i64,
                content_hash: event.content_hash,
            };
            batch.put_with(
                |k| keys::event(k, hash, &stream, revision),
                |v| encode_value(v, &record),
            );
            // The state after any revision of `last` is that event's data.
            if entry.snapshot_every != 0
                && (revision + 1).is_multiple_of(u64::from(entry.snapshot_every))
                && head.fold.reducer() != Reducer::Last
            {
                let generation = head.record.generation;
                if let (state, content_type, true) = head.fold.state()? {
                    let snapshot = SnapshotRecord {
                        generation,
                        content_type: content_type.to_owned(),
                        state: state.clone(),
                    };
                    batch.put_with(
                        |k| keys::snapshot(k, hash, &stream, revision),
                        |v| encode_value(v, &snapshot),
                    );
                }
            }
            revision += 1;
        }
        let last_revision = revision - 1;
        head.record.revision = last_revision;
        head.record.position = at_position;
        head.record.recorded_at_ms = position::unix_ms(at_position) as i64;
        slot.changed = true;
        let state_bytes = slot.state_bytes();
        self.chain = *hasher.finalize().as_bytes();
        self.mark.events += count;
        self.pending.state_bytes =
            (self.pending.state_bytes + state_bytes).saturating_sub(state_bytes_before);
        self.pending.run(Run { head: at, first_revision, first_position, events: count });
        let (first_position, last_position) = (first_position, at_position);
        Ok(Appended { first_revision, last_revision, first_position, last_position })
    }

    /// Writes what is pending with the mark.
    fn write(&mut self) -> Result<(), String> {
        self.pending.finish()?;
        self.mark.chain = Bytes::copy_from_slice(&self.chain);
        put(&mut self.pending.batch, keys::APPLIED, &self.mark);
        self.store.write(&self.pending.batch).map_err(|e| e.to_string())?;
        self.pending.clear_into(&mut self.heads);
        Ok(())
    }
}

fn decode_entry(data: Bytes) -> Result<Entry, String> {
    match data.first() {
        Some(&ENTRY_FORMAT) => {
            Entry::decode(data.slice(1..)).map_err(|e| format!("it is damaged: {e}"))
        }
        Some(other) => Err(format!(
            "it has format {other}, this version reads up to {ENTRY_FORMAT}: run a newer version"
        )),
        None => Err("it is damaged: it is empty".into()),
    }
}

fn unsupported(command: &str) -> String {
    format!("its command ({command}) is not supported by this version: run a newer version")
}

/// What the API promised. A command that breaks it comes from a damaged or foreign node.
fn check(append: &Append) -> Result<(), String> {
    let name = append.stream.as_bytes();
    if name.is_empty() || name.len() > keys::STREAM_NAME_BYTES_MAX || name.contains(&0) {
        return Err(format!("an append to a malformed stream name ({:?})", append.stream));
    }
    if append.events.is_empty() {
        return Err(format!("an append to {:?} without events", append.stream));
    }
    for e in &append.events {
        if e.id.len() != keys::ID_BYTES || e.content_hash.len() != CONTENT_HASH_BYTES {
            let name = &append.stream;
            return Err(format!("an event for {name:?} has a malformed id or content hash"));
        }
    }
    Ok(())
}

/// An id that stands twice in one append.
fn twice(events: &[Event]) -> Option<&[u8]> {
    if events.len() < 2 {
        return None;
    }
    let mut seen = HashSet::with_capacity(events.len());
    events.iter().map(|e| &e.id[..]).find(|id| !seen.insert(*id))
}

fn conflict(id: &[u8], revision: u64) -> Refusal {
    let id = uuid::Uuid::from_slice(id).unwrap_or_default();
    Refusal::EventIdConflict { id, revision }
}

fn new_head(reducers: &ReducerTable, stream: &str) -> Result<Head, String> {
    let active = reducers.categories.get(keys::category(stream)).or(reducers.default.as_ref());
    let active = active.ok_or("there is no default reducer")?;
    let record = StreamRecord {
        reducer: active.reducer,
        generation: active.generation,
        ..Default::default()
    };
    Ok(Head { fold: Fold::of(&record)?, record })
}

impl StateMachine for PartitionMachine {
    fn applied(&self) -> (u64, u64, u64) {
        (self.mark.index, self.mark.term, self.mark.last_position)
    }

    fn apply(&mut self, index: u64, term: u64, data: Bytes) -> Result<Vec<CommandOutcome>, String> {
        self.guarded(|m| m.entry(index, term, data))
    }

    fn skip(&mut self, index: u64, term: u64, membership: Option<&[u8]>) -> Result<(), String> {
        self.guarded(|m| {
            m.follows(index)?;
            if m.mark.commands_done != 0 {
                return Err("a part of it is applied, and now it has no commands".into());
            }
            m.mark.index = index;
            m.mark.term = term;
            if let Some(membership) = membership {
                put_membership(&mut m.pending.batch, index, membership);
            }
            m.write()
        })
    }

    fn unflushed_bytes(&self) -> u64 {
        self.store.unflushed_bytes()
    }

    fn reader(&self) -> Reader {
        self.reader.clone()
    }
}
