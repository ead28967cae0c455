//! Arms the nodes' failpoints (`ringfold-node`'s `failpoint` module, in builds with debug assertions).
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::{LocalCluster, eventually};

/// Whether the nodes that tests start have failpoints: they are built as the tests are.
pub const EXIST: bool = cfg!(debug_assertions);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL to itself.
    Kill,
    /// The thread waits until [`Failpoints::go_on`].
    Hold,
    /// The damage that the point knows of, once.
    Alter,
    /// The same each time, until it is disarmed.
    AlterAlways,
}

/// Where a point was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Place in `cluster.nodes`.
    pub node: usize,
    pub partition: u32,
}

/// The points of all nodes of a cluster with `Settings::failpoints`.
pub struct Failpoints {
    dir: PathBuf,
}

impl Failpoints {
    pub(crate) fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        Self { dir: dir.to_path_buf() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn arm(&self, point: &str, action: Action) {
        let _ = fs::remove_file(self.dir.join(format!("{point}.hit")));
        let text = match action {
            Action::Kill => "kill",
            Action::Hold => "hold",
            Action::Alter => "alter",
            Action::AlterAlways => "alter always",
        };
        // Never seen half written.
        let new = self.dir.join(format!("{point}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.dir.join(point)).unwrap();
    }

    /// False: it was not armed any more.
    pub fn disarm(&self, point: &str) -> bool {
        fs::remove_file(self.dir.join(point)).is_ok()
    }

    /// Where it was hit, if it was.
    pub fn hit(&self, cluster: &LocalCluster, point: &str) -> Option<Hit> {
        let told = fs::read_to_string(self.dir.join(format!("{point}.hit"))).ok()?;
        let (pid, group) = told.split_once(' ').expect("process and group");
        let pid: u32 = pid.parse().unwrap();
        let node = cluster.nodes.iter().position(|n| n.pid() == Some(pid));
        let node =
            node.unwrap_or_else(|| panic!("{point} was hit in process {pid}, which is gone"));
        Some(Hit { node, partition: group.parse::<u32>().unwrap() - 1 })
    }

    /// Waits until it was hit.
    pub async fn wait(&self, cluster: &LocalCluster, point: &str, max: Duration) -> Hit {
        eventually(&format!("{point} is hit"), max, || async {
            self.hit(cluster, point).ok_or_else(|| "not hit yet".to_string())
        })
        .await
    }

    /// Lets a held thread go on.
    pub fn go_on(&self, point: &str) {
        let _ = fs::remove_file(self.dir.join(format!("{point}.hit")));
    }
}
