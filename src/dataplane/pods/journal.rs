//! Which endpoints' namespaces hold something of ours: kept in a file, so that whoever comes next finds it, even after a
//! crash in the middle. Outlives the agent, not the boot.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::PodError;

/// The endpoints, by address.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    endpoints: BTreeSet<IpAddr>,
}

impl Journal {
    /// Reads the file of a state directory.
    ///
    /// # Errors
    /// [`PodError::Journal`] where it is there and cannot be read.
    pub fn open(directory: &Path) -> Result<Self, PodError> {
        let file = directory.join("pods.json");
        let failed = |error: io::Error| unusable(&file, &error);
        let endpoints = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { file, endpoints })
    }

    /// The endpoints.
    pub fn endpoints(&self) -> &BTreeSet<IpAddr> {
        &self.endpoints
    }

    /// Adds some, before anything is done there, and takes others away, after.
    ///
    /// # Errors
    /// [`PodError::Journal`] where it cannot be written.
    pub fn update(
        &mut self,
        new: impl IntoIterator<Item = IpAddr>,
        gone: impl IntoIterator<Item = IpAddr>,
    ) -> Result<(), PodError> {
        let mut endpoints = self.endpoints.clone();
        endpoints.extend(new);
        for address in gone {
            endpoints.remove(&address);
        }
        if endpoints == self.endpoints {
            return Ok(());
        }
        self.write(&endpoints).map_err(|error| unusable(&self.file, &error))?;
        // Only now: what is not in the file is written the next time.
        self.endpoints = endpoints;
        Ok(())
    }

    fn write(&self, endpoints: &BTreeSet<IpAddr>) -> io::Result<()> {
        if endpoints.is_empty() {
            return match fs::remove_file(&self.file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let text = serde_json::to_vec(endpoints)?;
        // Renamed into place: a crash must not leave half a file.
        let draft = self.file.with_extension("tmp");
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, &self.file))
    }
}

fn unusable(file: &Path, error: &io::Error) -> PodError {
    PodError::Journal(format!("{}: {error}", file.display()))
}
