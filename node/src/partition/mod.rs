//! One partition's content: keys and values, the apply of entries, folds, and reads.
pub mod apply;
mod reader;
pub mod store;

pub use reader::{EventPage, Reader};
