//! Ringfold's operator: brings clusters to what their `EventStoreCluster` asks for.
//!
//! `observe -> validate -> decide -> build -> apply -> status`. What lies between the two ends is pure
//! ([`validate`], [`decide`], [`build`], [`status`]) and is run against a simulated cluster in tests;
//! [`live`] and [`controller`] hold the clients.

pub mod build;
pub mod certificates;
pub mod check;
pub mod controller;
pub mod decide;
pub mod drift;
pub mod failpoint;
pub mod lease;
pub mod live;
pub mod metrics;
pub mod names;
pub mod patch;
pub mod plane;
pub mod quantity;
pub mod status;
pub mod step;
pub mod validate;
pub mod world;

#[cfg(test)]
mod simulation;
