//! What can go wrong.

use std::io;

use rustix::io::Errno;

/// A reply that does not read as the kernel's interface says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field} is missing, of the wrong length, or out of range")]
pub struct Malformed {
    /// What was read.
    pub object: &'static str,
    /// Which part of it.
    pub field: &'static str,
}

impl Malformed {
    pub(crate) const fn new(object: &'static str, field: &'static str) -> Self {
        Self { object, field }
    }
}

/// Why a call failed as a whole. What single operations of a batch met with is a [`Failure`](crate::Failure).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no IPVS and could not load it by itself.
    #[error("this kernel has no IPVS in generic netlink: run `modprobe ip_vs`")]
    Unavailable,
    /// The kernel refused a request.
    #[error("{request}: {errno}{}", hint(*errno))]
    Refused {
        /// What was asked for.
        request: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Replies did not fit the socket's receive buffer (`ENOBUFS`). Which operations failed is unknown:
    /// resynchronise by a dump.
    #[error(
        "the kernel dropped replies (ENOBUFS): which operations failed is unknown, resynchronise by a dump"
    )]
    Overrun,
    /// The kernel did not answer in time, which it does before a send returns unless it is broken.
    /// As after [`Error::Overrun`], only a dump tells what was applied.
    #[error("{request}: no answer from the kernel")]
    NoAnswer {
        /// What was asked for.
        request: &'static str,
    },
    /// A reply does not read.
    #[error("reply of the kernel: {0}")]
    Malformed(#[from] Malformed),
    /// A system call on the netlink socket failed.
    #[error("{call}: {source}")]
    Socket {
        /// The call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl Error {
    /// Whether the kernel's state is unknown after this error, so that only a dump tells it.
    pub fn needs_resync(&self) -> bool {
        match self {
            Self::Overrun | Self::NoAnswer { .. } | Self::Malformed(_) | Self::Socket { .. } => true,
            Self::Unavailable | Self::Refused { .. } => false,
        }
    }
}

fn hint(errno: Errno) -> &'static str {
    if errno == Errno::PERM { ": IPVS takes CAP_NET_ADMIN in the initial user namespace" } else { "" }
}
