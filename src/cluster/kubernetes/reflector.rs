//! What to ask the API server next, of one resource. Pure: answers and times come in, questions come out.
//!
//! ```text
//!            ┌───────── 410, garbage, failing on, or down for long ◄────────┐
//!            ▼                                                              │
//!  start ► LIST ──streaming list──────────────────────── complete ──► WATCH from version ──ends──┐
//!            │ refused or ignored: for an hour                ▲          ▲                       │
//!            └────────────► page ──► page ──► page ───────────┘          └───────────────────────┘
//!                            └─410─► the whole list without pages
//! ```
//!
//! A failure changes nothing but the state that is told, and the time of the next attempt.

use std::time::{Duration, Instant, SystemTime};

use super::message::{Failure, Fault};
use super::pauses::Pauses;
use super::{Pace, Resource};
use crate::cluster::WatchState;

/// So many watches in a row may end as soon as they have begun, without a word, before that counts as a failure.
const FLEETING: u32 = 2;

/// So many watches in a row may begin and fail without any news before the version itself is doubted. A server that cannot go
/// on from it (it may have lost what it kept of then) answers 200 each time, and the ERROR only comes afterwards.
const FRUITLESS: u32 = 2;

/// So many times a resource that a server may lack has to be forbidden before that counts as lacking: a server that has just
/// started may not know its own rules yet.
const FORBIDDEN: u32 = 5;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// A watch that begins with all there is.
    StreamingList,
    /// A page of a list, or all of it.
    Page {
        /// Of the page before; `None` begins.
        token: Option<String>,
        /// In pages; or all at once.
        limited: bool,
    },
    /// Changes since that version.
    Watch {
        /// The `resourceVersion`.
        version: String,
    },
}

/// Where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// All there is has to be read.
    List,
    /// Part of it has been read.
    Pages { token: String },
    /// All is known up to that version.
    Watch { version: String },
}

/// The list and watch of one resource.
#[derive(Debug)]
pub(super) struct Reflector {
    resource: Resource,
    pace: Pace,
    phase: Phase,
    state: WatchState,
    /// Until then, lists come in pages.
    paged_until: Option<Instant>,
    /// Streaming lists in a row that ended before they were complete.
    unfinished: u32,
    /// Pages went out of date: the next list comes at once.
    whole: bool,
    /// The request under way is for a streaming list.
    streaming: bool,
    /// Watches in a row that ended as soon as they had begun, without a word.
    fleeting: u32,
    /// Watches in a row that began and failed, without news.
    fruitless: u32,
    /// Watches in a row that were told that their version is out of date.
    expired: u32,
    /// How often the list was forbidden.
    forbidden: u32,
    /// A list was completed at some time.
    listed: bool,
    /// Since when nothing is heard, on both clocks.
    down: Option<(Instant, SystemTime)>,
    pauses: Pauses,
}

impl Reflector {
    pub(super) fn new(resource: Resource, pace: Pace) -> Self {
        Self {
            resource,
            pauses: Pauses::new(pace.first_pause, pace.longest_pause),
            pace,
            phase: Phase::List,
            state: WatchState::Listing,
            paged_until: None,
            unfinished: 0,
            whole: false,
            streaming: false,
            fleeting: 0,
            fruitless: 0,
            expired: 0,
            forbidden: 0,
            listed: false,
            down: None,
        }
    }

    /// How it stands.
    pub(super) fn state(&self) -> &WatchState {
        &self.state
    }

    /// Whether there is nothing to wait for any more at the start.
    pub(super) fn is_complete(&self) -> bool {
        self.listed || self.state == WatchState::NotServed || self.forbidden >= FORBIDDEN
    }

    /// What to ask now.
    pub(super) fn ask(&mut self, now: Instant) -> Ask {
        let down_long =
            self.down.is_some_and(|(since, _)| now.duration_since(since) >= self.pace.relist_after);
        if down_long && matches!(self.phase, Phase::Watch { .. }) {
            self.phase = Phase::List;
        }
        let ask = match &self.phase {
            Phase::Watch { version } => Ask::Watch { version: version.clone() },
            Phase::Pages { token } => Ask::Page { token: Some(token.clone()), limited: true },
            Phase::List if self.whole => Ask::Page { token: None, limited: false },
            Phase::List if self.paged_until.is_some_and(|until| now < until) => {
                Ask::Page { token: None, limited: true }
            }
            Phase::List => Ask::StreamingList,
        };
        self.streaming = ask == Ask::StreamingList;
        ask
    }

    /// Objects of a list arrive.
    pub(super) fn listing(&mut self) {
        if !matches!(self.phase, Phase::Watch { .. }) {
            self.state = WatchState::Listing;
        }
    }

    /// There are more pages.
    pub(super) fn page(&mut self, next: String) {
        self.phase = Phase::Pages { token: next };
        self.listing();
    }

    /// The list is complete: all is known up to that version, however long nothing was heard before.
    pub(super) fn complete(&mut self, version: String) {
        self.phase = Phase::Watch { version };
        self.down = None;
        self.listed = true;
        self.whole = false;
        self.unfinished = 0;
        self.fruitless = 0;
    }

    /// A watch runs.
    pub(super) fn watching(&mut self) {
        self.state = WatchState::Watching;
        self.down = None;
    }

    /// All is known up to a later version.
    pub(super) fn advance(&mut self, version: String) {
        if let Phase::Watch { version: known } = &mut self.phase
            && *known != version
        {
            *known = version;
            self.fruitless = 0;
            self.expired = 0;
        }
    }

    /// A watch tells of an object.
    pub(super) fn heard(&mut self) {
        self.fleeting = 0;
        self.expired = 0;
        self.pauses.reset();
    }

    /// The server does not end its streaming list: it does not know what that is.
    pub(super) fn streaming_list_ignored(&mut self, now: Instant) {
        self.paged_until = Some(now + self.pace.streaming_again);
    }

    /// A watch ended in order, or by being cut. Returns how long to wait before the next request. `chance` is from 0
    /// to 1.
    pub(super) fn ended(
        &mut self,
        lasted: Duration,
        now: Instant,
        wall: SystemTime,
        chance: f64,
    ) -> Duration {
        if !matches!(self.phase, Phase::Watch { .. }) {
            self.unfinished += 1;
            if self.unfinished > 1 {
                self.streaming_list_ignored(now);
            }
            let failure = Failure::connection("a list ended before it was complete");
            return self.failed(failure, now, wall, chance);
        }
        if lasted >= self.pace.first_pause {
            self.fleeting = 0;
            self.expired = 0;
            self.pauses.reset();
            return Duration::ZERO;
        }
        self.fleeting += 1;
        if self.fleeting > FLEETING {
            let failure = Failure::connection("watches end as soon as they have begun");
            return self.failed(failure, now, wall, chance);
        }
        self.pauses.after_failure(None, chance)
    }

    /// A request failed, or a watch by an ERROR event. Returns how long to wait before the next request. `chance` is
    /// from 0 to 1.
    pub(super) fn failed(
        &mut self,
        failure: Failure,
        now: Instant,
        wall: SystemTime,
        chance: f64,
    ) -> Duration {
        match (&self.phase, failure.fault) {
            // What servers say that have no streaming lists: it is forbidden as a field, or invalid.
            (Phase::List, Fault::Status(400 | 422)) if self.streaming => {
                self.streaming_list_ignored(now);
                return Duration::ZERO;
            }
            // The list took so long that its later pages are gone.
            (Phase::Pages { .. }, Fault::Status(410)) if !self.whole => {
                self.phase = Phase::List;
                self.whole = true;
                return Duration::ZERO;
            }
            (Phase::Watch { .. }, Fault::Status(410)) => {
                self.phase = Phase::List;
                self.state = WatchState::Listing;
                // It is back and tells what to do: how long it was away is no reason to wait for as long again.
                if self.expired == 0 {
                    self.pauses.reset();
                }
                self.expired += 1;
                return self.pauses.after_failure(failure.retry_after, chance);
            }
            // A 404 once it was served comes from something else that answers in the server's place.
            (Phase::List, Fault::Status(404)) if self.resource.is_optional() && !self.listed => {
                self.state = WatchState::NotServed;
                self.down = None;
                return self.pace.not_served.mul_f64(1.0 + chance / 4.0);
            }
            // Without ServiceCIDRs all else still works. Once they were listed, nobody is deprived of them by this.
            (Phase::List, Fault::Status(403)) if self.resource.is_optional() && !self.listed => {
                self.forbidden += 1;
                let (_, since) = *self.down.get_or_insert((now, wall));
                if self.forbidden < FORBIDDEN {
                    self.state = WatchState::Down { since, error: failure.message };
                    return self.pauses.after_failure(failure.retry_after, chance);
                }
                let name = self.resource.name();
                let error = format!("{} Until it does, all goes on without {name}", failure.message);
                self.state = WatchState::Down { since, error };
                return self.pace.not_served.mul_f64(1.0 + chance / 4.0);
            }
            // Nothing is known of what was lost, or the server does not take what it gave.
            (_, Fault::Garbage)
            | (Phase::Watch { .. }, Fault::Status(400 | 404 | 422))
            | (Phase::Pages { .. }, Fault::Status(400 | 404 | 410 | 422)) => {
                self.phase = Phase::List;
            }
            // It was let in, and failed nevertheless. A server that wants to be asked less is not asked for all there is.
            (Phase::Watch { .. }, Fault::Status(_) | Fault::Connection)
                if self.state == WatchState::Watching && failure.fault != Fault::Status(429) =>
            {
                self.fruitless += 1;
                if self.fruitless > FRUITLESS {
                    self.phase = Phase::List;
                }
            }
            (_, Fault::Status(_) | Fault::Connection) => {}
        }
        let (_, since) = *self.down.get_or_insert((now, wall));
        self.state = WatchState::Down { since, error: failure.message };
        self.pauses.after_failure(failure.retry_after, chance)
    }
}
