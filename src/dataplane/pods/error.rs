//! Why a pod does not accept by itself.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::super::RouteError;
use super::super::nft::NftError;
use super::super::sysctl::SysctlError;
use super::namespaces::DIRECTORY;

/// Why a pod's network namespace could not be made to take in what is tunnelled to it.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No namespace has the endpoint's address.
    #[error(
        "no network namespace in {DIRECTORY} has its address: a sandboxed runtime has none that could be entered"
    )]
    NotFound,
    /// No namespace has it, as far as one can see.
    #[error(
        "{DIRECTORY} cannot be read ({0}): mount it with propagation HostToContainer (deploy/components/pod-acceptance)"
    )]
    NoDirectory(String),
    /// No namespace that could be looked at has it, and this one could not.
    #[error("{}, which may have its address, could not be looked at: {why}", path.display())]
    Unseen {
        /// The namespace's file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Two namespaces have it, and the node reaches both the same way.
    #[error("both {} and {} have its address", .0.display(), .1.display())]
    Ambiguous(PathBuf, PathBuf),
    /// Whoever gave himself the address is not where the node sends packets for it.
    #[error("{} has its address, and interface {device}, by which this node reaches it, leads elsewhere", path.display())]
    NotBehind {
        /// The namespace's file.
        path: PathBuf,
        /// The node's device.
        device: String,
    },
    /// It was there a moment ago.
    #[error("the network namespace {} is gone", .0.display())]
    Vanished(PathBuf),
    /// The endpoint's address is this host's.
    #[error("its address is this host's own: it has no network namespace")]
    HostNetwork,
    /// Permission, as a rule.
    #[error("{}: {error}: entering it takes the capability SYS_ADMIN", path.display())]
    Enter {
        /// Its file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// No thread, or no runtime on it.
    #[error("a thread for it: {0}")]
    Thread(io::Error),
    /// Something in the kernel hangs.
    #[error("not done within {0:?}")]
    Slow(Duration),
    /// Earlier work there hangs still.
    #[error("earlier work in its network namespace has not ended")]
    Busy,
    /// Every namespace has one.
    #[error("its network namespace has no loopback device")]
    NoLoopback,
    /// The kernel sends packets for it to another node.
    #[error("this node reaches it through a gateway or not at all: its replies would not pass here")]
    Elsewhere,
    /// The CNI guards what pods send.
    #[error(
        "interface {0} checks the source of what the pod sends (rp_filter) and has no address of its own, so that a VIP \
         as source never passes"
    )]
    SourceCheck(String),
    /// The list of namespaces that hold something of ours.
    #[error("{0}")]
    Journal(String),
    /// Links, addresses, routes.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// What nftables holds could not be read.
    #[error(transparent)]
    Listing(NftError),
    /// nftables.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Settings.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

impl PodError {
    /// Whether it tells that the pod does not take in what it should. All else says nothing of what was prepared before: that
    /// stands, as far as is known, and connections go on.
    pub(super) fn is_finding(&self) -> bool {
        match self {
            Self::NotFound
            | Self::Ambiguous(..)
            | Self::NotBehind { .. }
            | Self::Vanished(_)
            | Self::HostNetwork
            | Self::NoLoopback
            | Self::Elsewhere
            | Self::SourceCheck(_) => true,
            Self::Route(error) => !error.is_passing(),
            Self::Nft(error) => !error.is_passing(),
            Self::Sysctl(error) => !error.is_passing(),
            Self::NoDirectory(_)
            | Self::Unseen { .. }
            | Self::Enter { .. }
            | Self::Thread(_)
            | Self::Slow(_)
            | Self::Busy
            | Self::Journal(_)
            | Self::Listing(_) => false,
        }
    }

    /// Whether it tells that there is no such pod, nor anything of ours in one.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::NotFound | Self::Vanished(_))
    }
}
