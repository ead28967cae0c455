//! What the disk alone costs: small writes, each synced.
use std::{
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::measure::{self, LoadArgs, Report, Samples};

/// Appends 512 bytes to a file in `dir` and syncs it, again and again. The file is removed.
///
/// # Errors
/// The file cannot be written.
pub async fn run(dir: &Path, seconds: f64) -> anyhow::Result<Report> {
    let mut file: File = tempfile::tempfile_in(dir)
        .with_context(|| format!("cannot write into {}", dir.display()))?;
    let mut failed = None;
    let report = measure::once("sync", &LoadArgs::new(1, seconds, &[]), async |phase| {
        let mut samples = Samples::new(&phase);
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < until {
            let since = Instant::now();
            let synced = file.write_all(&[7; 512]).and_then(|()| file.sync_data());
            samples.record(since, synced.map(|()| 0).map_err(|e| e.to_string()));
            if samples.has_failed() {
                failed = Some("a write or sync failed");
                break;
            }
        }
        samples
    })
    .await;
    match failed {
        Some(what) => Err(anyhow::anyhow!(
            "{what} in {}: {}",
            dir.display(),
            report.first_error.unwrap_or_default()
        )),
        None => Ok(report),
    }
}
