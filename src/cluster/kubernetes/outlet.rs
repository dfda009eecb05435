//! Where what was heard of all resources becomes what one source tells.

use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc::UnboundedSender;

use super::resource::Resource;
use crate::cluster::{Event, Problem};

/// The source's way out; shared by those who follow the resources.
#[derive(Debug)]
pub(super) struct Outlet {
    events: UnboundedSender<Vec<Event>>,
    common: Mutex<Common>,
}

#[derive(Debug, Default)]
struct Common {
    /// By resource: its first list is complete, or it is not served.
    complete: [bool; Resource::ALL.len()],
    synced: bool,
    /// By resource.
    problems: [Vec<Problem>; Resource::ALL.len()],
}

impl Outlet {
    pub(super) fn new(events: UnboundedSender<Vec<Event>>) -> Self {
        Self { events, common: Mutex::default() }
    }

    /// Until nobody listens any more.
    pub(super) async fn closed(&self) {
        self.events.closed().await;
    }

    /// Tells what was heard of a resource, as one batch. `problems`: what cannot be used of it, if that changed.
    /// `complete`: all there is of it has been told with this, or there is nothing to tell.
    pub(super) fn tell(
        &self,
        resource: Resource,
        mut batch: Vec<Event>,
        problems: Option<Vec<Problem>>,
        complete: bool,
    ) {
        // Nothing in here can leave it half changed.
        let mut common = self.common.lock().unwrap_or_else(PoisonError::into_inner);
        let index = resource as usize;
        if let Some((told, problems)) = common.problems.get_mut(index).zip(problems) {
            *told = problems;
            batch.push(Event::Problems(common.problems.concat()));
        }
        if complete && let Some(flag) = common.complete.get_mut(index) {
            *flag = true;
        }
        if !common.synced && common.complete.iter().all(|complete| *complete) {
            common.synced = true;
            batch.push(Event::Synced);
        }
        if !batch.is_empty() {
            // That nobody listens any more is noticed by all who wait for `closed`.
            let _ = self.events.send(batch);
        }
    }
}
