//! `ringfold-node`.
fn main() {}
