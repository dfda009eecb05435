//! Values that many share: each is kept once.

use std::collections::HashSet;
use std::collections::hash_set::Iter;
use std::hash::Hash;
use std::sync::Arc;

/// Every value in use, once.
#[derive(Debug)]
pub(super) struct Interned<T> {
    values: HashSet<Arc<T>>,
    /// How many there may be before those are looked for that nobody uses.
    sweep_above: usize,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Interned { values: HashSet::new(), sweep_above: 0 }
    }
}

impl<T: Eq + Hash> Interned<T> {
    pub(super) fn intern(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.values.get(&value) {
            return Arc::clone(known);
        }
        let new = Arc::new(value);
        self.values.insert(Arc::clone(&new));
        new
    }

    /// Forgets a value at once, if but for the one who says so only this table still holds it.
    pub(super) fn forget(&mut self, value: &Arc<T>) {
        if Arc::strong_count(value) == 2 {
            self.values.remove(value);
        }
    }

    /// Forgets values that only this table still holds, once they may be the greater part.
    pub(super) fn sweep(&mut self) {
        if self.values.len() > self.sweep_above {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_above = 2 * self.values.len() + 16;
        }
    }

    pub(super) fn iter(&self) -> Iter<'_, Arc<T>> {
        self.values.iter()
    }
}

#[cfg(test)]
impl<T: Eq + Hash> Interned<T> {
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// The same values, however they came here.
#[cfg(test)]
impl<T: Eq + Hash> PartialEq for Interned<T> {
    fn eq(&self, other: &Interned<T>) -> bool {
        self.values == other.values
    }
}
