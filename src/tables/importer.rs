//! Routes of peers on their way to the kernel: a thread of their own, so that a path that is lost is left at once, whatever the agent's loop
//! is at, and that a slow kernel costs no keepalive.
//!
//! ```text
//! Speaker ──LearntRoutes──┐
//! links ──Surroundings────┼─► [Importer] ──► ImportTable ──► kernel
//! Announcer ──Order───────┘        └──► ImportState ──► status, metrics
//! ```

use std::net::IpAddr;
use std::time::{Duration, Instant};
use std::{io, thread};

use sheave_bgp::LearntRoutes;
use tokio::runtime::{self, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::debug;

use super::import::{ImportCounts, ImportTable};
use super::surroundings::Surroundings;

/// How many changes are taken at a time: what else waits for the thread is not kept for long.
const BATCH: usize = 1000;
/// How often what waits is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often the kernel is looked at for what others changed.
const CHECK: Duration = Duration::from_secs(15);
/// Counting what is told is followed by a rest at least that many times as long.
const REST: u32 = 20;

/// Has the kernel follow what is learnt. Dropped, it ends, and routes stay as they are.
#[derive(Debug)]
pub struct Importer {
    orders: mpsc::UnboundedSender<Order>,
    state: watch::Receiver<ImportState>,
}

/// What is imported.
#[derive(Debug)]
pub struct Imports {
    /// What peers announce; `None`: there are no sessions.
    pub learnt: Option<LearntRoutes>,
    /// Someone is to announce something, now or later; otherwise nothing is kept for it.
    pub expected: bool,
    /// There is no peer that has yet to be found, and may then announce something.
    pub all_found: bool,
    /// This node's own addresses: the first of each family is the source of what it sends.
    pub addresses: Vec<IpAddr>,
    /// How long routes of an agent before are kept until peers have told all.
    pub patience: Duration,
}

/// What has become of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportState {
    /// How many routes there are.
    pub counts: ImportCounts,
    /// Why something is not in the table, or still there.
    pub problem: Option<String>,
}

#[derive(Debug)]
enum Order {
    Wait,
    Follow(Imports),
    Leave { patience: Duration, done: oneshot::Sender<()> },
    Remove { done: oneshot::Sender<()> },
}

impl Importer {
    /// Starts the thread; what is in the kernel stays for now. The network namespace is that of the calling thread.
    ///
    /// # Errors
    /// When there is no thread or no rtnetlink socket to be had.
    pub fn start(table: u32, links: watch::Receiver<Option<Surroundings>>) -> io::Result<Self> {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (sender, state) = watch::channel(ImportState::default());
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let work = move || {
            let (runtime, table) = match open(table) {
                Ok(opened) => opened,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let task = Task {
                table,
                orders: inbox,
                learning: None,
                all_found: false,
                links,
                state: sender,
                tell_after: Instant::now(),
                check_at: Instant::now() + CHECK,
            };
            if ready.send(Ok(())).is_ok() {
                runtime.block_on(task.run());
            }
        };
        thread::Builder::new().name("import".into()).spawn(work)?;
        started.recv().map_err(io::Error::other)??;
        Ok(Self { orders, state })
    }

    /// Who is to announce something is about to be different: until [`Importer::follow`] nobody is taken to have told all.
    pub fn wait(&self) {
        let _ = self.orders.send(Order::Wait);
    }

    /// Imports these from now on.
    pub fn follow(&self, imports: Imports) {
        let _ = self.orders.send(Order::Follow(imports));
    }

    /// The sessions are about to end, and others may begin: what they brought is kept until those have told all, but not for longer than
    /// that. Once this returns, what their end changes is not taken any more.
    pub async fn leave(&self, patience: Duration) {
        self.have_done(|done| Order::Leave { patience, done }).await;
    }

    /// Removes what is there, as far as it goes, and ends.
    pub async fn remove(&self) {
        self.have_done(|done| Order::Remove { done }).await;
    }

    async fn have_done(&self, order: impl FnOnce(oneshot::Sender<()>) -> Order) {
        let (done, is_done) = oneshot::channel();
        if self.orders.send(order(done)).is_ok() {
            let _ = is_done.await;
        }
    }

    /// What has become of it.
    pub fn state(&self) -> ImportState {
        let mut state = self.state.borrow().clone();
        if self.state.has_changed().is_err() {
            state.problem =
                Some("the import thread ended: this is a bug; learnt routes stay as they are".into());
        }
        state
    }
}

fn open(table: u32) -> io::Result<(Runtime, ImportTable)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let table = {
        let _guard = runtime.enter();
        ImportTable::open(table)?
    };
    Ok((runtime, table))
}

/// What is learnt, and the news of it.
struct Learning {
    routes: LearntRoutes,
    news: watch::Receiver<()>,
}

impl Learning {
    async fn changed(learning: &mut Option<Self>) {
        if let Some(Self { news, .. }) = learning
            && news.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

struct Task {
    orders: mpsc::UnboundedReceiver<Order>,
    table: ImportTable,
    learning: Option<Learning>,
    /// Everyone who is to announce something is known.
    all_found: bool,
    links: watch::Receiver<Option<Surroundings>>,
    state: watch::Sender<ImportState>,
    tell_after: Instant,
    check_at: Instant,
}

impl Task {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Whichever is ready, by chance: none keeps the others from their turn.
            tokio::select! {
                order = self.orders.recv() => match order {
                    None => return,
                    Some(Order::Wait) => self.all_found = false,
                    Some(Order::Follow(imports)) => self.follow(imports).await,
                    Some(Order::Leave { patience, done }) => {
                        self.learning = None;
                        self.table.adopt(Instant::now() + patience);
                        let _ = done.send(());
                    }
                    Some(Order::Remove { done }) => {
                        self.table.remove().await;
                        let _ = done.send(());
                        return;
                    }
                },
                () = Learning::changed(&mut self.learning) => self.take().await,
                Ok(()) = self.links.changed() => self.follow_links(),
                _ = ticks.tick() => self.tick().await,
            }
            self.tell();
        }
    }

    async fn follow(&mut self, imports: Imports) {
        let Imports { learnt, expected, all_found, addresses, patience } = imports;
        self.all_found = all_found;
        self.table.source_from(&addresses);
        self.table.bound(Instant::now() + patience);
        self.learning = learnt.map(|routes| {
            let mut news = routes.news();
            // Something may have been learnt before.
            news.mark_changed();
            Learning { routes, news }
        });
        self.follow_links();
        if !expected {
            self.table.settle().await;
        }
    }

    /// Has the decision process know which next hops can be reached now.
    fn follow_links(&mut self) {
        let links = self.links.borrow_and_update().as_ref().map(Surroundings::links);
        if let (Some(Learning { routes, .. }), Some(links)) = (&self.learning, links) {
            routes.set_links(links);
        }
    }

    /// Has the kernel follow what became different, or the first part of it.
    async fn take(&mut self) {
        let Some(Learning { routes, news }) = &mut self.learning else { return };
        let began = Instant::now();
        let changes = routes.take(BATCH);
        if changes.len() == BATCH {
            news.mark_changed();
        }
        let prefixes = changes.len();
        if prefixes > 0 {
            self.table.change(changes).await;
            debug!(prefixes, took = ?began.elapsed(), "learnt routes changed");
        }
    }

    async fn tick(&mut self) {
        // Without sessions nothing is told, and nothing is left to take in; nor has a peer told all that was not found yet.
        let (complete, drained) = self.learning.as_ref().map_or((false, true), |learning| {
            let learnt = learning.routes.status();
            // Looked at last: who was asked for less has been told to wait before.
            (learnt.complete && self.all_found && self.orders.is_empty(), learnt.pending == 0)
        });
        self.table.tick(Instant::now(), complete, drained).await;
        if self.check_at <= Instant::now() {
            self.table.check().await;
            self.check_at = Instant::now() + CHECK;
        }
    }

    /// What is not told for the rest's sake, a later tick tells.
    fn tell(&mut self) {
        let began = Instant::now();
        if began < self.tell_after {
            return;
        }
        let state = ImportState { counts: self.table.counts(), problem: self.table.problem() };
        self.state.send_if_modified(|told| {
            let differs = *told != state;
            *told = state;
            differs
        });
        self.tell_after = Instant::now() + began.elapsed() * REST;
    }
}
