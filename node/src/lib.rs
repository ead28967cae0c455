//! A Ringfold node. Data flows api -> router -> raft (driver, log) -> partition (apply); see
//! docs/architecture.md.
pub mod api;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod disk;
pub mod failpoint;
pub mod gossip;
pub mod http;
pub mod identity;
pub mod ids;
mod log_limit;
pub mod meta;
pub mod metrics;
pub mod panics;
pub mod partition;
pub mod peer;
pub mod raft;
pub mod readiness;
pub mod rebalance;
pub mod replicas;
pub mod router;
pub mod server;
pub mod stop;
#[cfg(test)]
mod test_certificates;
pub mod transfers;
pub mod watermark;
