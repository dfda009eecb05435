//! Entering a network namespace: on a thread made for it, which ends afterwards, and never for longer than a given time.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rtnetlink::Handle;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::PodError;

/// How many namespaces are worked in at a time.
pub const AT_ONCE: usize = 8;

/// A network namespace, whatever its name: device and inode of its file. Another one may get the same after it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    device: u64,
    inode: u64,
}

impl Id {
    /// Of the namespace that a file stands for.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = std::fs::metadata(path)?;
        Ok(Self { device: found.dev(), inode: found.ino() })
    }

    /// Whether a file of this identity can be a namespace at all, as `other` is one: all are files of one file system.
    pub fn is_like(self, other: Self) -> bool {
        self.device == other.device
    }
}

/// A network namespace and where it was found. It is not kept open: that would keep it alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Which one.
    pub id: Id,
    /// A file that stands for it.
    pub path: PathBuf,
}

impl Namespace {
    /// Whether it is still there, under the same name.
    pub fn exists(&self) -> bool {
        Id::of(&self.path).is_ok_and(|id| id == self.id)
    }

    /// Moves the calling thread there.
    fn join(&self) -> Result<(), PodError> {
        let failed = |error: io::Error| PodError::Enter { path: self.path.clone(), error };
        let file = File::open(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PodError::Vanished(self.path.clone()),
            _ => failed(error),
        })?;
        let found = file.metadata().map_err(failed)?;
        if (Id { device: found.dev(), inode: found.ino() }) != self.id {
            return Err(PodError::Vanished(self.path.clone()));
        }
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| failed(error.into()))
    }
}

/// Work that was given up and still runs: its namespace is left alone meanwhile.
#[derive(Debug, Default)]
pub struct Busy(HashMap<(Id, Option<IpAddr>), Weak<()>>);

impl Busy {
    /// A token for work in a namespace for an endpoint, or for a look at it; to be held until it ends. `None` while earlier
    /// such work runs there.
    pub fn begin(&mut self, id: Id, endpoint: Option<IpAddr>) -> Option<Arc<()>> {
        self.0.retain(|_, token| token.strong_count() > 0);
        if self.0.contains_key(&(id, endpoint)) {
            return None;
        }
        let token = Arc::new(());
        self.0.insert((id, endpoint), Arc::downgrade(&token));
        Some(token)
    }
}

/// Runs `work` on a thread of its own, for at most `limit`: after that the thread is given up, and ends when it can.
///
/// # Errors
/// [`PodError::Slow`] after `limit`; what `work` says.
pub async fn apart<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T, PodError> + Send + 'static,
) -> Result<T, PodError> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("namespace".into())
        .spawn(move || {
            // Nobody may wait any more.
            let _ = sender.send(work());
        })
        .map_err(PodError::Thread)?;
    match tokio::time::timeout(limit, receiver).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(PodError::Thread(io::Error::other("it ended without an answer"))),
        Err(_) => Err(PodError::Slow(limit)),
    }
}

/// Awaits all of them, a few at a time.
pub async fn several<T: Send + 'static>(
    work: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let (mut running, mut results) = (JoinSet::new(), Vec::new());
    for work in work {
        if running.len() == AT_ONCE {
            results.extend(running.join_next().await.and_then(Result::ok));
        }
        running.spawn(work);
    }
    while let Some(result) = running.join_next().await {
        results.extend(result);
    }
    results
}

/// Moves this thread to a namespace and runs `work` there with an rtnetlink connection of that namespace. For threads of
/// [`apart`] alone: there is no way back.
///
/// # Errors
/// [`PodError`] where it cannot be entered; what `work` says.
pub fn within<T, F: Future<Output = Result<T, PodError>>>(
    namespace: &Namespace,
    work: impl FnOnce(Handle) -> F,
) -> Result<T, PodError> {
    namespace.join()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PodError::Thread)?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(PodError::Thread)?;
        tokio::spawn(connection);
        work(handle).await
    })
}
