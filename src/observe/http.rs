//! A small HTTP/1.1 server for what this node tells over the network: pages without parameters, GET and HEAD alone.
//!
//! Everything is bounded, since anyone who reaches the node can connect: how many connections there are, how long
//! a request may take to arrive and how long a connection lives. A port that is taken (by a kube-proxy that still
//! runs, for example) is tried again until it is free.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

/// Connections at one time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 64;
/// How long the head of a request may take, from the first moment or the answer before.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection lives, however often it is used: longer than the pause between two scrapes.
const LIFETIME: Duration = Duration::from_secs(180);
/// How long an answer may then still take.
const FAREWELL: Duration = Duration::from_secs(10);
/// Between the first attempts to listen: whoever had the port may just be closing it.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Between later ones.
const PAUSE: Duration = Duration::from_secs(5);

/// What is served.
pub trait Site: Send + Sync + 'static {
    /// The page at a path; `None` where there is none.
    fn page(&self, path: &str) -> impl Future<Output = Option<Page>> + Send;
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its status.
    pub status: StatusCode,
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// Other headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: String,
}

impl Page {
    /// A page of JSON.
    pub fn json(status: StatusCode, body: String) -> Self {
        let headers = vec![(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
        Self { status, content_type: "application/json", headers, body }
    }
}

/// A site at an address. Ends, with its connections, when it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    problem: Arc<Mutex<Option<String>>>,
    task: AbortHandle,
}

impl Server {
    /// Serves `site` on `runtime`; `what` names it in the log. An unspecified address means all addresses of both
    /// families.
    pub fn start<S: Site>(runtime: &Handle, what: String, address: SocketAddr, site: Arc<S>) -> Self {
        let problem = Arc::new(Mutex::new(None));
        let task = runtime.spawn(run(what, address, site, Arc::clone(&problem))).abort_handle();
        Self { address, problem, task }
    }

    /// The address it was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Why it does not listen, if it does not.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run<S: Site>(what: String, address: SocketAddr, site: Arc<S>, problem: Arc<Mutex<Option<String>>>) {
    let tell = |text: Option<String>| {
        let mut problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *problem != text {
            match &text {
                Some(why) => warn!("{what}: {address}: {why}; trying again"),
                None => info!("{what}: {address}: listening now"),
            }
            *problem = text;
        }
    };
    let mut failures = 0_u32;
    let listener = loop {
        match listen(address) {
            Ok(listener) => break listener,
            Err(error) => {
                failures = failures.saturating_add(1);
                if failures > 1 {
                    tell(Some(explain(&error)));
                }
                tokio::time::sleep(if failures > 2 { PAUSE } else { FIRST_PAUSE }).await;
            }
        }
    };
    tell(None);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            // However it ended, it has ended.
            let _ = connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(connection(stream, Arc::clone(&site)))),
            Err(error) => {
                // Out of file descriptors, most likely; trying again at once would not help.
                warn!(%error, "{what}: accept");
                tokio::time::sleep(FIRST_PAUSE).await;
            }
        }
    }
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "{error}: another program has this port, such as kube-proxy: stop it, or choose another port"
            )
        }
        _ => error.to_string(),
    }
}

/// Listens. As with kube-proxy, `0.0.0.0` and `[::]` both mean all addresses of both families, so that one setting
/// does for nodes of any kind; where the kernel has no IPv6, those of IPv4.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return bind(address);
    }
    bind(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port())).or_else(|error| {
        let no_ipv6 = matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
            || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
        if no_ipv6 {
            bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
        } else {
            Err(error)
        }
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        rustix::net::sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
        socket
    };
    // Connections of an agent before linger on the port after their end.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

async fn connection<S: Site>(stream: TcpStream, site: Arc<S>) {
    let service = service_fn(|request| answer(request, Arc::clone(&site)));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // What goes wrong on a connection concerns the other side alone.
    if tokio::time::timeout(LIFETIME, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(FAREWELL, connection).await;
    }
}

async fn answer<S: Site>(
    request: Request<Incoming>,
    site: Arc<S>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = if matches!(*request.method(), Method::GET | Method::HEAD) {
        site.page(request.uri().path())
            .await
            .unwrap_or_else(|| text(StatusCode::NOT_FOUND, "404 page not found\n"))
    } else {
        let mut page = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD alone\n");
        page.headers.push((ALLOW, HeaderValue::from_static("GET, HEAD")));
        page
    };
    let mut response = Response::new(Full::from(page.body));
    *response.status_mut() = page.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    response.headers_mut().extend(page.headers);
    Ok(response)
}

fn text(status: StatusCode, body: &str) -> Page {
    Page { status, content_type: "text/plain; charset=utf-8", headers: Vec::new(), body: body.into() }
}

#[cfg(test)]
#[path = "http_tests.rs"]
pub mod tests;
