//! What a change does to the table: elements that go and elements that come.

use std::collections::BTreeSet;

use super::elements::Element;

/// Elements on their way out and in.
#[derive(Debug, Default)]
pub struct Changes {
    /// To be deleted.
    pub gone: BTreeSet<Element>,
    /// To be added.
    pub new: BTreeSet<Element>,
}

impl Changes {
    /// Takes an element out.
    pub fn remove(&mut self, element: Element) {
        if !self.new.remove(&element) {
            self.gone.insert(element);
        }
    }

    /// Puts an element in.
    pub fn add(&mut self, element: Element) {
        if !self.gone.remove(&element) {
            self.new.insert(element);
        }
    }

    /// Makes an element there or not, as `wanted`.
    pub fn set(&mut self, element: Element, had: bool, wanted: bool) {
        match (had, wanted) {
            (true, false) => self.remove(element),
            (false, true) => self.add(element),
            _ => {}
        }
    }
}
