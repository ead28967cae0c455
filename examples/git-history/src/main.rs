//! Loads the history of a git repository as events.
mod events;
mod git;
mod log;
mod tree;
fn main() {}
