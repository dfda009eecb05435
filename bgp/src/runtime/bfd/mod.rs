//! BFD sessions: a thread of their own, so that neither routes nor Services delay a packet, with its sockets and the clock.
//!
//! ```text
//!   Bfd ── Command ──► [Engine] ◄─► UDP 3784, 4784
//!       ◄─ BfdStatus ── watched by whoever depends on the path
//! ```

mod engine;
mod socket;

use std::net::IpAddr;
use std::time::Duration;
use std::{io, thread};

use tokio::runtime::{self, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use crate::bfd::{Diagnostic, Key, SessionConfig, State};
use engine::Engine;

/// How long leaving may take.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// What a session is with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BfdPeer {
    /// Its address.
    pub address: IpAddr,
    /// The interface it is at; needed for link-local addresses.
    pub interface: Option<String>,
    /// This side's address; the kernel chooses if there is none.
    pub local_address: Option<IpAddr>,
    /// It may be several hops away (RFC 5883); otherwise packets that a router forwarded are not taken (RFC 5881 §5).
    pub multihop: bool,
}

/// BFD beside a BGP session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerBfd {
    /// Intervals and the like.
    pub session: SessionConfig,
    /// The peer may be several hops away (RFC 5883).
    pub multihop: bool,
    /// What packets are signed with: the first signs, any is taken; without any they are not signed.
    pub keys: Vec<Key>,
}

/// What a session is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BfdStatus {
    /// This side's state.
    pub state: State,
    /// The other's, as it last told.
    pub remote_state: State,
    /// The other's BFD does not die with its control plane (C bit).
    pub remote_independent: bool,
    /// Why it last went down.
    pub diagnostic: Diagnostic,
    /// Why the other's did, as it last told.
    pub remote_diagnostic: Diagnostic,
    /// Between packets of this side.
    pub transmit_interval: Duration,
    /// Between packets of the other.
    pub receive_interval: Duration,
    /// How long silence takes to be noticed.
    pub detection_time: Duration,
    /// How often it came up.
    pub ups: u64,
    /// How often it went down, but for when an operator of either side took it down, which says nothing of the path (RFC 5882 §3.2). What
    /// goes down and up again before anyone looks shows here.
    pub failures: u64,
    /// Why no packets can be sent or received.
    pub problem: Option<String>,
}

/// What the engine is told.
#[derive(Debug)]
enum Command {
    /// Begin a session.
    Open(BfdPeer, SessionConfig, Vec<Key>, watch::Sender<BfdStatus>),
    /// Change it.
    Change(BfdPeer, SessionConfig, Vec<Key>),
    /// End it, and tell the peer for a while that this is no failure.
    Remove(BfdPeer),
    /// Tell all peers so, and end.
    Leave(oneshot::Sender<()>),
}

/// Runs BFD sessions. Dropped with the last of them, it ends.
#[derive(Clone, Debug)]
pub struct Bfd {
    commands: mpsc::UnboundedSender<Command>,
}

/// A session. Dropped, it ends: the peer is told so for as long as [`Bfd`] is there (AdminDown), which is no failure of the path.
#[derive(Debug)]
pub struct BfdSession {
    peer: BfdPeer,
    bfd: Bfd,
    status: watch::Receiver<BfdStatus>,
}

impl Bfd {
    /// Starts the thread.
    ///
    /// # Errors
    /// There can be no thread, or no reactor for it.
    pub fn start() -> io::Result<Bfd> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (give, given) = std::sync::mpsc::channel::<Runtime>();
        // The thread comes first: without it there would be a runtime to drop, which must not be where others wait.
        thread::Builder::new().name("bfd".to_owned()).spawn(move || {
            if let Ok(runtime) = given.recv() {
                runtime.block_on(Engine::default().run(inbox));
            }
        })?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        give.send(runtime).map_err(|_| io::Error::other("the BFD thread has ended"))?;
        Ok(Bfd { commands })
    }

    /// Begins a session with `peer`, whose packets are signed with the first of `keys` if there is one. There is one with each at a time.
    pub fn open(&self, peer: BfdPeer, config: SessionConfig, keys: Vec<Key>) -> BfdSession {
        let (sender, status) = watch::channel(BfdStatus::default());
        // An engine that is gone leaves every session down.
        let _ = self.commands.send(Command::Open(peer.clone(), config, keys, sender));
        BfdSession { peer, bfd: self.clone(), status }
    }

    /// Tells all peers that sessions end because an operator wants it (AdminDown), which is no failure of a path, and ends them.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.commands.send(Command::Leave(done)).is_ok() {
            let _ = tokio::time::timeout(LEAVE_TIME, left).await;
        }
    }
}

impl BfdSession {
    /// With whom it is.
    pub fn peer(&self) -> &BfdPeer {
        &self.peer
    }

    /// Waits until it is another than when it was looked at last.
    pub async fn changed(&mut self) {
        if self.status.changed().await.is_err() {
            // The engine is gone: nothing will change.
            std::future::pending::<()>().await;
        }
    }

    /// What it is like, looked at.
    pub fn look(&mut self) -> BfdStatus {
        self.status.borrow_and_update().clone()
    }

    /// What it is like, now and from now on.
    pub fn status(&self) -> watch::Receiver<BfdStatus> {
        self.status.clone()
    }

    /// Changes intervals, keys and the like; the session goes on, if the other side knows the key.
    pub fn reconfigure(&self, config: SessionConfig, keys: Vec<Key>) {
        let _ = self.bfd.commands.send(Command::Change(self.peer.clone(), config, keys));
    }
}

impl Drop for BfdSession {
    fn drop(&mut self) {
        let _ = self.bfd.commands.send(Command::Remove(self.peer.clone()));
    }
}
