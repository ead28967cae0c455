//! Clients that write and read while a test changes the cluster.
use std::time::Duration;

use ringfold_tests::{
    checker::{self, Reducers},
    history::{Clock, History},
    load::{self, Load, Running},
};

use crate::{Cluster, is_lab};

const PROGRESS_MAX: Duration = Duration::from_secs(60);

/// They are in the pods' network, so there are none where the tests are not in the lab's.
pub struct Work {
    clock: Clock,
    load: Load,
    running: Option<Running>,
}

/// What the clients saw, until all of it is read back.
pub struct Written {
    clock: Clock,
    load: Load,
    history: Option<History>,
}

impl Work {
    /// Through pods `0..pods`.
    pub fn start(cluster: &Cluster<'_>, pods: u32, seed: u64) -> Work {
        let (clock, load) = (Clock::new(), Load { seed, ..Load::default() });
        let running = is_lab().then(|| load::start_on(cluster.stores(pods), clock, &load));
        Work { clock, load, running }
    }

    /// Waits until a hundred further appends were acknowledged.
    pub async fn goes_on(&self) {
        if let Some(running) = &self.running {
            running.progress(100, PROGRESS_MAX).await;
        }
    }

    pub async fn stop(self) -> Written {
        let history = match self.running {
            Some(running) => Some(running.stop().await),
            None => None,
        };
        Written { clock: self.clock, load: self.load, history }
    }
}

impl Written {
    /// Reads every stream through pods `0..pods`, and judges all that was ever seen.
    ///
    /// # Panics
    /// When an acknowledged event is missing, or anything else is not as the store promises.
    pub async fn judge(self, cluster: &Cluster<'_>, pods: u32) {
        let Some(mut history) = self.history else { return };
        assert!(history.acknowledged() > 0, "nothing was acknowledged: {}", history.summary());
        let stores = cluster.stores(pods);
        let log = load::read_final_on(stores, self.clock, &self.load.names(), &mut history).await;
        checker::assert_holds(&history, &log, &Reducers { last: [].into() });
    }
}
