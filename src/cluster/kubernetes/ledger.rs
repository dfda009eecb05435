//! What was told of one resource: the names, so that a list shows what has vanished, and a hash of each object's text,
//! so that what a list has unchanged is neither read nor told again.
//!
//! The objects are the [`Index`](crate::cluster::Index)'s. Only while a list runs, its objects wait here: nobody hears
//! of a list before it is complete.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::time::SystemTime;

use foldhash::HashMap;

use super::item::{Content, Head, Unreadable};
use crate::cluster::{Event, Object, ObjectKey, Place, Problem, Severity};

/// What was told of one resource.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    told: HashMap<ObjectKey, Told>,
    /// Of the last version of each object that cannot be used, or not all of it.
    problems: BTreeMap<ObjectKey, (Severity, Unreadable)>,
    problems_changed: bool,
    /// Number of the list that is running or was last.
    list: u64,
    listing: Option<Listing>,
}

/// An object that was told.
#[derive(Debug)]
struct Told {
    /// Number of the list that had it last.
    list: u64,
    /// Hash of its text; `None` where something of it was left out: it is read again, so that this is told again.
    text: Option<NonZero<u64>>,
    /// Its trigger time, as seen last.
    triggered: Option<SystemTime>,
}

/// A list that is not complete.
#[derive(Debug, Default)]
struct Listing {
    /// New and changed ones, as they are to be told.
    objects: Vec<(Object, Told)>,
    problems: BTreeMap<ObjectKey, (Severity, Unreadable)>,
}

impl Told {
    fn new(list: u64, text: u64, left_out: Option<&Unreadable>, triggered: Option<SystemTime>) -> Self {
        // One text in 2^64 has no hash and is read again each time too.
        Self { list, text: NonZero::new(text).filter(|_| left_out.is_none()), triggered }
    }

    /// Whether this is what was told.
    fn has(&self, text: u64) -> bool {
        self.text.is_some_and(|told| told.get() == text)
    }
}

impl Ledger {
    /// A list begins; one that was not completed is forgotten.
    pub(super) fn begin(&mut self) {
        self.list += 1;
        self.listing = Some(Listing::default());
    }

    /// An object of the running list; it is read only if it changed. One that cannot be used counts as there: its last
    /// good version stays.
    pub(super) fn listed(&mut self, head: Head, read: impl FnOnce() -> Content) {
        let Some(listing) = &mut self.listing else { return };
        let Head { key, text, triggered, .. } = head;
        if let Some(told) = self.told.get_mut(&key) {
            told.list = self.list;
            if told.has(text) {
                listing.problems.remove(&key);
                return;
            }
        }
        match read() {
            Ok((object, left_out)) => {
                listing.objects.push((object, Told::new(self.list, text, left_out.as_ref(), triggered)));
                match left_out {
                    Some(left_out) => listing.problems.insert(key, (Severity::Warning, left_out)),
                    None => listing.problems.remove(&key),
                };
            }
            Err(unreadable) => {
                listing.problems.insert(key, (Severity::Error, unreadable));
            }
        }
    }

    /// An object that vanished while the list was running.
    pub(super) fn unlisted(&mut self, key: &ObjectKey) {
        let Some(listing) = &mut self.listing else { return };
        listing.objects.retain(|(object, _)| object.key() != *key);
        listing.problems.remove(key);
        if let Some(told) = self.told.get_mut(key) {
            told.list = 0;
        }
    }

    /// The list is complete: what it has, and what it has no more.
    pub(super) fn complete(&mut self) -> Vec<Event> {
        let Some(Listing { objects, problems }) = self.listing.take() else { return Vec::new() };
        self.problems_changed |= self.problems != problems;
        self.problems = problems;
        let list = self.list;
        let mut events = Vec::with_capacity(objects.len());
        for (object, new) in objects {
            self.told.insert(object.key(), new);
            events.push(Event::Apply(object));
        }
        events.extend(self.told.extract_if(|_, told| told.list != list).map(|(key, _)| Event::Delete(key)));
        events
    }

    /// An object was added or changed while it was watched.
    pub(super) fn applied(&mut self, head: Head, read: impl FnOnce() -> Content, events: &mut Vec<Event>) {
        let Head { key, text, triggered, .. } = head;
        if self.told.get(&key).is_some_and(|told| told.has(text)) {
            self.problems_changed |= self.problems.remove(&key).is_some();
            return;
        }
        let (object, left_out) = match read() {
            Ok(read) => read,
            Err(unreadable) => {
                self.problems.insert(key, (Severity::Error, unreadable));
                self.problems_changed = true;
                return;
            }
        };
        let new = Told::new(self.list, text, left_out.as_ref(), triggered);
        let problem = left_out.map(|left_out| (Severity::Warning, left_out));
        if self.problems.get(&key) != problem.as_ref() {
            self.problems_changed = true;
            match problem {
                Some(problem) => self.problems.insert(key.clone(), problem),
                None => self.problems.remove(&key),
            };
        }
        let old = self.told.insert(key, new);
        if old.is_none_or(|old| old.triggered != triggered) {
            events.extend(triggered.map(Event::TriggeredAt));
        }
        events.push(Event::Apply(object));
    }

    /// An object is gone.
    pub(super) fn deleted(&mut self, key: ObjectKey, events: &mut Vec<Event>) {
        self.problems_changed |= self.problems.remove(&key).is_some();
        if self.told.remove(&key).is_some() {
            events.push(Event::Delete(key));
        }
    }

    /// What cannot be used now, if that changed since it was asked last.
    pub(super) fn changed_problems(&mut self) -> Option<Vec<Problem>> {
        if !std::mem::take(&mut self.problems_changed) {
            return None;
        }
        let problems = self.problems.iter().map(|(key, (severity, Unreadable { field, message }))| {
            let instead = match severity {
                Severity::Warning => "; this is left out, the rest is used",
                Severity::Error if self.told.contains_key(key) => "; what it said before stays in force",
                Severity::Error => "",
            };
            Problem {
                place: Place::Object(key.clone()),
                field: field.clone(),
                message: format!("{message}{instead}"),
                severity: *severity,
            }
        });
        Some(problems.collect())
    }
}
