//! What the layers of an append cost alone: the goal for a whole append is made of their sum.
pub mod apply;
pub mod driver;

use bytes::Bytes;
use prost::Message as _;
use ringfold_node::ids::{GroupId, ReplicaId};
use ringfold_node::partition::content::hash_of_event;
use ringfold_proto::internal::{Append, Command, Event, command::Command as Kind};

use crate::load::document;

/// Partitions of both, unless said otherwise.
const PARTITIONS: u32 = 16;

fn stream(n: u32) -> String {
    format!("bench_append-{n}")
}

/// An append of one event, as a node proposes it.
fn command(stream: u32, id: u64, bytes: u32) -> Command {
    let mut event = Event {
        id: Bytes::copy_from_slice(&u128::from(id).to_be_bytes()),
        r#type: "Counted".into(),
        data: document(id, bytes),
        ..Default::default()
    };
    event.content_hash = hash_of_event(&event);
    let append = Append { stream: self::stream(stream), events: vec![event], ..Default::default() };
    Command { command: Some(Kind::Append(append)) }
}

fn encoded(command: &Command) -> Bytes {
    command.encode_to_vec().into()
}

fn replica_of(group: GroupId, node: u64) -> ReplicaId {
    ReplicaId(u64::from(group.0) * 10 + node)
}
