//! Heads of streams that were appended to lately, so that an append to a hot stream reads nothing.
use super::fold::Fold;
use ringfold_proto::internal::StreamRecord;
use std::collections::HashMap;
use std::sync::Arc;

/// A stream's record and its state as it folds.
#[derive(Debug, Clone)]
pub struct Head {
    pub record: StreamRecord,
    pub fold: Fold,
}

impl Head {
    /// What it takes in memory, about: the record's state and the parsed one.
    fn bytes(&self, stream: &str) -> usize {
        512 + stream.len() + self.record.state.len() * 4
    }
}

/// Bounded in bytes. Two halves: what the younger one sees no more for a while leaves with the
/// older one.
pub struct Heads {
    bytes_max: usize,
    young: HashMap<Arc<str>, Head>,
    young_bytes: usize,
    old: HashMap<Arc<str>, Head>,
}

impl Heads {
    pub fn new(bytes_max: usize) -> Heads {
        Heads { bytes_max, young: HashMap::new(), young_bytes: 0, old: HashMap::new() }
    }

    /// Takes a head out; it is put back once it is written.
    pub fn take(&mut self, stream: &str) -> Option<(Arc<str>, Head)> {
        match self.young.remove_entry(stream) {
            Some((stream, head)) => {
                self.young_bytes -= head.bytes(&stream);
                Some((stream, head))
            }
            None => self.old.remove_entry(stream),
        }
    }

    pub fn put(&mut self, stream: Arc<str>, head: Head) {
        let bytes = head.bytes(&stream);
        if bytes > self.bytes_max / 4 {
            return;
        }
        if self.young_bytes + bytes > self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        self.young.insert(stream, head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(revision: u64, bytes: usize) -> Head {
        let record = StreamRecord {
            revision,
            reducer: 1,
            content_type: "x".into(),
            state: vec![0; bytes].into(),
            ..Default::default()
        };
        Head { fold: Fold::of(&record).unwrap(), record }
    }

    #[test]
    fn the_hot_stay_and_memory_is_bounded() {
        let mut heads = Heads::new(64 << 10);
        heads.put("hot".into(), head(7, 10));
        for i in 0..10_000 {
            heads.put(format!("cold-{i}").into(), head(0, 10));
            let (stream, head) = heads.take("hot").unwrap();
            assert_eq!(head.record.revision, 7);
            heads.put(stream, head);
            assert!(heads.young.len() + heads.old.len() <= (64 << 10) / 512);
        }
        assert!(heads.take("cold-0").is_none());
        heads.put("large".into(), head(0, 64 << 10));
        assert!(heads.take("large").is_none());
    }
}
