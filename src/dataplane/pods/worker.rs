//! The thread that works in the namespaces of pods, so that none of them delays anything else of the node's.
//!
//! ```text
//! Pods ──[Order]──► this thread: owner (how the node reaches it), namespaces (which one has the address)
//!   ▲                     │
//!   └────[Outcome]────────┴──► a thread for each namespace that is worked in ([`super::enter`])
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rtnetlink::Handle;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::enter::{AT_ONCE, Id, Namespace, apart, within};
use super::inside::Inside;
use super::namespaces::Finder;
use super::owner::{self, Device, Path};
use super::{PodError, kernel};

/// How long the work in one namespace may take.
pub const LIMIT: Duration = Duration::from_secs(10);

/// How often a look is repeated before what it did not find counts as gone: a listing that others' changes interrupt may lack
/// what is there, and the library does not tell (`NLM_F_DUMP_INTR`).
const LOOKS: usize = 3;
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(100);

/// Makes the namespace of an endpoint what it must be.
#[derive(Debug)]
pub struct Order {
    /// Whose.
    pub endpoint: IpAddr,
    /// What it must hold; `None`: nothing of ours.
    pub wanted: Option<Inside>,
    /// Where it was found the last time.
    pub at: Option<Namespace>,
}

/// What came of an [`Order`].
#[derive(Debug)]
pub struct Outcome {
    /// Whose.
    pub endpoint: IpAddr,
    /// What was ordered.
    pub wanted: Option<Inside>,
    /// As ordered, or why not.
    pub result: Result<Done, PodError>,
}

/// How an endpoint's namespace was made what was ordered.
#[derive(Debug)]
pub struct Done {
    /// Which one it is; `None` where nothing is in it any more.
    pub namespace: Option<Namespace>,
    /// Something had to be done.
    pub changed: bool,
    /// The node's device towards it, where its replies are checked.
    pub device: Option<Device>,
}

/// The thread, as seen from the loop. It ends when this is dropped.
#[derive(Debug)]
pub struct Worker {
    orders: UnboundedSender<Vec<Order>>,
    outcomes: UnboundedReceiver<Outcome>,
}

impl Worker {
    /// Starts it, in the network namespace of this thread: the node's.
    ///
    /// # Errors
    /// [`PodError::Thread`] with what the system says.
    pub fn start() -> Result<Self, PodError> {
        let (orders, taken) = unbounded_channel();
        let (told, outcomes) = unbounded_channel();
        let finder = Finder::new().map_err(PodError::Thread)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PodError::Thread)?;
        let (connection, handle) = {
            let _inside = runtime.enter();
            let (connection, handle, _) =
                rtnetlink::new_connection_with_strict_check().map_err(PodError::Thread)?;
            (connection, handle)
        };
        let work = move || {
            runtime.block_on(async {
                tokio::spawn(connection);
                Bench { finder, handle, told, places: Arc::new(Semaphore::new(AT_ONCE)) }.run(taken).await;
            });
        };
        std::thread::Builder::new().name("pods".into()).spawn(work).map_err(PodError::Thread)?;
        Ok(Self { orders, outcomes })
    }

    /// One whose thread never answers, with its ends of both channels.
    #[cfg(test)]
    pub fn hanging() -> (Self, UnboundedReceiver<Vec<Order>>, UnboundedSender<Outcome>) {
        let (orders, taken) = unbounded_channel();
        let (told, outcomes) = unbounded_channel();
        (Self { orders, outcomes }, taken, told)
    }

    /// Has these done. Each gets an [`Outcome`]; gives them back where the thread has ended.
    pub fn order(&self, orders: Vec<Order>) -> Result<(), Vec<Order>> {
        self.orders.send(orders).map_err(|error| error.0)
    }

    /// The next outcome that has come, if any has.
    pub fn next(&mut self) -> Option<Outcome> {
        self.outcomes.try_recv().ok()
    }

    /// Waits for the next outcome; for ever where none can come. Nothing is lost where the wait is given up.
    pub async fn wait(&mut self) -> Outcome {
        match self.outcomes.recv().await {
            Some(outcome) => outcome,
            None => std::future::pending().await,
        }
    }
}

/// What the thread works with.
struct Bench {
    finder: Finder,
    /// Of the node's namespace.
    handle: Handle,
    told: UnboundedSender<Outcome>,
    places: Arc<Semaphore>,
}

impl Bench {
    async fn run(mut self, mut taken: UnboundedReceiver<Vec<Order>>) {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                orders = taken.recv() => {
                    let Some(mut orders) = orders else { return };
                    while let Ok(more) = taken.try_recv() {
                        orders.extend(more);
                    }
                    self.take(orders, &mut running).await;
                }
                Some(ended) = running.join_next() => {
                    // It does not have the address that it was known for.
                    if let Ok(Some(id)) = ended {
                        self.finder.forget(id);
                    }
                }
            }
        }
    }

    /// Finds where the orders are to be carried out, and begins with it.
    async fn take(&mut self, orders: Vec<Order>, running: &mut JoinSet<Option<Id>>) {
        let (mut placed, mut unplaced) = (Vec::new(), Vec::new());
        for order in orders {
            match self.at(&order).await {
                Ok((path, true)) => placed.push((order, path)),
                Ok((path, false)) => unplaced.push((order, path)),
                Err(error) => self.tell(order, Err(error)),
            }
        }
        let wanted = unplaced.iter().map(|(order, _)| order.endpoint).collect();
        let of = |endpoint| unplaced.iter().find(|(order, _)| order.endpoint == endpoint);
        let will_do = |endpoint, found: &[Namespace]| {
            of(endpoint).is_some_and(|(order, path)| choose(order, path.as_ref(), found).is_ok())
        };
        let mut found = self.finder.locate(&wanted, will_do).await;
        for (order, path) in unplaced {
            let namespaces = found.remove(&order.endpoint).unwrap_or(Err(PodError::NotFound));
            let namespaces = namespaces.and_then(|found| choose(&order, path.as_ref(), &found));
            self.begin(order, namespaces, path, running);
        }
        for (order, path) in placed {
            let namespaces = order.at.clone().into_iter().collect();
            self.begin(order, Ok(namespaces), path, running);
        }
    }

    /// How the node reaches an endpoint, and whether it still is where it was.
    async fn at(&self, order: &Order) -> Result<(Option<Path>, bool), PodError> {
        let at = order.at.as_ref().filter(|namespace| namespace.exists());
        if order.wanted.is_none() {
            return Ok((None, at.is_some()));
        }
        let look = async || {
            let path = owner::path_to(&self.handle, order.endpoint).await?;
            let leads = |at| path.as_ref().map_or(Ok(true), |path| path.leads_to(at));
            let leads = at.map_or(Ok(false), leads)?;
            Ok((path, leads))
        };
        if at.is_some() {
            for _ in 1..LOOKS {
                if let Ok((path, true)) = look().await {
                    return Ok((path, true));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        look().await
    }

    fn begin(
        &mut self,
        order: Order,
        namespaces: Result<Vec<Namespace>, PodError>,
        path: Option<Path>,
        running: &mut JoinSet<Option<Id>>,
    ) {
        let endpoint = order.endpoint;
        let begun = namespaces.and_then(|namespaces| {
            let begin = |namespace: Namespace| {
                let token = self.finder.busy.begin(namespace.id, Some(endpoint)).ok_or(PodError::Busy)?;
                Ok((namespace, token))
            };
            namespaces.into_iter().map(begin).collect::<Result<Vec<_>, PodError>>()
        });
        let work = match begun {
            Ok(work) => work,
            Err(error) => return self.tell(order, Err(error)),
        };
        let (told, places) = (self.told.clone(), Arc::clone(&self.places));
        running.spawn(async move {
            // Never closed.
            let _place = places.acquire_owned().await.ok();
            let mut done = Done { namespace: None, changed: false, device: path.map(|path| path.device) };
            let (mut result, mut stale) = (Ok(()), None);
            for (namespace, token) in work {
                let (entered, wanted) = (namespace.clone(), order.wanted.clone());
                let worked = apart(LIMIT, move || {
                    let _token = token;
                    within(&entered, async |handle| match &wanted {
                        Some(inside) => ensure(&handle, inside).await,
                        None => kernel::clear(&handle, endpoint).await,
                    })
                });
                match worked.await {
                    Ok(changed) => done.changed |= changed,
                    Err(error) => {
                        stale = matches!(error, PodError::NotFound).then_some(namespace.id);
                        result = Err(error);
                    }
                }
                done.namespace = order.wanted.is_some().then_some(namespace);
            }
            let Order { endpoint, wanted, .. } = order;
            // Nobody may wait any more.
            let _ = told.send(Outcome { endpoint, wanted, result: result.map(|()| done) });
            stale
        });
    }

    fn tell(&self, order: Order, result: Result<Done, PodError>) {
        let Order { endpoint, wanted, .. } = order;
        // Nobody may wait any more.
        let _ = self.told.send(Outcome { endpoint, wanted, result });
    }
}

/// Where an order is to be carried out, of the namespaces that have the endpoint's address.
fn choose(order: &Order, path: Option<&Path>, found: &[Namespace]) -> Result<Vec<Namespace>, PodError> {
    match order.wanted {
        Some(_) => owner::choose(found, path).map(|one| vec![one]),
        // What is ours is told by what it is: where there is none, nothing is removed.
        None if found.is_empty() => Err(PodError::NotFound),
        None => Ok(found.to_vec()),
    }
}

/// Looks again at what seems to be missing or could not be done.
async fn ensure(handle: &Handle, inside: &Inside) -> Result<bool, PodError> {
    for _ in 1..LOOKS {
        match kernel::ensure(handle, inside).await {
            Err(_) => tokio::time::sleep(PAUSE).await,
            done => return done,
        }
    }
    kernel::ensure(handle, inside).await
}
