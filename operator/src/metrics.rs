//! Metrics, and the HTTP endpoint that serves them and the process's health.
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::net::TcpListener;

type Labelled = Family<[(&'static str, String); 1], Counter>;

/// What the operator counts.
pub struct Metrics {
    pub reconciles: Labelled,
    pub actions: Labelled,
    pub reconcile_seconds: Histogram,
    pub leads: Gauge<i64, AtomicI64>,
    /// Ready to take over, or acting.
    pub ready: AtomicBool,
    registry: Mutex<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("ringfold_operator");
        let (reconciles, actions) = (Labelled::default(), Labelled::default());
        let reconcile_seconds = Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]);
        let leads = Gauge::default();
        registry.register("reconciles", "Looks at a cluster, by result", reconciles.clone());
        registry.register("actions", "Steps that were taken, by kind", actions.clone());
        registry.register(
            "reconcile_seconds",
            "Length of a look and its step",
            reconcile_seconds.clone(),
        );
        registry.register("leads", "1 in the operator that holds the Lease", leads.clone());
        Metrics {
            reconciles,
            actions,
            reconcile_seconds,
            leads,
            ready: AtomicBool::new(false),
            registry: Mutex::new(registry),
        }
    }
}

impl Metrics {
    fn answer(&self, path: &str) -> (StatusCode, String) {
        match path {
            "/livez" => (StatusCode::OK, "ok\n".into()),
            "/readyz" if self.ready.load(Ordering::Relaxed) => (StatusCode::OK, "ok\n".into()),
            "/readyz" => {
                (StatusCode::SERVICE_UNAVAILABLE, "the Kubernetes API was not reached yet\n".into())
            }
            "/metrics" => {
                let mut text = String::new();
                match encode(&mut text, &self.registry.lock()) {
                    Ok(()) => (StatusCode::OK, text),
                    Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
                }
            }
            _ => (StatusCode::NOT_FOUND, "see /livez, /readyz and /metrics\n".into()),
        }
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    // Scrapes and probes: a bound against whoever opens more.
    let permits = Arc::new(tokio::sync::Semaphore::new(64));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let (status, text) = metrics.answer(request.uri().path());
                let mut response = Response::new(Full::new(Bytes::from(text)));
                *response.status_mut() = status;
                async move { Ok::<_, Infallible>(response) }
            });
            let done = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), answer)
                .await;
            if let Err(error) = done {
                tracing::debug!(%error, "a connection to the HTTP port failed");
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_and_metrics_are_told_by_path() {
        let metrics = Metrics::default();
        metrics.actions.get_or_create(&[("action", "Drain".into())]).inc();
        assert_eq!(metrics.answer("/livez").0, StatusCode::OK);
        assert_eq!(metrics.answer("/readyz").0, StatusCode::SERVICE_UNAVAILABLE);
        metrics.ready.store(true, Ordering::Relaxed);
        assert_eq!(metrics.answer("/readyz").0, StatusCode::OK);
        let text = metrics.answer("/metrics").1;
        assert!(text.contains("ringfold_operator_actions_total{action=\"Drain\"} 1"), "{text}");
        assert_eq!(metrics.answer("/").0, StatusCode::NOT_FOUND);
    }
}
