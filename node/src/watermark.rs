//! `<data>/WATERMARK`: the number of the last synced log batch, kept outside the log. A log that
//! ends below it has lost its end: what this node promised may be gone.
use crate::disk::write_atomically;
use parking_lot::Mutex;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const FILE: &str = "WATERMARK";
const FORMAT: u8 = 1;
/// Each slot has a block of its own, so that one torn write spoils one slot.
const BLOCK_BYTES: usize = 4096;
/// Format byte, number, CRC-32C of both.
const SLOT_BYTES: usize = 13;
const SYNC_EVERY_NS: u64 = 1_000_000_000;

#[derive(Debug, thiserror::Error)]
pub enum WatermarkError {
    #[error("{path} cannot be {action}: {source}")]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error(
        "{path} is damaged: neither of its two slots can be read, so nobody can tell whether the \
         log lost its end. Move the data directory away and let the node join anew"
    )]
    Corrupt { path: PathBuf },
}

/// Written after each sync of the log, synced itself once a second. `advance` is called by the log
/// thread, `sync_if_due` by another, so that its sync never holds up the log.
pub struct Watermark {
    path: PathBuf,
    file: File,
    number: AtomicU64,
    slot: Mutex<Slot>,
}

struct Slot {
    /// The slot that is written; the other one is synced, and untouched until this one is too.
    current: usize,
    synced: u64,
    synced_at_ns: u64,
}

impl Watermark {
    /// Opens the watermark, or makes one at 0; and the number that was found, `None` if there was
    /// no file.
    pub fn open(data_dir: &Path) -> Result<(Watermark, Option<u64>), WatermarkError> {
        let path = data_dir.join(FILE);
        let io = |action| {
            let path = path.clone();
            move |source| WatermarkError::Io { path, action, source }
        };
        let found = match std::fs::read(&path) {
            Ok(bytes) => Some(
                highest(&bytes).ok_or_else(|| WatermarkError::Corrupt { path: path.clone() })?,
            ),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let mut bytes = vec![0; 2 * BLOCK_BYTES];
                for slot in 0..2 {
                    bytes[slot * BLOCK_BYTES..][..SLOT_BYTES].copy_from_slice(&encode(0));
                }
                write_atomically(&path, &bytes).map_err(io("made"))?;
                None
            }
            Err(e) => return Err(io("read")(e)),
        };
        let (slot, number) = found.unwrap_or((0, 0));
        let file = File::options().write(true).open(&path).map_err(io("opened"))?;
        let watermark = Watermark {
            path,
            file,
            number: AtomicU64::new(number),
            slot: Mutex::new(Slot { current: 1 - slot, synced: number, synced_at_ns: 0 }),
        };
        Ok((watermark, found.map(|(_, number)| number)))
    }

    /// The highest number so far. A log's next batch takes a higher one.
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Says that the batch of this number is synced in the log: one small write, no sync.
    pub fn advance(&self, number: u64) -> Result<(), WatermarkError> {
        self.number.fetch_max(number, Ordering::AcqRel);
        // While a sync runs, the number waits for the next call: too low is safe.
        match self.slot.try_lock() {
            Some(slot) => self.write(slot.current),
            None => Ok(()),
        }
    }

    /// Syncs the file if a second has passed and it has changed. `now_ns`: CLOCK_BOOTTIME.
    pub fn sync_if_due(&self, now_ns: u64) -> Result<bool, WatermarkError> {
        let mut slot = self.slot.lock();
        if now_ns < slot.synced_at_ns.saturating_add(SYNC_EVERY_NS) || slot.synced == self.number()
        {
            return Ok(false);
        }
        self.sync(&mut slot)?;
        slot.synced_at_ns = now_ns;
        Ok(true)
    }

    /// Syncs what is not synced yet: at the end.
    pub fn sync_now(&self) -> Result<(), WatermarkError> {
        let mut slot = self.slot.lock();
        if slot.synced == self.number() { Ok(()) } else { self.sync(&mut slot) }
    }

    fn sync(&self, slot: &mut Slot) -> Result<(), WatermarkError> {
        let number = self.number();
        self.write(slot.current)?;
        self.file.sync_data().map_err(|e| self.io("synced", e))?;
        slot.synced = number;
        slot.current = 1 - slot.current;
        Ok(())
    }

    fn write(&self, slot: usize) -> Result<(), WatermarkError> {
        self.file
            .write_all_at(&encode(self.number()), (slot * BLOCK_BYTES) as u64)
            .map_err(|e| self.io("written", e))
    }

    fn io(&self, action: &'static str, source: std::io::Error) -> WatermarkError {
        WatermarkError::Io { path: self.path.clone(), action, source }
    }
}

fn encode(number: u64) -> [u8; SLOT_BYTES] {
    let mut out = [FORMAT; SLOT_BYTES];
    out[1..9].copy_from_slice(&number.to_le_bytes());
    let sum = crc32c::crc32c(&out[..9]);
    out[9..].copy_from_slice(&sum.to_le_bytes());
    out
}

fn decode(slot: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(slot.get(1..9)?.try_into().ok()?);
    (slot.get(..SLOT_BYTES)? == encode(number)).then_some(number)
}

/// The highest valid slot and its number.
fn highest(bytes: &[u8]) -> Option<(usize, u64)> {
    (0..2)
        .filter_map(|slot| Some((slot, decode(bytes.get(slot * BLOCK_BYTES..)?)?)))
        .max_by_key(|(_, number)| *number)
}

/// What the log of a data directory is worth at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogState {
    Fine,
    /// A lost disk: its replicas are closed, never vote again, and are rebuilt.
    Lost {
        reason: String,
    },
}

/// Judges a log before anything is written to it. `identity_is_set`: the directory has a node id,
/// which it gets only after its log was made; `watermark`: what was found, `None` without a file.
pub fn judge(
    last_number_in_log: u64,
    watermark: Option<u64>,
    identity_is_set: bool,
    log_existed: bool,
) -> LogState {
    let reason = match (identity_is_set, log_existed, watermark) {
        (true, false, _) => "the log is missing, but this node has been a member".to_owned(),
        (true, true, None) => "WATERMARK is missing, so the log may have lost its end".to_owned(),
        (_, _, Some(w)) if last_number_in_log < w => format!(
            "the log ends at batch {last_number_in_log}, but batch {w} was synced: it lost its end"
        ),
        (false, _, _) if last_number_in_log > 0 => {
            format!("the log holds {last_number_in_log} batches of a node that this one is not")
        }
        _ => return LogState::Fine,
    };
    LogState::Lost { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(dir: &Path) -> Result<Option<u64>, WatermarkError> {
        Watermark::open(dir).map(|(_, found)| found)
    }

    #[test]
    fn a_new_file_starts_at_zero_and_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(found(dir.path()).unwrap(), None);
        assert_eq!(found(dir.path()).unwrap(), Some(0));
    }

    #[test]
    fn a_sync_comes_once_a_second_and_only_after_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let (w, _) = Watermark::open(dir.path()).unwrap();
        assert!(!w.sync_if_due(5_000_000_000).unwrap());
        w.advance(1).unwrap();
        assert!(w.sync_if_due(5_000_000_000).unwrap());
        w.advance(2).unwrap();
        assert!(!w.sync_if_due(5_999_999_999).unwrap());
        assert!(w.sync_if_due(6_000_000_000).unwrap());
        assert!(!w.sync_if_due(9_000_000_000).unwrap());
        assert_eq!(found(dir.path()).unwrap(), Some(2));
    }

    #[test]
    fn an_advance_during_a_sync_is_written_by_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let (w, _) = Watermark::open(dir.path()).unwrap();
        let syncing = w.slot.lock();
        w.advance(7).unwrap();
        assert_eq!(found(dir.path()).unwrap(), Some(0));
        drop(syncing);
        w.sync_now().unwrap();
        assert_eq!(found(dir.path()).unwrap(), Some(7));
    }

    proptest! {
        /// Whatever is done, the file says the highest number.
        #[test]
        fn the_highest_number_is_found(steps in prop::collection::vec((1..1000u64, any::<bool>(), any::<bool>()), 1..40)) {
            let dir = tempfile::tempdir().unwrap();
            let (mut w, _) = Watermark::open(dir.path()).unwrap();
            let (mut number, mut now_ns) = (0, 0);
            for (by, sync, reopen) in steps {
                number += by;
                now_ns += SYNC_EVERY_NS;
                w.advance(number).unwrap();
                if sync {
                    prop_assert!(w.sync_if_due(now_ns).unwrap());
                }
                if reopen {
                    let (again, found) = Watermark::open(dir.path()).unwrap();
                    prop_assert_eq!(found, Some(number));
                    w = again;
                }
                prop_assert_eq!(w.number(), number);
            }
        }

        /// The slot that is being written may be spoiled: what was synced is still there.
        #[test]
        fn a_torn_slot_falls_back_to_what_was_synced(
            synced in 1..1000u64, more in prop::collection::vec(1..1000u64, 1..5),
            at in 0..SLOT_BYTES, by in 1..=255u8,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (w, _) = Watermark::open(dir.path()).unwrap();
            w.advance(synced).unwrap();
            w.sync_now().unwrap();
            let current = w.slot.lock().current;
            let mut number = synced;
            for m in more {
                number += m;
                w.advance(number).unwrap();
            }
            let path = dir.path().join(FILE);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[current * BLOCK_BYTES + at] ^= by;
            std::fs::write(&path, &bytes).unwrap();
            prop_assert_eq!(found(dir.path()).unwrap(), Some(synced));
            bytes[(1 - current) * BLOCK_BYTES + at] ^= by;
            std::fs::write(&path, &bytes).unwrap();
            let is_corrupt = matches!(found(dir.path()), Err(WatermarkError::Corrupt { .. }));
            prop_assert!(is_corrupt);
        }

        #[test]
        fn a_log_is_fine_only_at_or_above_its_watermark(log in 0..5u64, mark in 0..5u64) {
            let fine = judge(log, Some(mark), true, true) == LogState::Fine;
            prop_assert_eq!(fine, log >= mark);
        }
    }

    #[test]
    fn a_short_file_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), b"").unwrap();
        assert!(matches!(found(dir.path()), Err(WatermarkError::Corrupt { .. })));
    }

    #[test]
    fn what_is_missing_is_lost_once_the_node_was_a_member() {
        let lost = |l: LogState| matches!(l, LogState::Lost { .. });
        assert!(!lost(judge(0, None, false, false)), "a new directory");
        assert!(!lost(judge(0, Some(0), false, true)), "waits to join");
        assert!(!lost(judge(0, Some(0), true, true)), "joined, nothing written yet");
        assert!(lost(judge(0, Some(0), true, false)), "the log is gone");
        assert!(lost(judge(9, None, true, true)), "the watermark is gone");
        assert!(lost(judge(9, Some(9), false, true)), "a log without its node");
    }
}
