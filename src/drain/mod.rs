//! Drain: this node stops to be a director, so that no client notices; and becomes one again.
//!
//! ```text
//!                 asked                  wait is over                none left, nothing kept
//!  ┌─────────┐ ─────────► ┌─────────┐ ─────────────► ┌──────────┐ ─────────► ┌─────────┐
//!  │ Serving │            │ Leaving │                │ Emptying │ ◄───────── │ Drained │
//!  └─────────┘ ◄───────── └─────────┘ ◄────┐         └──────────┘ kept again └─────────┘
//!       ▲      not any more                │ asked         │ not any more         │
//!       │                              ┌───────────┐ ◄─────┴──────────────────────┘
//!       └───────────────────────────── │ Returning │   and the dataplane is whole
//!         wait is over, still whole    └───────────┘
//! ```
//!
//! PURE: ([`Drain`], what is [`Seen`], now) → [`Stance`]: how VIPs are announced. While Leaving and Returning they are a last resort
//! (GRACEFUL_SHUTDOWN, RFC 8326), so that routers move to other directors before anything is withdrawn, and do not rush back. The kernel
//! is left as it is: what still comes is forwarded, in every phase.
//!
//! A VIP that no other node is to announce is *kept*: it stays a last resort, since nobody would take its connections over. It goes
//! once another node has been to announce it for as long as a wait takes, or no Service has had it for that long. While it has no
//! endpoint it *waits*: there is nothing to announce, and nothing to stay for, but it is a last resort again with its next endpoint.
//! What is withdrawn otherwise comes back with Returning alone.

mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::IpNet;

pub use record::{Record, RecordFile, remove as remove_record};

/// How VIPs, and aggregates of them, are announced. Nothing else is concerned: pods are reached through this node's pod CIDRs and the
/// routes of kernel tables, whoever is the director.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stance {
    /// As planned.
    #[default]
    Planned,
    /// All of them, as a last resort.
    LastResort,
    /// These alone, as a last resort.
    Only(BTreeSet<IpNet>),
}

impl Stance {
    /// Whether a VIP may be announced at all.
    pub fn allows(&self, prefix: &IpNet) -> bool {
        match self {
            Self::Planned | Self::LastResort => true,
            Self::Only(kept) => kept.contains(prefix),
        }
    }

    /// Whether those that are announced are a last resort.
    pub fn is_last_resort(&self) -> bool {
        *self != Self::Planned
    }
}

/// Where a node stands between serving and drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// As ever.
    Serving,
    /// VIPs are a last resort until then.
    Leaving(Instant),
    /// They were withdrawn then; connections still come through this node, or that is not known yet.
    Emptying(Instant),
    /// Nothing comes any more.
    Drained,
    /// VIPs are a last resort until then.
    Returning(Instant),
}

impl Phase {
    /// All names.
    pub const NAMES: [&str; 5] = ["serving", "leaving", "emptying", "drained", "returning"];

    /// Its name.
    pub fn name(self) -> &'static str {
        let [serving, leaving, emptying, drained, returning] = Self::NAMES;
        match self {
            Self::Serving => serving,
            Self::Leaving(_) => leaving,
            Self::Emptying(_) => emptying,
            Self::Drained => drained,
            Self::Returning(_) => returning,
        }
    }
}

/// VIPs that no other node is to announce: whether this one is, having endpoints for them.
pub type Alone = BTreeMap<IpNet, bool>;

/// What the agent's loop sees. What takes work is asked for only when it matters.
pub struct Seen<'a> {
    /// Somebody asks for a drain.
    pub asked: bool,
    /// The kernel holds all that is planned.
    pub whole: bool,
    /// Those of the VIPs of this node (`Some`: of these) that no other node is to announce.
    pub alone: &'a dyn Fn(Option<&BTreeSet<IpNet>>) -> Alone,
    /// It is time to look again what is to be kept.
    pub looks: bool,
    /// How many connections need this node, and when it was begun to count them; `None`: they were not counted since the last step.
    pub connections: Option<(usize, Instant)>,
}

/// How far this node has drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    wait: Duration,
    limit: Duration,
    phase: Phase,
    kept: BTreeMap<IpNet, Kept>,
    /// As seen last.
    connections: usize,
}

/// A VIP that no other node is to announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    /// It had endpoints here when it was looked at last: otherwise it waits for one.
    planned: bool,
    /// Since when another node has been to announce it, or nobody.
    gone: Option<Instant>,
}

impl Kept {
    fn new(planned: bool) -> Self {
        Self { planned, gone: None }
    }
}

impl Drain {
    /// One that goes on where an agent before was; VIPs are a last resort for `wait`, and connections are waited for until `limit`.
    pub fn resume(record: &Record, wait: Duration, limit: Duration, now: Instant) -> Self {
        let phase = match &*record.phase {
            "leaving" => Phase::Leaving(now + wait),
            "emptying" => Phase::Emptying(now),
            "drained" => Phase::Drained,
            "returning" => Phase::Returning(now + wait),
            // None there, or that of another version.
            _ => Phase::Serving,
        };
        let kept = record.kept.iter().map(|prefix| (*prefix, Kept::new(true)));
        let waiting = record.waiting.iter().map(|prefix| (*prefix, Kept::new(false)));
        let kept = kept.chain(waiting).collect();
        Self { wait, limit, phase, kept, connections: 0 }
    }

    /// The first look, before anything is announced. `announced`: peers may still have what an agent before announced. Otherwise a
    /// node that is to drain has nothing to leave, and announces nothing at all.
    pub fn begin(&mut self, asked: bool, announced: bool) {
        if asked && !announced && self.phase == Phase::Serving {
            self.phase = Phase::Drained;
        }
    }

    /// Goes a step on, if it is time. To be called every second or so.
    pub fn step(&mut self, seen: &Seen<'_>, now: Instant) {
        let (asked, last_resort) = (seen.asked, now + self.wait);
        match self.phase {
            Phase::Serving if asked => self.phase = Phase::Leaving(last_resort),
            Phase::Leaving(_) if !asked => self.phase = Phase::Serving,
            Phase::Leaving(until) if now >= until => {
                let alone = (seen.alone)(None).into_iter();
                self.kept = alone.map(|(prefix, planned)| (prefix, Kept::new(planned))).collect();
                self.phase = Phase::Emptying(now);
            }
            Phase::Emptying(_) | Phase::Drained if !asked => {
                if seen.whole {
                    self.kept.clear();
                    self.phase = Phase::Returning(last_resort);
                }
            }
            Phase::Emptying(since) => {
                self.look(seen, now);
                if let Some((count, counted)) = seen.connections {
                    self.connections = count;
                    // Before that, silence tells nothing.
                    if count == 0 && counted >= since + self.wait && self.kept().next().is_none() {
                        self.phase = Phase::Drained;
                    }
                }
            }
            Phase::Drained => {
                self.look(seen, now);
                if self.kept().next().is_some() {
                    self.phase = Phase::Emptying(now);
                }
            }
            Phase::Returning(_) if asked => self.phase = Phase::Leaving(last_resort),
            Phase::Returning(until) if now >= until && seen.whole => self.phase = Phase::Serving,
            Phase::Serving | Phase::Leaving(_) | Phase::Returning(_) => {}
        }
        if !matches!(self.phase, Phase::Emptying(_)) {
            self.connections = 0;
        }
    }

    /// Of what is kept, lets go what another node has taken, or what no Service has; the rest has endpoints, or waits for one.
    fn look(&mut self, seen: &Seen<'_>, now: Instant) {
        if self.kept.is_empty() || !seen.looks {
            return;
        }
        let alone = (seen.alone)(Some(&self.kept.keys().copied().collect()));
        let wait = self.wait;
        self.kept.retain(|prefix, kept| {
            match alone.get(prefix) {
                Some(planned) => *kept = Kept::new(*planned),
                None => kept.gone = kept.gone.or(Some(now)),
            }
            kept.gone.is_none_or(|since| now < since + wait)
        });
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How VIPs are announced.
    pub fn stance(&self) -> Stance {
        match self.phase {
            Phase::Serving => Stance::Planned,
            Phase::Leaving(_) | Phase::Returning(_) => Stance::LastResort,
            Phase::Emptying(_) | Phase::Drained => Stance::Only(self.kept().copied().collect()),
        }
    }

    /// VIPs that are not withdrawn, as no other node is to announce them.
    pub fn kept(&self) -> impl Iterator<Item = &IpNet> {
        self.kept.iter().filter(|(_, kept)| kept.planned).map(|(prefix, _)| prefix)
    }

    /// VIPs that no other node is to announce either, and have no endpoint here.
    pub fn waiting(&self) -> impl Iterator<Item = &IpNet> {
        self.kept.iter().filter(|(_, kept)| !kept.planned).map(|(prefix, _)| prefix)
    }

    /// How many connections need this node, while that matters.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Whether something is left beyond the limit. It is watched on.
    pub fn is_overdue(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Emptying(since) if now >= since + self.limit)
    }
}

#[cfg(test)]
mod tests;
