//! WATCH: changes as they happen, bookmarks, and lists that are told as events.
//!
//! An open watch holds no queue: it knows up to which revision it has told, wakes when there is a new one, and reads
//! on in the store's history.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::api::{Shared, StreamingLists};
use crate::body::{self, Body};
use crate::connection::Connection;
use crate::request::Request;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::status::Status;
use crate::store::{Change, Expired, Object};

/// How long a watch lives that names no `timeoutSeconds`.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// So long before the end the last bookmark is told.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// How many changes are taken from the store at a time.
const BATCH: usize = 64;

/// What is done to a watch that is open.
#[derive(Clone, Debug)]
pub enum Interruption {
    /// The body ends as it does after `timeoutSeconds`.
    End,
    /// The connection is closed in the middle of the body, after the first half of an event if `partial`.
    Close {
        /// Tell the first half of an event before.
        partial: bool,
    },
    /// The same with a RST.
    Reset,
    /// Nothing more is told, and nothing is closed.
    Stall,
    /// An ERROR event and the end: 410 of a watch that is too old, or any other.
    Error(Status),
    /// These bytes, and on it goes.
    Bytes(Bytes),
}

/// An open watch.
pub(crate) struct OpenWatch {
    pub request: Request,
    pub interrupt: mpsc::UnboundedSender<Interruption>,
}

/// Removes the watch from the list of those open.
struct Registration {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.forget_watch(self.id);
    }
}

struct Watch {
    shared: Arc<Shared>,
    connection: Connection,
    resource: Resource,
    selector: Selector,
    /// What it has told of.
    position: u64,
    /// What there was when it began, as far as it is still to be told.
    initial: vec::IntoIter<Arc<Object>>,
    ready: VecDeque<Bytes>,
    end: Option<End>,
    revision: watch::Receiver<u64>,
    orders: mpsc::UnboundedReceiver<Interruption>,
    timeout: Instant,
    /// When the next bookmark is due, if the client wants any.
    bookmark: Option<Instant>,
    _registration: Registration,
}

enum End {
    Clean,
    Broken,
    Silent,
}

/// Answers a WATCH.
pub(crate) async fn watch(
    shared: &Arc<Shared>,
    connection: &Connection,
    resource: Resource,
    request: &Request,
) -> Result<Body, Status> {
    let selector = request.selector()?;
    let asked = request.revision()?;
    let streaming = streaming(shared, request)?;
    if streaming && let Some(asked) = asked {
        shared.reach(asked).await?;
    }
    let timeout = request.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
    let now = Instant::now();
    let timeout = now + timeout.map_or(TIMEOUT, Duration::from_secs);
    let bookmarks = request.flag("allowWatchBookmarks");
    let revision = shared.revision.subscribe();
    let (id, orders) = shared.open_watch(request);
    let mut watch = Watch {
        shared: shared.clone(),
        connection: connection.clone(),
        resource,
        selector,
        position: 0,
        initial: Vec::new().into_iter(),
        ready: VecDeque::new(),
        end: None,
        revision,
        orders,
        timeout,
        bookmark: None,
        _registration: Registration { shared: shared.clone(), id },
    };
    watch.bookmark = bookmarks.then(|| watch.bookmark_after(now));
    match asked.filter(|asked| *asked > 0 && !streaming) {
        Some(asked) => watch.begin_at(asked),
        None => watch.begin_now(streaming && bookmarks),
    }
    Ok(body::chunked(stream::unfold(watch, |mut watch| async move {
        let item = watch.next().await?;
        Some((item, watch))
    })))
}

/// Whether a list is asked for as events; and what is not allowed.
fn streaming(shared: &Shared, request: &Request) -> Result<bool, Status> {
    let asked = request.parameter("sendInitialEvents").is_some();
    let matched = request.parameter("resourceVersionMatch");
    match shared.streaming_lists() {
        StreamingLists::Ignored => Ok(false),
        StreamingLists::Rejected if asked => {
            let message =
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            Err(Status::invalid_options("sendInitialEvents", message))
        }
        _ if !asked && matched.is_some() => {
            let message = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            Err(Status::invalid_options("resourceVersionMatch", message))
        }
        _ if asked && matched != Some("NotOlderThan") => {
            let message = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            Err(Status::invalid_options("resourceVersionMatch", message))
        }
        _ => Ok(request.flag("sendInitialEvents")),
    }
}

impl Watch {
    fn begin_at(&mut self, asked: u64) {
        self.position = asked;
        let horizon = self.shared.store().horizon(self.resource);
        if asked < horizon {
            self.fail(&Status::watch_expired(asked, horizon));
        }
    }

    /// Everything there is, as ADDED.
    fn begin_now(&mut self, with_end: bool) {
        let store = self.shared.store();
        self.position = store.revision();
        let matching = store.objects(self.resource).filter(|object| object.matches(&self.selector));
        let objects: Vec<Arc<Object>> = matching.cloned().collect();
        drop(store);
        self.initial = objects.into_iter();
        if with_end {
            self.ready.push_back(bookmark(self.resource, self.position, true));
        }
    }

    fn bookmark_after(&self, now: Instant) -> Instant {
        let last = self.timeout - LAST_BOOKMARK;
        let regular = now + self.shared.options.bookmark_interval;
        if now < last { regular.min(last) } else { regular }
    }

    fn fail(&mut self, status: &Status) {
        self.ready.push_back(event("ERROR", &status.json()));
        self.end = Some(End::Clean);
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(object) = self.initial.next() {
                return Some(Ok(event("ADDED", &object.json(self.resource))));
            }
            if let Some(bytes) = self.ready.pop_front() {
                return Some(Ok(bytes));
            }
            match self.end {
                None => {}
                Some(End::Clean) => return None,
                Some(End::Broken) => return Some(Err(body::broken().await)),
                Some(End::Silent) => std::future::pending().await,
            }
            self.revision.mark_unchanged();
            if self.read_on() {
                continue;
            }
            let bookmark = self.bookmark.unwrap_or(self.timeout);
            tokio::select! {
                biased;
                order = self.orders.recv() => self.obey(order),
                _ = self.revision.changed() => {}
                () = tokio::time::sleep_until(self.timeout) => self.end = Some(End::Clean),
                () = tokio::time::sleep_until(bookmark), if self.bookmark.is_some() => self.tell_bookmark(),
            }
        }
    }

    /// Tells how far everything has been told. One that waits for a later revision has nothing to tell yet.
    fn tell_bookmark(&mut self) {
        let revision = self.shared.store().revision();
        if revision >= self.position {
            self.ready.push_back(bookmark(self.resource, revision, false));
        }
        self.bookmark = Some(self.bookmark_after(Instant::now()));
    }

    /// Takes over what has changed; whether there was anything.
    fn read_on(&mut self) -> bool {
        let changes = self.shared.store().changes_after(self.resource, self.position, BATCH);
        match changes {
            Ok(changes) => {
                for change in &changes {
                    self.position = change.revision;
                    self.ready.extend(self.event_of(change));
                }
                !changes.is_empty()
            }
            Err(Expired(oldest)) => {
                self.fail(&Status::watch_expired(self.position, oldest));
                true
            }
        }
    }

    /// What the change is to one who sees only what the selector means.
    fn event_of(&self, change: &Change) -> Option<Bytes> {
        let meant = |object: &Option<Arc<Object>>| object.clone().filter(|it| it.matches(&self.selector));
        match (meant(&change.before), meant(&change.after)) {
            (None, None) => None,
            (None, Some(after)) => Some(event("ADDED", &after.json(self.resource))),
            (Some(_), Some(after)) => Some(event("MODIFIED", &after.json(self.resource))),
            (Some(before), None) => Some(event("DELETED", &before.json_at(self.resource, change.revision))),
        }
    }

    fn obey(&mut self, order: Option<Interruption>) {
        match order {
            // Nobody can give orders any more.
            None | Some(Interruption::End) => self.end = Some(End::Clean),
            Some(Interruption::Close { partial }) => {
                if partial {
                    let whole = bookmark(self.resource, self.position, false);
                    self.ready.push_back(whole.slice(..whole.len() / 2));
                }
                self.end = Some(End::Broken);
            }
            Some(Interruption::Reset) => {
                self.connection.reset_when_closed();
                self.end = Some(End::Broken);
            }
            Some(Interruption::Stall) => self.end = Some(End::Silent),
            Some(Interruption::Error(status)) => self.fail(&status),
            Some(Interruption::Bytes(bytes)) => self.ready.push_back(bytes),
        }
    }
}

fn event(kind: &str, object: &str) -> Bytes {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()
}

fn bookmark(resource: Resource, revision: u64, ends_initial: bool) -> Bytes {
    let annotations =
        if ends_initial { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
    let object = format!(
        r#"{{"kind":"{}","apiVersion":"{}","metadata":{{"resourceVersion":"{revision}"{annotations}}}{}}}"#,
        resource.kind(),
        resource.api_version(),
        resource.zero_fields(),
    );
    event("BOOKMARK", &object)
}
