//! How far the drain was, kept in the state directory for the next start of the agent: it must not announce what was withdrawn.
//!
//! It ends with the boot, as the state directory does: a node that comes up again serves, unless its Node asks for a drain.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::warn;

/// Its name in the state directory.
const FILE: &str = "drain";

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// `sheave drain` asks for it.
    pub commanded: bool,
    /// Name of the [`Phase`](super::Phase).
    pub phase: String,
    /// Since when the node has not been serving.
    pub since: Option<SystemTime>,
    /// VIPs that are not withdrawn.
    pub kept: Vec<IpNet>,
    /// VIPs that will not be once they have an endpoint.
    pub waiting: Vec<IpNet>,
}

/// The file.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    /// What it says; `None`: it could not be written.
    written: Option<Record>,
    problem: Option<String>,
}

impl RecordFile {
    /// Opens the file in `directory`, and gives what it says.
    pub fn open(directory: &Path) -> (Self, Record) {
        let path = directory.join(FILE);
        let read = fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from));
        let record: Record = match read {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(
                    "read {}: {error}; whether this node had drained is not known: it serves",
                    path.display()
                );
                Record::default()
            }
            read => read.unwrap_or_default(),
        };
        (Self { path, written: Some(record.clone()), problem: None }, record)
    }

    /// Has it say this. What nobody asked for needs no file.
    pub fn write(&mut self, record: &Record) {
        if self.written.as_ref() == Some(record) {
            return;
        }
        let written = if *record == Record::default() {
            remove_file(&self.path).map(drop)
        } else {
            self.replace(record)
        };
        let problem = written.err().map(|error| {
            format!(
                "write {}: {error}; an agent that starts anew would not know how far the drain is",
                self.path.display()
            )
        });
        if problem.is_some() && problem != self.problem {
            warn!("{}", problem.as_deref().unwrap_or_default());
        }
        self.written = problem.is_none().then(|| record.clone());
        self.problem = problem;
    }

    /// In one step: there is always a whole one.
    fn replace(&self, record: &Record) -> io::Result<()> {
        let draft = self.path.with_extension("draft");
        let mut file = fs::File::create(&draft)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(&draft, &self.path)
    }

    /// Why it could not be written.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

/// Removes the file; gives whether it was there.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(directory: &Path) -> io::Result<bool> {
    remove_file(&directory.join(FILE))
}

fn remove_file(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
