//! A Ringfold node. Data flows api -> router -> raft (driver, log) -> partition (apply); see
//! docs/architecture.md.
pub mod api;
pub mod clock;
pub mod identity;
pub mod ids;
pub mod partition;
pub mod peer;
pub mod raft;
pub mod router;
pub mod watermark;
