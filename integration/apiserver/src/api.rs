//! The API and how it is controlled.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};

use crate::access::Access;
use crate::connection::{Connection, Network, Reach};
use crate::faults::{Fault, Faults};
use crate::request::Request;
use crate::resource::Resource;
use crate::serve;
use crate::status::Status;
use crate::store::{Store, key};
use crate::watch::{Interruption, OpenWatch};

/// What an API server is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many changes of each resource are kept for watches and earlier lists.
    pub history: usize,
    /// How often a watch gets a bookmark.
    pub bookmark_interval: Duration,
    /// How long is waited for a resourceVersion that does not exist yet.
    pub future_wait: Duration,
    /// The user that everything is allowed to.
    pub user: String,
    /// That user's token.
    pub token: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            history: 10_000,
            bookmark_interval: Duration::from_secs(60),
            future_wait: Duration::from_secs(3),
            user: "system:serviceaccount:kube-system:sheave".into(),
            token: "token-0".into(),
        }
    }
}

/// What becomes of a watch with `sendInitialEvents`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamingLists {
    /// The list is told as events.
    #[default]
    Served,
    /// 422: the API server knows them, but has them switched off.
    Rejected,
    /// The API server is so old that it does not know the parameter.
    Ignored,
}

/// Of a request that was answered: verb, resource (or path), and status.
pub type Count = (String, String, u16);

/// An API server without a network: objects, faults and the protocol. A clone is another handle on the same one.
///
/// [`Server`](crate::Server) puts it on the network; [`Api::connect`] is a connection in memory.
#[derive(Clone)]
pub struct Api {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub options: Options,
    store: Mutex<Store>,
    /// The store's revision, for those who wait.
    pub revision: watch::Sender<u64>,
    pub network: watch::Sender<Network>,
    access: Mutex<Access>,
    faults: Mutex<Faults>,
    unserved: Mutex<BTreeSet<Resource>>,
    streaming: Mutex<StreamingLists>,
    watches: Mutex<BTreeMap<u64, OpenWatch>>,
    counts: Mutex<BTreeMap<Count, u64>>,
    next_id: AtomicU64,
}

/// What is behind a mutex is whole between any two statements: a panic elsewhere has not harmed it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    pub fn access(&self) -> MutexGuard<'_, Access> {
        lock(&self.access)
    }

    pub fn fault_of(&self, request: &Request) -> Option<Fault> {
        lock(&self.faults).of(request)
    }

    pub fn serves(&self, resource: Resource) -> bool {
        !lock(&self.unserved).contains(&resource)
    }

    pub fn streaming_lists(&self) -> StreamingLists {
        *lock(&self.streaming)
    }

    /// Tells those who wait that the store may have changed.
    pub fn announce(&self) {
        let revision = self.store().revision();
        self.revision.send_replace(revision);
    }

    /// Waits until there is that revision, but not for long.
    pub async fn reach(&self, asked: u64) -> Result<(), Status> {
        let mut revision = self.revision.subscribe();
        let there = revision.wait_for(|revision| *revision >= asked);
        match tokio::time::timeout(self.options.future_wait, there).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Status::too_large_version(asked, self.store().revision())),
        }
    }

    pub fn count(&self, request: &Request, status: u16) {
        let resource = match &request.target {
            Some(target) => target.resource.clone(),
            None => request.path.clone(),
        };
        *lock(&self.counts).entry((request.verb.clone(), resource, status)).or_default() += 1;
    }

    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub fn open_watch(&self, request: &Request) -> (u64, mpsc::UnboundedReceiver<Interruption>) {
        let (interrupt, orders) = mpsc::unbounded_channel();
        let id = self.next_id();
        lock(&self.watches).insert(id, OpenWatch { request: request.clone(), interrupt });
        (id, orders)
    }

    pub fn forget_watch(&self, id: u64) {
        lock(&self.watches).remove(&id);
    }
}

impl Api {
    /// One without objects.
    pub fn new(options: Options) -> Self {
        let store = Store::new(options.history);
        let access = Access {
            tokens: [(options.token.clone(), options.user.clone())].into(),
            forbidden: BTreeSet::new(),
        };
        let shared = Shared {
            revision: watch::Sender::new(store.revision()),
            store: Mutex::new(store),
            options,
            network: watch::Sender::default(),
            access: Mutex::new(access),
            faults: Mutex::default(),
            unserved: Mutex::default(),
            streaming: Mutex::default(),
            watches: Mutex::default(),
            counts: Mutex::default(),
            next_id: AtomicU64::new(1),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Creates or replaces an object, by its `apiVersion`, `kind` and `metadata`; returns the revision.
    pub fn apply(&self, object: Value) -> Result<u64> {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let resource = Resource::of(&api_version, &kind)
            .with_context(|| format!("{kind} of {api_version} is not known here"))?;
        let mut store = self.shared.store();
        store.apply(resource, object)?;
        let revision = store.revision();
        drop(store);
        self.shared.announce();
        Ok(revision)
    }

    /// Deletes an object; whether there was one. `namespace` is `None` where the resource has none.
    pub fn delete(&self, resource: Resource, namespace: Option<&str>, name: &str) -> bool {
        let deleted = self.shared.store().delete(resource, &key(resource, namespace, name));
        self.shared.announce();
        deleted
    }

    /// An object.
    pub fn object(&self, resource: Resource, namespace: Option<&str>, name: &str) -> Option<Value> {
        let store = self.shared.store();
        store.object(resource, &key(resource, namespace, name)).map(|object| object.value(resource))
    }

    /// All objects of a resource, in the order of a list.
    pub fn objects(&self, resource: Resource) -> Vec<Value> {
        let objects: Vec<_> = self.shared.store().objects(resource).cloned().collect();
        objects.iter().map(|object| object.value(resource)).collect()
    }

    /// Puts in a list as another API server told it, byte for byte; the revision becomes the list's.
    pub fn load_list(&self, body: &str) -> Result<()> {
        self.shared.store().load_list(body)?;
        self.shared.announce();
        Ok(())
    }

    /// Makes the change that a line of another API server's watch tells, at that server's revision.
    pub fn load_event(&self, line: &str) -> Result<()> {
        self.shared.store().load_event(line)?;
        self.shared.announce();
        Ok(())
    }

    /// The latest revision.
    pub fn revision(&self) -> u64 {
        self.shared.store().revision()
    }

    /// Forgets history: what asks for an earlier revision than this one is told 410.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Serves a resource, as in the beginning, or answers 404.
    pub fn set_served(&self, resource: Resource, served: bool) {
        let mut unserved = lock(&self.shared.unserved);
        if served {
            unserved.remove(&resource)
        } else {
            unserved.insert(resource)
        };
    }

    /// What becomes of lists that are asked for as events.
    pub fn set_streaming_lists(&self, streaming: StreamingLists) {
        *lock(&self.shared.streaming) = streaming;
    }

    /// Takes this token from now on.
    pub fn add_token(&self, token: &str) {
        let user = self.shared.options.user.clone();
        self.shared.access().tokens.insert(token.to_owned(), user);
    }

    /// Does not take this token any more.
    pub fn revoke_token(&self, token: &str) {
        self.shared.access().tokens.remove(token);
    }

    /// Answers 403 to that verb on that resource (its name in paths), or no longer.
    pub fn set_forbidden(&self, verb: &str, resource: &str, forbidden: bool) {
        let mut access = self.shared.access();
        let pair = (verb.to_owned(), resource.to_owned());
        if forbidden {
            access.forbidden.insert(pair)
        } else {
            access.forbidden.remove(&pair)
        };
    }

    /// Asks `choose` about every request from now on; the first of all that name a fault decides.
    pub fn inject(&self, choose: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        lock(&self.shared.faults).add(choose);
    }

    /// Ends what [`Api::inject`] began; answers that have begun go on as they are.
    pub fn clear_faults(&self) {
        lock(&self.shared.faults).clear();
    }

    /// Does that to all open watches that match; returns how many these are.
    pub fn interrupt(&self, matches: impl Fn(&Request) -> bool, interruption: &Interruption) -> usize {
        let watches = lock(&self.shared.watches);
        let matching = watches.values().filter(|watch| matches(&watch.request));
        // One that has just ended is not there to be interrupted.
        matching.filter(|watch| watch.interrupt.send(interruption.clone()).is_ok()).count()
    }

    /// The requests of all watches that are open, as far as this side knows.
    pub fn watches(&self) -> Vec<Request> {
        lock(&self.shared.watches).values().map(|watch| watch.request.clone()).collect()
    }

    /// How many requests were answered (a watch: begun to be answered).
    pub fn counts(&self) -> BTreeMap<Count, u64> {
        lock(&self.shared.counts).clone()
    }

    /// Lets the server vanish and come back.
    pub fn set_reach(&self, reach: Reach) {
        self.shared.network.send_modify(|network| network.reach = reach);
    }

    /// Ends all connections, with a RST if `reset`.
    pub fn cut(&self, reset: bool) {
        self.shared.network.send_modify(|network| {
            network.cuts += 1;
            network.reset = reset;
        });
    }

    /// A connection in memory, without TLS; served by a task of the current tokio runtime.
    pub fn connect(&self) -> io::Result<DuplexStream> {
        if self.shared.network.borrow().reach == Reach::Refused {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (client, server) = tokio::io::duplex(64 * 1024);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            serve::connection(&shared, server, Connection::new(|| {})).await;
        });
        Ok(client)
    }
}
