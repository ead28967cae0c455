//! Signals that end `dev`.
use crate::error::CliError;
use futures::StreamExt;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP, from the start on.
pub struct Signals(futures::stream::SelectAll<futures::stream::BoxStream<'static, Signal>>);

impl Signals {
    pub fn new() -> Result<Self, CliError> {
        let kinds = [
            (SignalKind::interrupt(), Signal::INT),
            (SignalKind::terminate(), Signal::TERM),
            (SignalKind::hangup(), Signal::HUP),
        ];
        let streams = kinds.map(|(kind, which)| {
            let mut signal = signal(kind)
                .map_err(|e| CliError::other(format!("cannot listen for signals: {e}")))?;
            let stream = futures::stream::poll_fn(move |cx| signal.poll_recv(cx));
            Ok(stream.map(move |()| which).boxed())
        });
        let streams = streams.into_iter().collect::<Result<Vec<_>, CliError>>()?;
        Ok(Self(futures::stream::select_all(streams)))
    }

    pub async fn next(&mut self) -> Signal {
        match self.0.next().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}
