//! Errors of the dataplane.

use std::path::PathBuf;
use std::{fmt, io};

use rustix::io::Errno;

use super::fou::FouError;
use super::nft::NftError;
use super::pods::PodError;
use super::sysctl::SysctlError;
use super::virtual_servers::VirtualServersError;

/// What the kernel refused or lacks.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// No rtnetlink socket.
    #[error("rtnetlink socket: {0}")]
    Rtnetlink(io::Error),
    /// The lock could not be taken for another reason than its being held.
    #[error("{}: {source}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another agent has this node.
    #[error("{}: an agent runs on this node: stop it first", .0.display())]
    AgentRuns(PathBuf),
    /// No thread for conntrack.
    #[error("thread for conntrack: {0}")]
    Conntrack(io::Error),
    /// Links, addresses, routes.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// GUE's port.
    #[error(transparent)]
    Fou(#[from] FouError),
    /// nftables.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Settings.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// Network namespaces of pods.
    #[error(transparent)]
    Pods(#[from] PodError),
    /// IPVS.
    #[error(transparent)]
    VirtualServers(#[from] VirtualServersError),
}

impl DataplaneError {
    /// Whether this only kept us from looking: what was there before is there still, as far as is known.
    pub(super) fn only_looked(&self) -> bool {
        match self {
            Self::Nft(error) => error.is_passing(),
            Self::Route(error) => error.is_passing(),
            Self::Sysctl(error) => error.is_passing(),
            _ => false,
        }
    }
}

/// What was tried over rtnetlink, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {reason}")]
pub struct RouteError {
    action: String,
    reason: String,
    passing: bool,
}

impl RouteError {
    pub(crate) fn new(action: String, reason: impl fmt::Display) -> Self {
        Self { action, reason: reason.to_string(), passing: false }
    }

    pub(crate) fn of(action: &str) -> impl FnOnce(rtnetlink::Error) -> Self {
        let action = action.to_owned();
        move |error| match &error {
            rtnetlink::Error::NetlinkError(message) => Self::io(action, &message.to_io()),
            // The connection failed, or the answer is none: that says nothing of what was asked about.
            other => Self { passing: true, ..Self::new(action, other) },
        }
    }

    pub(super) fn io(action: String, error: &io::Error) -> Self {
        Self { passing: is_passing(error), ..Self::new(action, error) }
    }

    /// Whether the kernel only could not do or tell it at that moment.
    pub(super) fn is_passing(&self) -> bool {
        self.passing
    }
}

/// Whether an error says nothing of what was asked for: the same may be done, or told, a moment later.
pub(super) fn is_passing(error: &io::Error) -> bool {
    const PASSING: [Errno; 9] = [
        Errno::INTR,
        Errno::AGAIN,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::BUSY,
        Errno::TIMEDOUT,
        Errno::MFILE,
        Errno::NFILE,
        // A dump that a change came into (nl_dump_check_consistent).
        Errno::CANCELED,
    ];
    Errno::from_io_error(error).is_some_and(|errno| PASSING.contains(&errno))
}

/// Whether the kernel says that what a request names is not there (ENOENT, ESRCH, ENODEV).
pub(crate) fn is_absent(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if names_nothing(&message.to_io()))
}

/// The same of an answer that is read by hand.
pub(crate) fn names_nothing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH | Errno::NODEV))
}
