//! The real client on connections in memory: with tokio's clock paused, hours of waiting take no time.

use std::collections::BTreeMap;
use std::io;

use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use sheave::cluster::{Event, Object, ObjectKey};
use sheave::config::Config;
use sheave::plan::{Delta, Planner};
use sheave_apiserver::Api;

/// A client of the double, with a connection for each request.
pub fn client(api: &Api) -> kube::Client {
    let api = api.clone();
    let service = tower::service_fn(move |request| send(api.clone(), request));
    kube::Client::new(service, "default")
}

async fn send(api: Api, mut request: Request<kube::client::Body>) -> io::Result<Response<Incoming>> {
    let headers = request.headers_mut();
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer token-0"));
    headers.insert(HOST, HeaderValue::from_static("kubernetes"));
    let stream = TokioIo::new(api.connect()?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}

/// Everything that a source has told, summed up, and what node-a makes of it.
pub struct Told {
    pub objects: BTreeMap<ObjectKey, Object>,
    pub planner: Planner,
}

impl Told {
    pub fn new() -> Self {
        Self { objects: BTreeMap::new(), planner: Planner::new("node-a", Config::default()) }
    }

    pub fn handle(&mut self, events: Vec<Event>) -> Delta {
        self.note(&events);
        self.planner.handle(events)
    }

    /// Sums up alone, and plans nothing.
    pub fn note(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Apply(object) => drop(self.objects.insert(object.key(), object.clone())),
                Event::Delete(key) => drop(self.objects.remove(key)),
                Event::Synced | Event::Problems(_) | Event::Watch(_) | Event::TriggeredAt(_) => {}
            }
        }
    }
}
