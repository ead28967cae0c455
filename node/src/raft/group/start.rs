//! A replica as it starts: from its record, and from what the log and the database hold.
use super::{Group, voters_of};
use crate::raft::apply::StateMachine;
use crate::raft::driver::DriverSettings;
use crate::raft::handle::{ReplicaView, Status};
use crate::raft::lease::Lease;
use crate::raft::log::{RaftLog, ReplicaRecord, Vote};
use crate::raft::store::GroupStore;
use raft::eraftpb::HardState;
use raft::{Config, RawNode, ReadOnlyOption};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// Bytes of committed entries that a Ready hands out.
const COMMITTED_BYTES_MAX: u64 = 8 << 20;
const MESSAGE_BYTES_MAX: u64 = 512 << 10;
const MESSAGES_IN_FLIGHT_MAX: usize = 64;

impl Group {
    /// Starts a replica from what the log holds: entries up to `last` and its last vote.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        settings: &DriverSettings,
        log: Arc<dyn RaftLog>,
        record: &ReplicaRecord,
        vote: Option<Vote>,
        last: u64,
        machine: &dyn StateMachine,
        view: Arc<ReplicaView>,
        started_ns: u64,
        logger: &slog::Logger,
    ) -> Result<Group, String> {
        let (applied, _, _) = machine.applied();
        let truncated = (record.truncated_index, record.truncated_term);
        let last = last.max(truncated.0);
        if applied > last {
            return Err(format!(
                "the database has applied entry {applied}, but the log ends at {last}: the log lost its end"
            ));
        }
        if applied < truncated.0 {
            return Err(format!(
                "the database has applied entry {applied}, but the log begins behind {}: the database lost its end",
                truncated.0
            ));
        }
        if record.membership_index > last {
            return Err(format!(
                "the membership is of entry {}, but the log ends at {last}: the log lost its end",
                record.membership_index
            ));
        }
        let mut store = GroupStore::new(record.replica, log, truncated, &record.membership);
        store.catch_up_bytes = settings.catch_up_bytes;
        store.load(last, settings.kept_log_bytes / 2).map_err(|e| e.to_string())?;
        let v = vote.unwrap_or_default();
        let commit = match settings.faults.commit_back_at_restart {
            true => truncated.0,
            false => v.commit.max(applied).max(record.membership_index).max(truncated.0),
        };
        if commit > last {
            return Err(format!(
                "entry {commit} was committed, but the log ends at {last}: the log lost its end"
            ));
        }
        store.hard_state = HardState { term: v.term, vote: v.vote, commit };
        let cfg = Config {
            id: record.replica.0,
            election_tick: settings.election_ticks,
            heartbeat_tick: settings.heartbeat_ticks,
            min_election_tick: settings.election_ticks,
            max_election_tick: 2 * settings.election_ticks,
            applied: if settings.faults.commit_back_at_restart { truncated.0 } else { applied },
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            // raft 0.7 batches entries into an empty append of another index when a rejection moved
            // the follower back in the same round; the follower then acknowledges an entry that it
            // does not have. Proposals are packed before they come here.
            batch_append: false,
            read_only_option: ReadOnlyOption::Safe,
            // Proposals are bounded by us, before they are packed.
            max_uncommitted_size: raft::NO_LIMIT,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..Config::default()
        };
        let raw = RawNode::new(&cfg, store, logger).map_err(|e| e.to_string())?;
        let seen = (raw.raft.term, raw.raft.state);
        Ok(Group {
            id: record.group,
            replica: record.replica,
            dirty: false,
            raw,
            record: record.clone(),
            view,
            writes: 0,
            unsynced: VecDeque::new(),
            saved_vote: (v.term, v.vote),
            votes_held_until_ns: match vote {
                Some(v) if v.term > 0 => started_ns + settings.election_ns(),
                _ => 0,
            },
            seen,
            lost_leadership: false,
            proposals: VecDeque::new(),
            waiting_bytes: 0,
            proposals_queued: false,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            applying: VecDeque::new(),
            last_stamp: 0,
            reads: Vec::new(),
            reads_asked: VecDeque::new(),
            reads_asked_ns: 0,
            reads_confirmed: VecDeque::new(),
            lease: Lease::default(),
            term_start: u64::MAX,
            committed: VecDeque::new(),
            committed_bytes: 0,
            handed: VecDeque::new(),
            changing: None,
            change_reply: None,
            incoming: None,
            installing: None,
            transfer: None,
            floors: HashMap::new(),
            flushed: applied.min(truncated.0),
            heard_ns: HashMap::new(),
            leader_since_ns: 0,
            led_ns: None,
            renounced: BTreeSet::new(),
            nodes: HashMap::new(),
            published: Status::default(),
            voters: voters_of(&record.membership),
            faults: settings.faults,
        })
    }
}
