//! One agent per node: a lock in the state directory, which the kernel lets go of when its holder ends, however it ends.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::DataplaneError;

/// Held as long as this lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; does not wait.
    ///
    /// # Errors
    /// When another process holds it, or the directory cannot be written.
    pub fn take(directory: &Path) -> Result<Self, DataplaneError> {
        let path = directory.join("lock");
        let failed = |source| DataplaneError::Lock { path: path.clone(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(DataplaneError::AgentRuns(path)),
            Err(error) => Err(failed(error.into())),
        }
    }
}
