//! A small HTTP/1.1 server for what this node tells over the network: pages without parameters, GET and HEAD alone.
//!
//! Everything is bounded, since anyone who reaches the node can connect: how many connections there are, how long
//! a request may take to arrive and how long a connection lives. Where there are too many, whoever has most of them
//! loses the oldest, so that nobody can keep others out. A port that is taken (by a kube-proxy that still runs, for
//! example) is tried again until it is free.

use std::collections::{BTreeMap, VecDeque};
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
use tokio::task::AbortHandle;
use tracing::{info, warn};

/// Connections at one time.
const MAX_CONNECTIONS: usize = 64;
/// Between the first attempts to listen: whoever had the port may just be closing it.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Between later ones.
const PAUSE: Duration = Duration::from_secs(5);

/// How connections are used, and how long they may take.
#[derive(Debug)]
pub struct Use {
    /// For more than one request.
    keep_alive: bool,
    /// How long the head of a request may take, from the first moment or the answer before.
    head: Duration,
    /// How long a connection lives, however often it is used.
    life: Duration,
    /// How long an answer may then still take.
    farewell: Duration,
}

impl Use {
    /// For one request: whoever asks is near, and so is the answer.
    pub const ONCE: Self = Self {
        keep_alive: false,
        head: Duration::from_secs(2),
        life: Duration::from_secs(3),
        farewell: Duration::from_secs(1),
    };
    /// For requests now and again, less than a minute or two apart, with long answers.
    pub const OFTEN: Self = Self {
        keep_alive: true,
        head: Duration::from_secs(10),
        life: Duration::from_secs(180),
        farewell: Duration::from_secs(10),
    };
}

/// What is served.
pub trait Site: Send + Sync + 'static {
    /// How it is visited.
    const USE: Use = Use::ONCE;

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
    pub body: Bytes,
}

impl Page {
    /// A page of JSON.
    pub fn json(status: StatusCode, body: String) -> Self {
        let headers = vec![(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
        Self { status, content_type: "application/json", headers, body: body.into() }
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
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => connections.admit(peer.ip(), connection(stream, Arc::clone(&site))),
            Err(error) => {
                // Out of file descriptors, most likely; trying again at once would not help.
                warn!(%error, "{what}: accept");
                tokio::time::sleep(FIRST_PAUSE).await;
            }
        }
    }
}

/// Those of a server, the oldest first.
#[derive(Default)]
struct Connections(VecDeque<(IpAddr, Connection)>);

impl Connections {
    /// Serves one more. Room is made at the cost of the address that has most: one that asks for little is not kept
    /// out by one that holds all it can.
    fn admit(&mut self, source: IpAddr, connection: impl Future<Output = ()> + Send + 'static) {
        self.0.retain(|(_, connection)| !connection.0.is_finished());
        if self.0.len() >= MAX_CONNECTIONS {
            let mut counts = BTreeMap::new();
            for (source, _) in &self.0 {
                *counts.entry(*source).or_insert(0_usize) += 1;
            }
            let most = counts.values().max().copied();
            let oldest = self.0.iter().position(|(source, _)| counts.get(source).copied() == most);
            drop(oldest.and_then(|oldest| self.0.remove(oldest)));
        }
        self.0.push_back((source, Connection(tokio::spawn(connection).abort_handle())));
    }
}

/// Ends when it is dropped.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
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
        .keep_alive(S::USE.keep_alive)
        .header_read_timeout(S::USE.head)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // What goes wrong on a connection concerns the other side alone.
    if tokio::time::timeout(S::USE.life, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(S::USE.farewell, connection).await;
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

fn text(status: StatusCode, body: &'static str) -> Page {
    Page {
        status,
        content_type: "text/plain; charset=utf-8",
        headers: Vec::new(),
        body: Bytes::from_static(body.as_bytes()),
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
pub mod tests;
