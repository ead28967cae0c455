//! The HTTP port: `/livez`, `/readyz` and `/metrics`. It answers from the first moment of the process
//! on, also while a long log is read.
use crate::api::node::Node;
use crate::metrics::Metrics;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Probes and scrapes: a bound against whoever opens more.
const CONNECTIONS_MAX: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection is closed, so that others get its place.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the port tells of.
#[derive(Default)]
pub struct Http {
    pub metrics: Arc<Metrics>,
    /// Set once the node is wired.
    pub node: OnceLock<Arc<Node>>,
}

impl Http {
    /// The process serves, whether there is a quorum or not: nothing that a restart would mend makes
    /// `/livez` fail.
    fn answer(&self, method: &Method, path: &str) -> (StatusCode, String) {
        if ![Method::GET, Method::HEAD].contains(method) {
            return (StatusCode::METHOD_NOT_ALLOWED, "GET is expected\n".into());
        }
        match path {
            "/livez" => (StatusCode::OK, "ok\n".into()),
            "/readyz" => {
                let waits_for = match self.node.get() {
                    Some(node) if node.is_ready() => return (StatusCode::OK, "ok\n".into()),
                    Some(node) => node.waits_for(),
                    None => vec!["it opens its log and its partitions".into()],
                };
                (StatusCode::SERVICE_UNAVAILABLE, waits_for.join("\n") + "\n")
            }
            "/metrics" => match self.metrics.text() {
                Ok(text) => (StatusCode::OK, text),
                Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
            },
            _ => (StatusCode::NOT_FOUND, "see /livez, /readyz and /metrics\n".into()),
        }
    }
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, http: Arc<Http>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to the HTTP port was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let http = http.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let (status, text) = http.answer(request.method(), request.uri().path());
                let mut response = Response::new(Full::new(Bytes::from(text)));
                *response.status_mut() = status;
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer);
            match tokio::time::timeout(CONNECTION_MAX, connection).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a connection to the HTTP port failed"),
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_starts_lives_and_is_not_ready() {
        let http = Http::default();
        assert_eq!(http.answer(&Method::GET, "/livez").0, StatusCode::OK);
        let (status, why) = http.answer(&Method::GET, "/readyz");
        assert_eq!((status, why.contains("log")), (StatusCode::SERVICE_UNAVAILABLE, true));
        let (status, text) = http.answer(&Method::GET, "/metrics");
        assert!(status == StatusCode::OK && text.contains("ringfold_node_lookup_seconds_count 0"));
        assert_eq!(http.answer(&Method::GET, "/").0, StatusCode::NOT_FOUND);
        assert_eq!(http.answer(&Method::POST, "/livez").0, StatusCode::METHOD_NOT_ALLOWED);
    }
}
