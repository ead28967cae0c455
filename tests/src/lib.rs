//! Whole-system tests: real nodes on this machine, real faults, and a checker over everything that
//! the clients saw. Nothing here uses the product's own client, so that its faults hide no other's.
//!
//! | module | subject |
//! |---|---|
//! | [`history`] | what each client asked and saw, on one clock |
//! | [`fold`] | the reducers once more, independently |
//! | [`checker`] | what must hold of a history and the log read at its end |
//! | [`model`] | correct histories out of a naive store, to prove the checker on |
//! | [`cluster`] | nodes on loopback: start, kill, pause, restart |
//! | [`certificates`] | a cluster's certificates, replaced as an operator would |
//! | [`load`] | writers and readers that record a history |
//! | [`shim`] | power loss: what was not synced is gone |
//! | [`disk`] | small disks, damaged files |
//! | [`failpoints`] | places where a node kills itself, waits or does damage |
//! | [`ballast`] | events that make partitions large, read back at the end |
//! | [`resize`] | a cluster that grows and shrinks for as long as a test wants |
//! | [`moving`] | what tests of moves begin and end with |
//! | [`netns`] | nodes that lose each other: a network namespace for each |
//! | [`sim`] | whole clusters from a seed: driver and apply in virtual time |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // support for tests: a panic is a failed test

pub mod ballast;
pub mod certificates;
pub mod checker;
pub mod cluster;
pub mod disk;
pub mod failpoints;
pub mod fold;
pub mod history;
pub mod load;
pub mod model;
pub mod moving;
pub mod netns;
pub mod resize;
pub mod shim;
pub mod sim;
