//! What the speaker, its listeners and its peers' tasks share.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::watch;

use super::bfd::{Bfd, BfdStatus};
use super::bmp::Monitor;
use super::config::SpeakerConfig;
use super::status::{Counters, LastError};
use crate::rib::{Identity, Learnt, Rib};
use crate::session::{Down, Negotiated, State};

/// Shared by all peers' tasks. Locks are held for computing only, never across an await.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: SpeakerConfig,
    rib: Mutex<Rib>,
    /// What monitoring stations are told; called with the RIB locked.
    pub(super) monitor: Monitor,
    learnt: Mutex<Learnt>,
    /// Changes when there may be something to take of what is learnt.
    pub(super) news: watch::Sender<()>,
    /// Changes when there may be something to send.
    pub(super) changed: watch::Sender<()>,
    /// Changes when a peer has been sent something, or is no longer there to be sent it.
    pub(super) progress: watch::Sender<()>,
    /// Started with the first peer that has it.
    bfd: OnceLock<Option<Bfd>>,
}

impl Shared {
    pub(super) fn new(config: SpeakerConfig) -> Shared {
        let rib = Mutex::new(Rib::new(config.restarting));
        let monitor = Monitor::new(config.asn, config.router_id);
        let SpeakerConfig { asn, router_id, .. } = config;
        let learnt = Mutex::new(Learnt::new(Identity { asn, router_id, cluster_id: router_id }));
        let [news, changed, progress] = [(), (), ()].map(watch::Sender::new);
        Shared { config, rib, monitor, learnt, news, changed, progress, bfd: OnceLock::new() }
    }

    /// What runs BFD sessions, if it can be had.
    pub(super) fn bfd(&self) -> Option<&Bfd> {
        let start = || match Bfd::start() {
            Ok(bfd) => Some(bfd),
            Err(error) => {
                tracing::error!("no BFD: {error}");
                None
            }
        };
        self.bfd.get_or_init(start).as_ref()
    }

    /// Tells the other sides of BFD sessions that their end is no failure.
    pub(super) async fn leave_bfd(&self) {
        if let Some(Some(bfd)) = self.bfd.get() {
            bfd.leave().await;
        }
    }

    pub(super) fn rib(&self) -> MutexGuard<'_, Rib> {
        lock(&self.rib)
    }

    /// Locked before the RIB where both are.
    pub(super) fn learnt(&self) -> MutexGuard<'_, Learnt> {
        lock(&self.learnt)
    }

    /// Changes what is learnt; has the RIB follow what is passed on of it, and tells whoever is to know of either.
    pub(super) fn learn<T>(&self, change: impl FnOnce(&mut Learnt) -> T) -> T {
        let mut learnt = self.learnt();
        let result = change(&mut learnt);
        let reflections = learnt.take_reflections();
        let mut rib = self.rib();
        let passed = rib.reflect(reflections);
        self.monitor.loc_rib_changed(&rib, &learnt, passed.best.iter());
        if learnt.has_noted() {
            self.monitor.learnt_changes(&rib, &mut learnt);
        }
        let complete = rib.awaits_peers_alone() && learnt.has_heard_all();
        if complete {
            rib.peers_have_told();
            self.monitor.loc_rib_complete();
        }
        drop(rib);
        let news = learnt.pending() > 0;
        drop(learnt);
        if complete || passed.something {
            self.changed.send_replace(());
        }
        if news {
            self.news.send_replace(());
        }
        result
    }
}

/// A poisoned lock means that a task panicked, which is a defect that must not take the other sessions along.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a peer's task lets others see.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) state: State,
    pub(super) since: SystemTime,
    pub(super) last_error: Option<LastError>,
    pub(super) session: Option<ObservedSession>,
    pub(super) counters: Counters,
    /// As told by the peer last.
    pub(super) asn: Option<u32>,
    /// Where there is BFD beside the session.
    pub(super) bfd: Option<BfdStatus>,
}

/// What there is to see of an Established session.
#[derive(Debug)]
pub(super) struct ObservedSession {
    pub(super) since: Instant,
    pub(super) local: std::net::SocketAddr,
    pub(super) negotiated: Negotiated,
    /// The latest change up to which everything has been written (see [`Rib::sequence`]).
    pub(super) flushed: Option<u64>,
}

impl Observed {
    pub(super) fn new() -> Observed {
        Observed {
            state: State::Idle,
            since: SystemTime::now(),
            last_error: None,
            session: None,
            counters: Counters::default(),
            asn: None,
            bfd: None,
        }
    }

    pub(super) fn set_state(&mut self, state: State) {
        if self.state != state {
            self.state = state;
            self.since = SystemTime::now();
        }
    }

    pub(super) fn set_down(&mut self, reason: Down) {
        self.session = None;
        self.last_error = Some(LastError { at: SystemTime::now(), reason });
    }
}
