//! HTTP: from a connection to requests, and from answers to responses.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::api::Shared;
use crate::body::{self, Body};
use crate::connection::{self, Connection};
use crate::faults::{Fault, Harm, harm};
use crate::list;
use crate::request::Request;
use crate::status::Status;
use crate::watch;
use crate::write;

/// What a client may send at most.
const MAX_BODY: usize = 1 << 20;

const VERSION: &str = concat!(
    "{\n  \"major\": \"1\",\n  \"minor\": \"36\",\n  \"gitVersion\": \"v1.36.2\",\n  \"gitCommit\": \"\",\n",
    "  \"gitTreeState\": \"clean\",\n  \"buildDate\": \"1970-01-01T00:00:00Z\",\n  \"goVersion\": \"\",\n",
    "  \"compiler\": \"gc\",\n  \"platform\": \"linux/amd64\"\n}"
);

/// Serves a connection to its end.
pub(crate) async fn connection(
    shared: &Arc<Shared>,
    io: impl AsyncRead + AsyncWrite + Unpin,
    connection: Connection,
) {
    let service = hyper::service::service_fn(|request| {
        let (shared, connection) = (shared.clone(), connection.clone());
        async move { Ok::<_, Infallible>(respond(&shared, &connection, request).await) }
    });
    let serve = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(io), service);
    let serve = async {
        // How a connection ends is the client's business, or that of a fault.
        let _ = serve.await;
    };
    connection::while_connected(shared.network.subscribe(), &connection, serve).await;
}

async fn respond(
    shared: &Arc<Shared>,
    connection: &Connection,
    request: hyper::Request<Incoming>,
) -> Response<Body> {
    let (parts, content) = request.into_parts();
    let request = Request::read(&parts);
    let mut injury = None;
    match shared.fault_of(&request) {
        None => {}
        Some(Fault::Status(status)) => return finish(shared, &request, failure(&status)),
        Some(Fault::Answer(answer)) => {
            let headers = answer.headers.clone();
            let mut response = response(answer.status, "application/json", answer.into_body());
            headers.iter().for_each(|(name, value)| set(&mut response, name, value));
            return finish(shared, &request, response);
        }
        Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
        Some(Fault::Cut { after, reset }) => injury = Some(Harm::Cut { after, reset }),
        Some(Fault::Stall { after }) => injury = Some(Harm::Stall { after }),
        Some(Fault::Drip { piece, every }) => injury = Some(Harm::Drip { piece, every }),
    }
    let mut response = answer(shared, connection, &request, &parts.headers, content)
        .await
        .unwrap_or_else(|status| failure(&status));
    if let Some(injury) = injury {
        response = response.map(|body| harm(body, connection, injury));
    }
    finish(shared, &request, response)
}

async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
    request: &Request,
    headers: &HeaderMap,
    content: Incoming,
) -> Result<Response<Body>, Status> {
    shared.access().check(request, headers)?;
    let Some(target) = &request.target else {
        return match request.path.as_str() {
            "/version" => Ok(json(200, body::full(VERSION))),
            "/readyz" | "/livez" | "/healthz" => {
                Ok(response(200, "text/plain; charset=utf-8", body::full("ok")))
            }
            _ => Err(Status::no_resource()),
        };
    };
    let resource = target.resource().filter(|resource| shared.serves(*resource));
    let resource = resource.ok_or_else(Status::no_resource)?;
    let subresource = target.subresource.as_deref();
    if subresource.is_some_and(|name| name != "status") {
        return Err(Status::no_resource());
    }
    match request.verb.as_str() {
        "list" => Ok(json(200, list::list(shared, resource, request).await?)),
        "watch" => Ok(json(200, watch::watch(shared, connection, resource, request).await?)),
        "get" => Ok(object(200, &write::get(shared, resource, target)?)),
        "create" if target.name.is_none() => {
            let content = read(content).await?;
            Ok(object(201, &write::create(shared, resource, target, &content)?))
        }
        "patch" if target.name.is_some() => {
            let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let content = read(content).await?;
            let patched = write::patch(shared, resource, target, media_type.unwrap_or_default(), &content)?;
            Ok(object(200, &patched))
        }
        _ => Err(Status::method_not_allowed()),
    }
}

async fn read(content: Incoming) -> Result<hyper::body::Bytes, Status> {
    let collected = Limited::new(content, MAX_BODY).collect().await;
    collected.map(|content| content.to_bytes()).map_err(|error| Status::bad_request(error.to_string()))
}

fn object(status: u16, text: &str) -> Response<Body> {
    json(status, body::of_parts(text.len() + 1, std::iter::once(format!("{text}\n").into())))
}

fn failure(status: &Status) -> Response<Body> {
    let mut response = json(status.code, body::full(status.json() + "\n"));
    if let Some(seconds) = status.retry_after {
        set(&mut response, "retry-after", &seconds.to_string());
    }
    if status.code == 403 {
        set(&mut response, "x-content-type-options", "nosniff");
    }
    response
}

fn json(status: u16, body: Body) -> Response<Body> {
    response(status, "application/json", body)
}

fn response(status: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    // Whoever injects a status that is none gets this one.
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Sets a header; what can be none is left out.
fn set(response: &mut Response<Body>, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        response.headers_mut().insert(name, value);
    }
}

fn finish(shared: &Shared, request: &Request, mut response: Response<Body>) -> Response<Body> {
    let id = shared.next_id();
    set(&mut response, "audit-id", &format!("00000000-0000-4000-8000-{id:012x}"));
    set(&mut response, "cache-control", "no-cache, private");
    shared.count(request, response.status().as_u16());
    response
}
