//! The gRPC services of a node.
mod append;
mod cluster;
pub mod deadline;
pub mod errors;
mod events;
pub mod node;
mod read;
pub mod read_pool;
mod server;
pub mod validate;

pub use server::{ServeError, serve};
