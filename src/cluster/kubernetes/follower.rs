//! Follows one resource: asks what the [`Reflector`] wants, reads the answers, and tells what follows from them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::header::{ACCEPT, RETRY_AFTER};
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use super::chance::Chance;
use super::item::{self, Head, Names};
use super::ledger::Ledger;
use super::lines::Lines;
use super::message::{Failure, Message, Page};
use super::outlet::Outlet;
use super::reflector::{Ask, Reflector};
use super::{Pace, Resource};
use crate::cluster::{Event, Watch, WatchState};

/// How many events are told together at most, so that what follows can begin.
const LARGEST_BATCH: usize = 1000;
/// Longest body of an error that is read.
const LONGEST_ERROR: usize = 64 * 1024;

/// One that follows a resource.
pub(super) struct Follower {
    client: Client,
    resource: Resource,
    pace: Pace,
    outlet: Arc<Outlet>,
    chance: Chance,
    reflector: Reflector,
    ledger: Ledger,
    names: Names,
    /// As told last.
    state: Option<WatchState>,
    /// Heard, and not told yet.
    events: Vec<Event>,
    /// What pages of the running list are read into, one after the other.
    buffer: Vec<u8>,
}

/// How a request ended that did not fail.
enum End {
    /// A page was read, or a list has to be asked for otherwise: the next request follows at once.
    Done,
    /// A watch ended, or was cut, after that time.
    Watch(Duration),
}

impl Follower {
    pub(super) fn new(client: Client, resource: Resource, pace: Pace, outlet: Arc<Outlet>) -> Self {
        Self {
            client,
            resource,
            outlet,
            chance: Chance::new(),
            reflector: Reflector::new(resource, pace.clone()),
            pace,
            ledger: Ledger::default(),
            names: Names::default(),
            state: None,
            events: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Follows it until nobody listens any more.
    pub(super) async fn run(mut self) {
        let outlet = self.outlet.clone();
        tokio::select! {
            () = outlet.closed() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&mut self) {
        loop {
            let ask = self.reflector.ask(Instant::now().into_std());
            self.tell();
            let end = match ask {
                Ask::Page { token, limited } => self.page(token, limited).await.map(|()| End::Done),
                Ask::StreamingList => {
                    self.ledger.begin();
                    self.watch(None).await
                }
                Ask::Watch { version } => self.watch(Some(version)).await,
            };
            let (now, wall, chance) = (Instant::now().into_std(), SystemTime::now(), self.chance.next());
            let pause = match end {
                Ok(End::Done) => Duration::ZERO,
                Ok(End::Watch(lasted)) => self.reflector.ended(lasted, now, wall, chance),
                Err(failure) => self.reflector.failed(failure, now, wall, chance),
            };
            self.tell();
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    }

    /// Tells what was heard, and how it stands if that changed.
    fn tell(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        let state = self.reflector.state();
        if self.state.as_ref() != Some(state) {
            let resource = self.resource.name();
            match state {
                WatchState::Down { error, .. } => {
                    warn!(resource, "the API server is not heard, what it said stays in force: {error}");
                }
                WatchState::Watching if matches!(self.state, Some(WatchState::Down { .. })) => {
                    info!(resource, "the API server is heard again");
                }
                WatchState::Listing | WatchState::Watching | WatchState::NotServed => {}
            }
            events.push(Event::Watch(Watch { resource, state: state.clone() }));
            self.state = Some(state.clone());
        }
        let problems = self.ledger.changed_problems();
        self.outlet.tell(self.resource, events, problems, self.reflector.is_complete());
    }

    async fn page(&mut self, token: Option<String>, limited: bool) -> Result<(), Failure> {
        let mut query = String::new();
        if limited {
            query = format!("limit={}", self.resource.page());
        }
        match &token {
            // A token is opaque; servers make it of what needs no encoding, but promise nothing.
            Some(token) => query += &format!("&continue={}", encode(token)),
            None => self.ledger.begin(),
        }
        let response = self.get(&query).await?;
        let buffer = std::mem::take(&mut self.buffer);
        let body = self.body(response, buffer, usize::MAX).await?;
        let Page { items, version, next } = Page::read(&body)?;
        for item in items {
            let head = Head::read(self.resource, item, &mut self.names);
            self.ledger.listed(head, || item::read(self.resource, item, &mut self.names));
        }
        match next {
            Some(token) => {
                self.reflector.page(token);
                self.buffer = body;
            }
            None => {
                self.events = self.ledger.complete();
                self.reflector.complete(version);
            }
        }
        Ok(())
    }

    /// Watches from a version, or from a streaming list on.
    async fn watch(&mut self, version: Option<String>) -> Result<End, Failure> {
        let began = Instant::now();
        // Spread, so that watches that began together do not go on ending together.
        let length = self.pace.watch.mul_f64(1.0 + self.chance.next() / 3.0).as_secs().max(1);
        let mut query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={length}");
        match &version {
            Some(version) => query += &format!("&resourceVersion={}", encode(version)),
            // No version: as of now, never an older state than was told.
            None => query += "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
        }
        let mut listing = version.is_none();
        let mut body = self.get(&query).await?.into_body();
        if !listing {
            self.reflector.watching();
            self.tell();
        }
        // A server that does not end it by itself is gone, and the connection only looks alive.
        let end = began + Duration::from_secs(length) + self.pace.grace;
        let mut lines = Lines::default();
        loop {
            let until = if listing { end.min(Instant::now() + self.pace.quiet) } else { end };
            let Ok(frame) = timeout_at(until, body.frame()).await else {
                if listing && until < end {
                    self.reflector.streaming_list_ignored(Instant::now().into_std());
                    return Ok(End::Done);
                }
                return Ok(End::Watch(began.elapsed()));
            };
            let mut frame = Some(frame);
            // What is there already is told together.
            while let Some(next) = frame.take() {
                let Some(Ok(next)) = next else {
                    self.tell();
                    return Ok(End::Watch(began.elapsed()));
                };
                let Ok(piece) = next.into_data() else { continue };
                let read = lines.push(&piece, |line| self.line(line, &mut listing));
                match read {
                    Ok(()) => {}
                    Err(Stop::NotAList) => {
                        self.reflector.streaming_list_ignored(Instant::now().into_std());
                        return Ok(End::Done);
                    }
                    Err(Stop::Failed(failure)) => {
                        self.tell();
                        return Err(failure);
                    }
                }
                if self.events.len() < LARGEST_BATCH {
                    frame = body.frame().now_or_never();
                }
            }
            self.tell();
        }
    }

    /// Reads one line of a watch. `listing`: the initial events of a streaming list are not complete.
    fn line(&mut self, line: &[u8], listing: &mut bool) -> Result<(), Stop> {
        match Message::read(line).map_err(Stop::Failed)? {
            Message::Applied(object) => {
                let head = Head::read(self.resource, object, &mut self.names);
                let resource = self.resource;
                let read = |names: &mut Names| item::read(resource, object, names);
                if *listing {
                    self.reflector.listing();
                    self.ledger.listed(head, || read(&mut self.names));
                } else {
                    self.advance(&head);
                    self.ledger.applied(head, || read(&mut self.names), &mut self.events);
                }
            }
            Message::Deleted(object) => {
                let head = Head::read(self.resource, object, &mut self.names);
                if *listing {
                    self.ledger.unlisted(&head.key);
                } else {
                    self.advance(&head);
                    self.ledger.deleted(head.key, &mut self.events);
                }
            }
            Message::Bookmark { version, initial_events_end } => match (*listing, initial_events_end) {
                (true, true) => {
                    let version = version.ok_or_else(|| {
                        Stop::Failed(Failure::garbage(
                            "a streaming list ends without metadata.resourceVersion",
                        ))
                    })?;
                    *listing = false;
                    self.events = self.ledger.complete();
                    self.reflector.complete(version);
                    self.reflector.watching();
                }
                // Servers send no other bookmarks before that one.
                (true, false) => return Err(Stop::NotAList),
                (false, _) => version.into_iter().for_each(|version| self.reflector.advance(version)),
            },
            Message::Error(failure) => return Err(Stop::Failed(failure)),
        }
        Ok(())
    }

    fn advance(&mut self, head: &Head) {
        self.reflector.heard();
        if let Some(version) = &head.version {
            self.reflector.advance(version.clone());
        }
    }

    /// Asks, and waits for the head of the answer.
    async fn get(&self, query: &str) -> Result<Response<Body>, Failure> {
        let selector = self.resource.selector().map(|selector| format!("&labelSelector={selector}"));
        let uri = format!("{}?{query}{}", self.resource.path(), selector.unwrap_or_default());
        let request = Request::get(uri)
            .header(ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(|error| Failure::garbage(error.to_string()))?;
        let response = timeout(self.pace.answer, self.client.send(request))
            .await
            .map_err(|_| Failure::connection(format!("no answer within {:?}", self.pace.answer)))?
            .map_err(|error| Failure::connection(chain(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        // Without its body an error is still one.
        let body = timeout(self.pace.answer, self.body(response, Vec::new(), LONGEST_ERROR)).await;
        let body = body.unwrap_or_else(|_| Ok(Vec::new())).unwrap_or_default();
        Err(Failure::refusal(status.as_u16(), after.map(Duration::from_secs), &body))
    }

    /// Reads a body to its end, or to the piece in which it becomes `longest` bytes long, in place of what is in `read`.
    async fn body(
        &self,
        response: Response<Body>,
        mut read: Vec<u8>,
        longest: usize,
    ) -> Result<Vec<u8>, Failure> {
        let mut body = response.into_body();
        read.clear();
        while read.len() < longest {
            let frame = timeout(self.pace.answer, body.frame())
                .await
                .map_err(|_| Failure::connection(format!("an answer stopped for {:?}", self.pace.answer)))?;
            match frame {
                None => break,
                Some(Ok(frame)) => {
                    read.extend_from_slice(frame.data_ref().map_or(&[][..], Bytes::as_ref));
                }
                Some(Err(error)) => return Err(Failure::connection(chain(&error))),
            }
        }
        Ok(read)
    }
}

/// Why a watch is not read any further.
enum Stop {
    /// What was to be a streaming list is a common watch.
    NotAList,
    Failed(Failure),
}

/// An error with all that led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Encodes a value for a query (RFC 3986).
fn encode(value: &str) -> String {
    use std::fmt::Write as _;
    value.bytes().fold(String::with_capacity(value.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
