//! The gRPC services of a node.
mod append;
mod append_queue;
mod append_stream;
mod catch;
pub(crate) mod cluster;
pub mod deadline;
pub mod errors;
mod events;
mod handshakes;
pub mod incoming;
mod list;
pub mod node;
mod read;
pub mod read_pool;
pub mod server;
#[cfg(test)]
mod tests;
pub mod validate;

pub use server::{ServeError, serve};
