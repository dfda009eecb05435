//! What conntrack remembers of endpoints that went is forgotten.
//!
//! A rewritten connection is an entry that no rule is asked about any more: it goes on to its endpoint whatever the
//! rules say by then. Where that is gone, a client that goes on would reach nobody.
//!
//! ```text
//! netfilter ──[Stale]──► [Conntrack] ──► thread ──ctnetlink──► dump, filtered; each match deleted by tuple and id
//!                             ▲              │
//!   problems, metrics ────────┴── [State] ◄──┘
//! ```
//!
//! The kernel finds entries by whole tuples alone, the client's end included, so that all are listed: that takes tens of
//! milliseconds with 100,000 of them, and happens off the loop. What is asked for meanwhile is one listing.

mod entry;
mod table;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use self::table::Table;
use super::sysctl;
use crate::observe::metrics::{ConntrackPass, Passes};
use crate::plan::VipPort;

/// Entries to forget: of packets for `vip` that were rewritten, so that replies come from `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stale {
    /// Original destination.
    pub vip: VipPort,
    /// Source of replies.
    pub from: SocketAddr,
}

/// A thread that forgets.
#[derive(Debug)]
pub struct Conntrack {
    orders: Sender<Vec<Stale>>,
    state: Arc<Mutex<State>>,
    /// That the table is full, or nearly.
    fullness: Option<String>,
}

/// What it tells.
#[derive(Debug, Default)]
struct State {
    passes: Passes,
    problem: Option<String>,
    news: Vec<ConntrackPass>,
}

impl Conntrack {
    /// Starts the thread, for the network namespace of this one, and lets it find out whether the kernel answers.
    ///
    /// # Errors
    /// What the system says of the thread; what the kernel lacks is a [`problem`](Self::problem).
    pub fn start() -> io::Result<Self> {
        let (orders, taken) = mpsc::channel();
        let state = Arc::new(Mutex::new(State::default()));
        let told = Arc::clone(&state);
        thread::Builder::new().name("conntrack".into()).spawn(move || work(&taken, &told))?;
        let conntrack = Self { orders, state, fullness: fullness() };
        conntrack.forget(Vec::new());
        Ok(conntrack)
    }

    /// Has entries forgotten, soon. With none it is found out whether that could be done.
    pub fn forget(&self, stale: Vec<Stale>) {
        if self.orders.send(stale).is_err() {
            lock(&self.state).problem = Some("conntrack: its thread has ended".into());
        }
    }

    /// Looks again whether the kernel answers, where it did not, and how full its table is.
    pub fn check(&mut self) {
        if lock(&self.state).problem.is_some() {
            self.forget(Vec::new());
        }
        self.fullness = fullness();
    }

    /// Why entries are not forgotten, or soon none can be made any more, and what to do about it.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        lock(&self.state).problem.clone().into_iter().chain(self.fullness.clone())
    }

    /// How often it was done.
    pub fn passes(&self) -> Passes {
        lock(&self.state).passes
    }

    /// What was done since the last call.
    pub fn news(&self) -> Vec<ConntrackPass> {
        std::mem::take(&mut lock(&self.state).news)
    }
}

/// What to say of a table that is full, or nearly. What cannot be read says nothing.
fn fullness() -> Option<String> {
    let number = |key: &str| sysctl::read(&format!("net/netfilter/{key}")).ok()?.parse::<u64>().ok();
    judge_fullness(number("nf_conntrack_count")?, number("nf_conntrack_max")?)
}

fn judge_fullness(count: u64, max: u64) -> Option<String> {
    // Zero is no limit.
    (max != 0 && count.saturating_mul(10) >= max.saturating_mul(9)).then(|| {
        format!(
            "conntrack: {count} of {max} entries are taken, and without one a new connection is dropped: raise services.conntrack.maxPerCore, \
             or net.netfilter.nf_conntrack_max on the host"
        )
    })
}

/// Whether the kernel answers questions about conntrack; costs nothing.
///
/// # Errors
/// What it says: EINVAL without `nf_conntrack_netlink`.
pub fn probe() -> io::Result<()> {
    Table::open()?.probe()
}

/// A thread that panicked left numbers behind, nothing half-done.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Up to how many rewrites are kept in mind whose entries could not be forgotten; entries time out by themselves.
const LEFT: usize = 10_000;

fn work(orders: &Receiver<Vec<Stale>>, state: &Mutex<State>) {
    // What could not be forgotten: with the next order, or the next look.
    let mut left = BTreeSet::new();
    while let Ok(first) = orders.recv() {
        let mut stale: BTreeSet<Stale> = std::mem::take(&mut left);
        stale.extend(std::iter::once(first).chain(orders.try_iter()).flatten());
        let result = forget(&stale, state);
        let mut state = lock(state);
        match result {
            Ok(()) => {
                state.passes.ok += u64::from(!stale.is_empty());
                state.problem = None;
            }
            Err(error) => {
                state.passes.failed += u64::from(!stale.is_empty());
                state.problem = Some(words(&error, stale.len()));
                left = stale;
                while left.len() > LEFT {
                    left.pop_first();
                }
            }
        }
    }
}

/// One dump for each family that is concerned. Sockets are opened each time: nothing of a failure is left in them.
fn forget(stale: &BTreeSet<Stale>, state: &Mutex<State>) -> io::Result<()> {
    let mut table = Table::open()?;
    if stale.is_empty() {
        return table.probe();
    }
    let (v4, v6): (BTreeSet<Stale>, _) = stale.iter().partition(|stale| stale.vip.address.is_ipv4());
    let mut failed = Ok(());
    for (ipv4, ways) in [(true, v4), (false, v6)] {
        if ways.is_empty() {
            continue;
        }
        let began = Instant::now();
        match table.delete(&ways) {
            Ok(deleted) => {
                lock(state).news.push(ConntrackPass { ipv4, took: began.elapsed(), deleted });
            }
            Err(error) => failed = Err(error),
        }
    }
    failed
}

fn words(error: &io::Error, ways: usize) -> String {
    let left = if ways == 0 {
        String::new()
    } else {
        format!("; entries of {ways} rewrites that went stay; it is tried again")
    };
    // What nfnetlink says to a subsystem that is not there (`nfnetlink_rcv_msg`).
    let remedy = if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) {
        ": load module nf_conntrack_netlink (CONFIG_NF_CT_NETLINK)"
    } else {
        ""
    };
    format!("conntrack: {error}{remedy}{left}")
}

#[cfg(test)]
mod tests;
