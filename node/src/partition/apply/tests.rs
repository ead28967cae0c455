use super::*;
use crate::partition::content::hash_of_event;
use crate::partition::store::MemoryDisk;

pub(crate) fn event(id: u128, data: &str) -> Event {
    let mut e = Event {
        id: Bytes::copy_from_slice(&id.to_be_bytes()),
        r#type: "Changed".into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        ..Default::default()
    };
    e.content_hash = hash_of_event(&e);
    e
}

pub(crate) fn encode(entry: &Entry) -> Bytes {
    let mut out = vec![ENTRY_FORMAT];
    entry.encode_raw(&mut out);
    out.into()
}

#[test]
fn an_append_is_stored_once_and_looked_up() {
    let disk = MemoryDisk::default();
    let store = disk.open(Path::new("/p"), true).unwrap();
    let mut m = PartitionMachine::with_store(store, &Genesis::new(3, 2, []), true).unwrap();
    let append = |id, data: &str| Command {
        command: Some(Kind::Append(Append {
            stream: "customer-1".into(),
            events: vec![event(id, data)],
            ..Default::default()
        })),
    };
    let entry = Entry {
        commands: vec![
            append(1, r#"{"a":1}"#),
            append(1, r#"{"a":1}"#),
            append(2, r#"{"b":1}"#),
        ],
        stamp: position::stamp(crate::clock::EPOCH_UNIX_MS + 5),
        ..Default::default()
    };
    let out = m.apply(1, 1, encode(&entry)).unwrap();
    assert_eq!(out[0], out[1]);
    let CommandOutcome::Appended(a) = &out[2] else {
        panic!("{out:?}")
    };
    assert_eq!(a.first_revision, 1);
    let record = m.reader().stream("customer-1").unwrap().unwrap();
    assert_eq!(record.state, r#"{"a":1,"b":1}"#);
    assert_eq!(
        record.recorded_at_ms,
        crate::clock::EPOCH_UNIX_MS as i64 + 5
    );
    let page = m
        .reader()
        .events("customer-1", None, false, 10, 1 << 20)
        .unwrap();
    assert_eq!(page.events.len(), 2);
}
