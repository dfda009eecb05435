//! The double on a real network: TLS, and a server that vanishes and comes back.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use sheave_apiserver::{Options, Reach, Resource, Server};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const LIMIT: Duration = Duration::from_secs(20);
const TOKEN: Option<&str> = Some("token-0");

async fn tls(server: &Server) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.ca().as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(server.address()).await?;
    let name = ServerName::from(server.address().ip());
    timeout(LIMIT, TlsConnector::from(Arc::new(config)).connect(name, stream)).await?
}

type Sender = SendRequest<Empty<Bytes>>;

async fn connect(server: &Server) -> io::Result<Sender> {
    let stream = tls(server).await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn get(sender: &mut Sender, uri: &str, token: Option<&str>) -> hyper::Result<Response<Incoming>> {
    sender.ready().await?;
    let mut request = Request::get(uri).header("host", "kubernetes");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    sender.send_request(request.body(Empty::new()).unwrap()).await
}

async fn status(server: &Server, uri: &str, token: Option<&str>) -> u16 {
    let mut sender = connect(server).await.unwrap();
    get(&mut sender, uri, token).await.unwrap().status().as_u16()
}

/// A connection whose watch has told of one Node.
async fn watching(server: &Server) -> (Sender, Incoming) {
    server.api().apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}})).unwrap();
    let mut sender = connect(server).await.unwrap();
    let mut body = get(&mut sender, "/api/v1/nodes?watch=true", TOKEN).await.unwrap().into_body();
    assert!(next(&mut body).await.unwrap().contains("ADDED"));
    (sender, body)
}

/// The next event; `None` if the body breaks off.
async fn next(body: &mut Incoming) -> Option<String> {
    let frame = timeout(LIMIT, body.frame()).await.unwrap().unwrap().ok()?;
    Some(String::from_utf8(frame.into_data().unwrap().into()).unwrap())
}

#[tokio::test]
async fn clients_that_trust_it_and_have_a_token_are_served() {
    let server = Server::start(Options::default()).unwrap();
    assert_eq!(status(&server, "/readyz", None).await, 200);
    assert_eq!(status(&server, "/api/v1/nodes", TOKEN).await, 200);
    server.api().add_token("token-1");
    server.api().revoke_token("token-0");
    assert_eq!(status(&server, "/api/v1/nodes", TOKEN).await, 401);
    assert_eq!(status(&server, "/api/v1/nodes", Some("token-1")).await, 200);
}

#[tokio::test]
async fn credentials_are_written_as_clients_want_them() {
    let server = Server::start(Options { token: "one".into(), ..Options::default() }).unwrap();
    let kubeconfig = server.kubeconfig();
    for part in [&format!("server: https://{}", server.address()), "token: one", "current-context: double"] {
        assert!(kubeconfig.contains(part), "{kubeconfig}");
    }
    let directory = tempfile::tempdir().unwrap();
    for token in ["one", "two"] {
        server.write_service_account(directory.path(), token).unwrap();
        let read = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!((read("token"), read("namespace")), (token.to_owned(), "kube-system".to_owned()));
        assert_eq!(read("ca.crt"), server.ca());
    }
}

#[tokio::test]
async fn a_server_that_refuses_comes_back_at_its_address() {
    let server = Server::start(Options::default()).unwrap();
    let (_sender, mut body) = watching(&server).await;
    server.api().set_reach(Reach::Refused);
    assert_eq!(next(&mut body).await, None);
    let refused = async {
        while tls(&server).await.err().map(|error| error.kind()) != Some(io::ErrorKind::ConnectionRefused) {}
    };
    timeout(LIMIT, refused).await.unwrap();
    server.api().set_reach(Reach::Up);
    let back = async { while connect(&server).await.is_err() {} };
    timeout(LIMIT, back).await.unwrap();
    assert_eq!(status(&server, "/api/v1/nodes/a", TOKEN).await, 200);
}

#[tokio::test]
async fn nothing_moves_while_it_is_silent() {
    let server = Server::start(Options::default()).unwrap();
    let (_sender, mut body) = watching(&server).await;
    server.api().set_reach(Reach::Silent);
    // Connections are told on the server's thread, which nobody here can wait for.
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.api().delete(Resource::Nodes, None, "a");
    assert!(timeout(Duration::from_millis(100), body.frame()).await.is_err());
    server.api().set_reach(Reach::Up);
    assert!(next(&mut body).await.unwrap().contains("DELETED"));
    server.api().cut(false);
    assert_eq!(next(&mut body).await, None);
}

#[tokio::test]
async fn the_listening_socket_can_be_made_by_others() {
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = Box::new(move || first.try_clone());
    let server = Server::bind(Options::default(), bind).unwrap();
    assert_eq!(status(&server, "/version", None).await, 200);
}
