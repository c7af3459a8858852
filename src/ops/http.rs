//! The HTTP port: metrics, health, and a page that says so.
//!
//! It answers from memory and in one go, so its bounds are small: [`CONNECTIONS_MAX`] connections at once, further
//! ones wait in the kernel's queue. A probe reads the status (200 or 503) and, for a person, the names of what fails;
//! with `?verbose` every check is listed as JSON.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Checks, Recorder};
use crate::runtime::{self, Guarded, Task};

/// Scrapers and probes are few; this many keep a descriptor budget and a slow reader harmless.
const CONNECTIONS_MAX: usize = 128;
/// How long answers in flight may take when the port closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait after a failed accept (no descriptors left, mostly) instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the port shows.
#[derive(Clone)]
pub struct Endpoints {
    /// The first line of the page: which node this is.
    pub title: String,
    /// The source of /metrics.
    pub recorder: Recorder,
    /// What /livez checks.
    pub live: Checks,
    /// What /readyz checks.
    pub ready: Checks,
}

/// The running port.
pub struct Http {
    address: SocketAddr,
    closing: CancellationToken,
    served: Task<()>,
}

impl Http {
    /// Serves on this listener until closed.
    pub fn serve(listener: TcpListener, endpoints: Endpoints) -> io::Result<Http> {
        let address = listener.local_addr()?;
        let closing = CancellationToken::new();
        let signal = closing.clone().cancelled_owned();
        let bounded = Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
        let serve = axum::serve(bounded, router(endpoints)).with_graceful_shutdown(signal);
        let served = runtime::spawn(async move {
            if let Err(error) = serve.await {
                tracing::error!(%error, "the HTTP port has closed");
            }
        });
        Ok(Http { address, closing, served })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port; answers in flight have a moment.
    pub async fn close(self) {
        self.closing.cancel();
        let stop = self.served.abort_handle();
        if runtime::timeout(CLOSE_TIMEOUT, self.served).await.is_none() {
            stop.abort();
        }
    }
}

fn router(endpoints: Endpoints) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/livez", get(|State(e): State<Arc<Endpoints>>, RawQuery(query)| async move { health(&e.live, query) }))
        .route(
            "/readyz",
            get(|State(e): State<Arc<Endpoints>>, RawQuery(query)| async move { health(&e.ready, query) }),
        )
        .fallback(|| async { (StatusCode::NOT_FOUND, "not found; / names what there is\n") })
        .with_state(Arc::new(endpoints))
}

async fn page(State(endpoints): State<Arc<Endpoints>>) -> String {
    format!(
        "{}\n\n\
         /metrics          Prometheus metrics\n\
         /livez            200 while the process is sound, else 503\n\
         /readyz           200 while the node should be sent requests, else 503\n\
         /livez?verbose    every check by name, as JSON (also /readyz?verbose)\n\n\
         Data and administration are served over gRPC on another port.\n",
        endpoints.title
    )
}

async fn metrics(State(endpoints): State<Arc<Endpoints>>) -> Response {
    // The version of the Prometheus text format.
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], endpoints.recorder.render()).into_response()
}

fn health(checks: &Checks, query: Option<String>) -> Response {
    let findings = checks.run();
    let failed: Vec<_> = findings.iter().filter(|finding| finding.problem.is_some()).collect();
    let status = if failed.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let verbose =
        query.is_some_and(|query| query.split('&').any(|word| word == "verbose" || word.starts_with("verbose=")));
    if verbose {
        let entry = |problem: &Option<String>| match problem {
            None => json!({ "ok": true }),
            Some(problem) => json!({ "ok": false, "problem": problem }),
        };
        let named: Map<String, Value> =
            findings.iter().map(|finding| (finding.name.to_owned(), entry(&finding.problem))).collect();
        return (status, Json(json!({ "ok": failed.is_empty(), "checks": named }))).into_response();
    }
    if failed.is_empty() {
        return (status, "ok\n").into_response();
    }
    let lines: String =
        failed.iter().map(|f| format!("{}: {}\n", f.name, f.problem.as_deref().unwrap_or_default())).collect();
    (status, lines).into_response()
}

/// A listener with a bounded number of connections.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Guarded<TcpStream, OwnedSemaphorePermit>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => return (Guarded::new(stream, place), address),
                Err(_) => runtime::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn start() -> (Http, Checks) {
        let ready = Checks::new();
        let endpoints = Endpoints {
            title: "trivet node 7".into(),
            recorder: Recorder::install(),
            live: Checks::new(),
            ready: ready.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        (Http::serve(listener, endpoints).expect("it serves"), ready)
    }

    async fn ask(http: &Http, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(http.address()).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
    }

    #[tokio::test]
    async fn health_names_what_fails() {
        let (http, ready) = start().await;
        assert_eq!(ask(&http, "/readyz").await, (200, "ok\n".into()));
        ready.set("storage", || Ok(()));
        ready.fail("catalog", "the catalog has not been read yet");
        assert_eq!(ask(&http, "/readyz").await, (503, "catalog: the catalog has not been read yet\n".into()));
        let (status, body) = ask(&http, "/readyz?verbose").await;
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(status, 503);
        assert_eq!(body["ok"], false);
        assert_eq!(body["checks"]["storage"]["ok"], true);
        assert_eq!(body["checks"]["catalog"]["problem"], "the catalog has not been read yet");
        assert_eq!(ask(&http, "/livez").await, (200, "ok\n".into()));
        http.close().await;
    }

    #[tokio::test]
    async fn the_page_names_the_endpoints_and_all_of_them_answer() {
        let (http, _) = start().await;
        let (status, page) = ask(&http, "/").await;
        assert_eq!(status, 200);
        assert!(page.starts_with("trivet node 7\n"), "{page}");
        let paths: Vec<_> =
            page.lines().filter_map(|line| line.split_whitespace().next()).filter(|w| w.starts_with('/')).collect();
        assert_eq!(paths.len(), 4);
        for path in paths {
            assert_eq!(ask(&http, path).await.0, 200, "{path}");
        }
        assert!(ask(&http, "/metrics").await.1.contains("process_resident_memory_bytes"));
        assert_eq!(ask(&http, "/nothing").await.0, 404);
        http.close().await;
    }

    #[tokio::test]
    async fn a_closed_port_refuses() {
        let (http, _) = start().await;
        let address = http.address();
        let _idle = TcpStream::connect(address).await.expect("it listens");
        http.close().await;
        assert!(TcpStream::connect(address).await.is_err());
    }
}
