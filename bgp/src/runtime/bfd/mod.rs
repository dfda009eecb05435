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
    /// What packets are signed with.
    pub key: Option<Key>,
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
    /// Between packets of this side.
    pub transmit_interval: Duration,
    /// How long silence takes to be noticed.
    pub detection_time: Duration,
    /// How often it was up.
    pub ups: u64,
    /// Why no packets can be sent or received.
    pub problem: Option<String>,
}

impl BfdStatus {
    /// The path does not work: not so where an operator of the other side has taken the session down (RFC 5882 §3.2), nor where it never
    /// was up.
    pub fn is_failure(&self) -> bool {
        self.ups > 0 && self.state != State::Up && self.remote_state != State::AdminDown
    }
}

/// What the engine is told.
#[derive(Debug)]
enum Command {
    /// Begin a session, or change it.
    Set(BfdPeer, SessionConfig, Option<Key>, watch::Sender<BfdStatus>),
    /// End it without a word.
    Remove(BfdPeer),
    /// Tell all peers that this is no failure, and end.
    Leave(oneshot::Sender<()>),
}

/// Runs BFD sessions. Dropped, it ends them without a word.
#[derive(Clone, Debug)]
pub struct Bfd {
    commands: mpsc::UnboundedSender<Command>,
}

/// A session. Dropped, it ends without a word.
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
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new()
            .name("bfd".to_owned())
            .spawn(move || runtime.block_on(Engine::default().run(inbox)))?;
        Ok(Bfd { commands })
    }

    /// Begins a session with `peer`, whose packets are signed with `key` if there is one. There is one with each at a time.
    pub fn open(&self, peer: BfdPeer, config: SessionConfig, key: Option<Key>) -> BfdSession {
        let (sender, status) = watch::channel(BfdStatus::default());
        // An engine that is gone leaves every session down.
        let _ = self.commands.send(Command::Set(peer.clone(), config, key, sender));
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

    /// Changes intervals and the like; the session goes on, if the other side knows the key.
    pub fn reconfigure(&mut self, config: SessionConfig, key: Option<Key>) {
        let (sender, status) = watch::channel(self.status.borrow().clone());
        if self.bfd.commands.send(Command::Set(self.peer.clone(), config, key, sender)).is_ok() {
            self.status = status;
        }
    }
}

impl Drop for BfdSession {
    fn drop(&mut self) {
        let _ = self.bfd.commands.send(Command::Remove(self.peer.clone()));
    }
}
