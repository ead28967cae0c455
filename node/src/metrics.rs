//! What the node counts, in the text format of Prometheus (docs/metrics.md).
mod collect;
mod histogram;

pub use histogram::Histogram;

use crate::api::node::Node;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;
use tonic::Status;
use tonic_types::StatusExt as _;

/// Calls that are measured, where a client asked this node: forwarded ones count there only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    Append,
    Lookup,
}

impl Measured {
    fn name(self) -> &'static str {
        match self {
            Measured::Append => "append",
            Measured::Lookup => "lookup",
        }
    }
}

type Refused = Family<[(&'static str, String); 2], Counter>;
type HandshakesRefused = Family<[(&'static str, &'static str); 1], Counter>;

pub struct Metrics {
    appends: Histogram,
    lookups: Histogram,
    refused: Refused,
    handshakes_refused: HandshakesRefused,
    registry: Registry,
    /// The rest is read off it with each scrape.
    node: Arc<OnceLock<Weak<Node>>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("ringfold_node");
        let (appends, lookups) = (Histogram::default(), Histogram::default());
        let refused = Refused::default();
        registry.register(
            "append_seconds",
            "Appends of clients, from the request to the answer; those of an AppendStream from their proposal",
            appends.clone(),
        );
        registry.register(
            "lookup_seconds",
            "Lookups of clients, from the request to the answer",
            lookups.clone(),
        );
        registry.register(
            "refused",
            "Appends and lookups that ended with an error, by its reason (docs/errors.md)",
            refused.clone(),
        );
        let handshakes_refused = HandshakesRefused::default();
        registry.register(
            "handshakes_refused",
            "Connections to the port for clients that came to no TLS handshake, by reason",
            handshakes_refused.clone(),
        );
        let node = Arc::default();
        registry.register_collector(Box::new(collect::OfNode(Arc::clone(&node))));
        Metrics { appends, lookups, refused, handshakes_refused, registry, node }
    }
}

impl Metrics {
    /// From now on scrapes show that node, as long as it is there.
    pub fn show(&self, node: &Arc<Node>) {
        let _ = self.node.set(Arc::downgrade(node));
    }

    fn histogram(&self, call: Measured) -> &Histogram {
        match call {
            Measured::Append => &self.appends,
            Measured::Lookup => &self.lookups,
        }
    }

    /// A call that began at `since` has its answer.
    pub fn answered<T>(&self, call: Measured, since: Instant, answer: &Result<T, Status>) {
        self.histogram(call).observe(since.elapsed(), 1);
        if let Err(status) = answer {
            let reason = status.get_details_error_info().map(|info| info.reason);
            self.refused(call, reason.as_deref().unwrap_or_default());
        }
    }

    /// Appends that were proposed together at `since` have their answers.
    pub fn appended(&self, since: Instant, appends: usize) {
        self.appends.observe(since.elapsed(), appends as u64);
    }

    pub fn refused(&self, call: Measured, reason: &str) {
        self.refused
            .get_or_create(&[("call", call.name().into()), ("reason", reason.into())])
            .inc();
    }

    /// A connection to the port for clients was refused before it said what it wants.
    pub fn handshake_refused(&self, reason: &'static str) {
        self.handshakes_refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// All of them, as Prometheus reads them.
    ///
    /// # Errors
    /// Does not happen: a text takes everything.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::errors::ApiError;
    use std::time::Duration;

    #[test]
    fn calls_are_counted_by_their_time_and_refused_ones_by_their_reason() {
        let metrics = Metrics::default();
        let now = Instant::now();
        metrics.answered(Measured::Lookup, now, &Ok(()));
        let refused: Status = ApiError::StreamNotFound.into();
        metrics.answered::<()>(Measured::Lookup, now, &Err(refused));
        metrics.handshake_refused("tls");
        metrics.appended(now - Duration::from_secs(60), 3);
        let text = metrics.text().unwrap();
        for line in [
            "ringfold_node_lookup_seconds_count 2",
            "ringfold_node_append_seconds_count 3",
            "ringfold_node_append_seconds_bucket{le=\"10.0\"} 0",
            "ringfold_node_append_seconds_bucket{le=\"+Inf\"} 3",
            "ringfold_node_refused_total{call=\"lookup\",reason=\"STREAM_NOT_FOUND\"} 1",
            "ringfold_node_handshakes_refused_total{reason=\"tls\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
