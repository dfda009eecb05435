//! Changes that a peer is told together: all that there were at one moment, by what they are announced with.

use std::collections::HashMap;
use std::sync::Arc;

use super::route::Route;
use crate::wire::Nlri;

/// Changes of one family, at most one for each path.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Withdrawals first.
    runs: Vec<Run>,
    /// These are what one peer holds, not what its group has been told.
    held: bool,
}

/// Paths that share what they are announced with.
#[derive(Debug)]
pub(super) struct Run {
    /// `None`: they are withdrawn.
    pub(super) now: Option<Arc<Route>>,
    /// In order.
    pub(super) changes: Vec<Change>,
}

/// A path that something else is told of.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) path: Nlri,
    /// What was told of it last.
    pub(super) before: Option<Arc<Route>>,
}

/// How far a peer is with a batch.
#[derive(Debug, Default)]
pub(super) struct Progress {
    batch: Arc<Batch>,
    run: usize,
    change: usize,
}

impl Batch {
    /// Paths with what was told of them last, which is what one peer holds or else what its group has been told; and with what is now.
    pub(super) fn new(
        changes: impl Iterator<Item = (Nlri, Option<Arc<Route>>, Option<Arc<Route>>)>,
        held: bool,
    ) -> Batch {
        let mut runs: Vec<Run> = Vec::new();
        // Routes are there once: the same one is at the same place.
        let mut known: HashMap<Option<*const Route>, usize> = HashMap::new();
        let mut last = (None, usize::MAX);
        for (path, before, now) in changes {
            let place = now.as_ref().map(Arc::as_ptr);
            if last != (place, last.1) || last.1 == usize::MAX {
                let run = *known.entry(place).or_insert(runs.len());
                if run == runs.len() {
                    runs.push(Run { now, changes: Vec::new() });
                }
                last = (place, run);
            }
            runs[last.1].changes.push(Change { path, before });
        }
        runs.sort_unstable_by(|one, other| one.now.cmp(&other.now));
        for Run { changes, .. } in &mut runs {
            if !changes.is_sorted_by_key(|change| change.path) {
                changes.sort_unstable_by_key(|change| change.path);
            }
            changes.shrink_to_fit();
        }
        Batch { runs, held }
    }
}

impl Progress {
    pub(super) fn of(batch: Arc<Batch>) -> Progress {
        Progress { batch, run: 0, change: 0 }
    }

    /// What comes before, in these changes, is what the peer itself holds.
    pub(super) fn is_of_held(&self) -> bool {
        self.batch.held
    }

    /// What comes next: what the paths are announced with, and those of the run that are left.
    pub(super) fn next(&self) -> Option<(Option<&Arc<Route>>, &[Change])> {
        let run = self.batch.runs.get(self.run)?;
        Some((run.now.as_ref(), run.changes.get(self.change..)?))
    }

    /// Which run that is.
    pub(super) fn run(&self) -> usize {
        self.run
    }

    /// So many of [`Progress::next`] are done.
    pub(super) fn advance(&mut self, changes: usize) {
        self.change += changes;
        if self.batch.runs.get(self.run).is_none_or(|run| self.change >= run.changes.len()) {
            (self.run, self.change) = (self.run + 1, 0);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.run >= self.batch.runs.len()
    }

    /// All changes that are left, with what the paths are announced with.
    pub(super) fn left(&self) -> impl Iterator<Item = (Option<&Arc<Route>>, &Change)> {
        let runs = self.batch.runs.get(self.run..).unwrap_or_default();
        let changes = runs.iter().flat_map(|run| run.changes.iter().map(|change| (run.now.as_ref(), change)));
        changes.skip(self.change)
    }

    /// How many changes are left.
    pub(super) fn len(&self) -> usize {
        let runs = self.batch.runs.get(self.run..).unwrap_or_default();
        runs.iter().map(|run| run.changes.len()).sum::<usize>() - self.change
    }
}
