//! One partition's content: keys and values, the apply of entries, folds, and reads.
pub mod apply;
mod closed;
pub mod content;
pub mod fold;
mod heads;
mod json;
pub mod keys;
mod mark;
pub mod position;
mod reader;
pub mod store;

pub use reader::{EventPage, Reader};
