//! A directory of manifests as a source: Services, EndpointSlices, Nodes and ServiceCIDRs as `kubectl get -o yaml` prints them.
//!
//! ```text
//! directory ──scan──► files ──read, if changed──► objects by file ──merge──► diff ──► events
//!    └── watch (inotify): when anything changes, scan again
//! ```
//!
//! An object that cannot be read costs itself alone: what a file said of it last stays in force. Where it cannot be told which
//! objects are meant (an empty file, a document that is no YAML, a file that may be cut short), so does all that the file said last
//! and does not say now. If two files have the same object, the first in the order of names has it.

mod document;
mod watch;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::mem;
use std::path::{Path, PathBuf};

use self::document::{Reading, Wrong};
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
    /// What it says, and what it said before of those that cannot be read now.
    objects: Vec<Object>,
    /// What is wrong with the text that was read last, and what follows.
    problems: Vec<yaml::Error>,
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
            for yaml::Error { line, field, message } in &file.problems {
                problems.push(problem(*line, field, message.clone(), Severity::Error));
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
        let unreadable = |message: String| {
            let error = yaml::Error { line: None, field: String::new(), message };
            Reading { wrong: vec![error.into()], ..Reading::default() }
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.hash = None;
                return self.take(unreadable(error.to_string()));
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
        self.take(if text.trim().is_empty() {
            unreadable("is empty; delete the file to remove what it said".into())
        } else {
            document::read(&text)
        });
    }

    fn take(&mut self, Reading { objects, wrong, cut_short }: Reading) {
        let before = mem::replace(&mut self.objects, objects);
        let said: HashSet<ObjectKey> = self.objects.iter().map(Object::key).collect();
        let named: HashSet<&ObjectKey> = wrong.iter().filter_map(|wrong| wrong.object.as_ref()).collect();
        let any = cut_short || wrong.iter().any(|wrong| wrong.object.is_none());
        let stays = |key: &ObjectKey| !said.contains(key) && (any || named.contains(key));
        let kept: HashMap<ObjectKey, Object> =
            before.into_iter().map(|object| (object.key(), object)).filter(|(key, _)| stays(key)).collect();
        let then = |object: Option<ObjectKey>| match object {
            None if kept.is_empty() => String::new(),
            None => "; what else the file said before stays in force".into(),
            Some(key) if said.contains(&key) => format!("; {key} is in the file once more, and right"),
            Some(key) if kept.contains_key(&key) => format!("; {key} stays as it was"),
            Some(key) => format!("; {key} is not used"),
        };
        let others_stay = kept.keys().any(|key| !named.contains(key));
        self.problems = wrong
            .into_iter()
            .map(|Wrong { object, mut error }| {
                error.message.push_str(&then(object));
                error
            })
            .collect();
        if let Some(last) = self.problems.last_mut().filter(|_| cut_short && others_stay) {
            last.message
                .push_str("; what else the file said before stays in force: it may be cut short here");
        }
        self.objects.extend(kept.into_values());
    }
}
