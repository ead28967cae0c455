//! Pipelined appends.
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use crate::{Appended, ClientError, Expected, NewEvent};

/// Appends without waiting for each answer, in order within each stream.
pub struct Appender {}

/// The answer of one append that was pushed.
pub struct Pending {}

impl Future for Pending {
    type Output = Result<Appended, ClientError>;
    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        todo!()
    }
}

impl Appender {
    /// Waits for room in flight, sends, and returns the future of the answer. Dropping that future
    /// does not take the append back.
    pub async fn push(&self, _stream: &str, _events: Vec<NewEvent>, _expected: Expected) -> Result<Pending, ClientError> {
        todo!()
    }
    /// After an append of a stream failed, later ones fail too (`EARLIER_APPEND_FAILED`), until this.
    pub fn resume(&self, _stream: &str) {
        todo!()
    }
    /// Waits until all that was pushed has its answer.
    pub async fn flush(&self) {
        todo!()
    }
}
