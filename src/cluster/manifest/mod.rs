//! A directory of manifests as a source: Services, EndpointSlices, Nodes and ServiceCIDRs as `kubectl get -o yaml` prints them.
//!
//! ```text
//! directory ──scan──► files ──read, if changed──► objects by file ──merge──► diff ──► events
//!    └── watch (inotify): when anything changes, scan again
//! ```
//!
//! A file is taken as a whole or not at all: while it is half-written or broken, what it said last stays in force.
//! If two files have the same object, the first in the order of names has it.

mod document;
mod watch;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use super::{Event, Object, ObjectKey, Place, Problem, Severity};
use crate::yaml;

pub use watch::watch;

/// A directory of manifests, and what it said when it was last scanned.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
    files: BTreeMap<OsString, File>,
    told: HashMap<ObjectKey, Object>,
    problems: Vec<Problem>,
    synced: bool,
}

/// One file.
#[derive(Debug, Default)]
struct File {
    /// Of the text that was read last; `None` if reading failed.
    hash: Option<u64>,
    /// Of the last text that was right.
    objects: Vec<Object>,
    /// What is wrong with the text that was read last.
    problem: Option<yaml::Error>,
}

impl Manifests {
    /// A directory that has not been read yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            files: BTreeMap::new(),
            told: HashMap::new(),
            problems: Vec::new(),
            synced: false,
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads what changed since the last scan and tells what follows from it. The first scan ends with
    /// [`Event::Synced`].
    ///
    /// # Errors
    /// If the directory cannot be read; everything stays as it was. (What is wrong with a file is an event.)
    pub fn scan(&mut self) -> io::Result<Vec<Event>> {
        self.scan_except(&HashSet::new())
    }

    /// Scans, but leaves files as they were that somebody is writing to.
    fn scan_except(&mut self, in_writing: &HashSet<OsString>) -> io::Result<Vec<Event>> {
        let mut names = HashSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let path = self.directory.join(&name);
            if is_manifest(&path) {
                if !in_writing.contains(&name) {
                    self.files.entry(name.clone()).or_default().read(&path);
                }
                names.insert(name);
            }
        }
        self.files.retain(|name, _| names.contains(name));
        Ok(self.events())
    }

    /// Compares what the files say with what was told.
    fn events(&mut self) -> Vec<Event> {
        let mut objects: HashMap<ObjectKey, (&Object, &OsString)> = HashMap::new();
        let mut problems = Vec::new();
        for (name, file) in &self.files {
            let problem = |line, field: &str, message, severity| Problem {
                place: Place::File { path: self.directory.join(name), line },
                field: field.to_owned(),
                message,
                severity,
            };
            if let Some(yaml::Error { line, field, message }) = &file.problem {
                let kept =
                    if file.objects.is_empty() { "" } else { "; what the file said before stays in force" };
                problems.push(problem(*line, field, format!("{message}{kept}"), Severity::Error));
            }
            for object in &file.objects {
                let key = object.key();
                if let Some((_, first)) = objects.get(&key) {
                    let message = format!("{key} is in {} too, which counts", first.display());
                    problems.push(problem(None, "", message, Severity::Warning));
                } else {
                    objects.insert(key, (object, name));
                }
            }
        }

        let mut events: Vec<Event> =
            self.told.keys().filter(|key| !objects.contains_key(key)).cloned().map(Event::Delete).collect();
        let changed = objects
            .iter()
            .filter(|(key, (object, _))| self.told.get(key) != Some(object))
            .map(|(key, _)| key);
        let changed: Vec<(ObjectKey, Object)> =
            changed.filter_map(|key| Some((key.clone(), objects.get(key)?.0.clone()))).collect();
        for event in &events {
            if let Event::Delete(key) = event {
                self.told.remove(key);
            }
        }
        for (key, object) in changed {
            events.push(Event::Apply(object.clone()));
            self.told.insert(key, object);
        }
        if self.problems != problems {
            self.problems.clone_from(&problems);
            events.push(Event::Problems(problems));
        }
        if !self.synced {
            self.synced = true;
            events.push(Event::Synced);
        }
        events
    }
}

/// Names of editors' and tools' temporary files start with a dot; other files are none of ours.
fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let known = path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
    !hidden && known && path.is_file()
}

impl File {
    fn read(&mut self, path: &Path) {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.hash = None;
                self.problem =
                    Some(yaml::Error { line: None, field: String::new(), message: error.to_string() });
                return;
            }
        };
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = Some(hasher.finish());
        if self.hash == hash {
            return;
        }
        self.hash = hash;
        // What a writer leaves who truncates first, or whose disk is full.
        let read = if text.trim().is_empty() {
            let message = "is empty; delete the file to remove what it said".into();
            Err(yaml::Error { line: None, field: String::new(), message })
        } else {
            document::objects(&text)
        };
        match read {
            Ok(objects) => {
                self.objects = objects;
                self.problem = None;
            }
            Err(error) => self.problem = Some(error),
        }
    }
}
