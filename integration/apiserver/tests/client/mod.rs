//! A plain HTTP client on connections in memory.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use sheave_apiserver::Api;

/// Sends one request on a connection of its own.
pub async fn send(api: &Api, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let io = TokioIo::new(api.connect().unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

/// A request without a body.
pub fn get(uri: &str, token: Option<&str>) -> Request<Full<Bytes>> {
    request("GET", uri, token, "", "")
}

/// Any request.
pub fn request(
    method: &str,
    uri: &str,
    token: Option<&str>,
    content_type: &str,
    body: &str,
) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(uri).header("host", "kubernetes");
    if let Some(token) = token {
        builder = builder.header("authorization", format!("Bearer {token}"));
    }
    if !content_type.is_empty() {
        builder = builder.header("content-type", content_type);
    }
    builder.body(Full::from(body.to_owned())).unwrap()
}
