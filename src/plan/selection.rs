//! What of the plan is announced now: what the dataplane holds, and of aggregates and what is in them one or the other.
//!
//! PURE: the plan, what the dataplane holds, and what a change touched → what to announce and what to withdraw.
//!
//! An aggregate is announced while all that this node is to announce in it is held. Otherwise it would draw packets here for a VIP
//! that this node cannot forward, and another could. What it stands for is announced before the aggregate goes, and withdrawn after it
//! has come: on the way there is always a route.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::model::{Announcement, AnnouncementKind, NodePlan};

/// What is announced.
#[derive(Debug, Default)]
pub struct Selection {
    announced: BTreeMap<IpNet, Announcement>,
    /// What is held, and not announced because an aggregate that is stands for it.
    covered: BTreeMap<IpNet, Announcement>,
    /// Aggregate → what is to be announced in it, and is not held.
    missing: BTreeMap<IpNet, BTreeSet<IpNet>>,
}

/// What a change comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// To be announced, anew or with other attributes.
    pub announce: Vec<Announcement>,
    /// To be withdrawn.
    pub withdraw: Vec<IpNet>,
    /// What is announced takes the place of what is withdrawn: peers must have the one before they lose the other.
    pub in_place: bool,
    /// Aggregates left out: what can be announced now, or with other attributes, whether or not one stands for it.
    pub held: Vec<Announcement>,
    /// Aggregates left out: what can no more.
    pub lost: Vec<IpNet>,
}

impl Step {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Selection {
    /// What is announced.
    pub fn announced(&self) -> &BTreeMap<IpNet, Announcement> {
        &self.announced
    }

    /// What can be announced, aggregates left out.
    pub fn held(&self) -> impl Iterator<Item = &Announcement> {
        let announced =
            self.announced.values().filter(|announced| announced.kind != AnnouncementKind::Aggregate);
        announced.chain(self.covered.values())
    }

    /// How many prefixes are held, aggregates counted too.
    pub fn len(&self) -> usize {
        self.announced.len() + self.covered.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether peers have a route for this prefix: its own, or that of an aggregate which stands for it.
    pub fn announces(&self, prefix: &IpNet) -> bool {
        self.announced.contains_key(prefix) || self.covered.contains_key(prefix)
    }

    /// The aggregate that is announced in place of a prefix.
    pub fn aggregate_of(&self, plan: &NodePlan, prefix: &IpNet) -> Option<IpNet> {
        self.covered.get(prefix)?;
        plan.aggregates_around(*prefix).find(|aggregate| self.stands(plan, aggregate, prefix))
    }

    fn stands(&self, plan: &NodePlan, aggregate: &IpNet, prefix: &IpNet) -> bool {
        let kind = self.announced.get(aggregate).map(|announced| announced.kind);
        kind == Some(AnnouncementKind::Aggregate) && plan.covers(aggregate, prefix)
    }

    /// Follows the plan, and what the dataplane holds, in `touched` (`None`: in all).
    pub fn update(
        &mut self,
        plan: &NodePlan,
        holds: impl Fn(&Announcement) -> bool,
        touched: Option<&BTreeSet<IpNet>>,
    ) -> Step {
        let mut touched: BTreeSet<IpNet> = match touched {
            Some(touched) => touched.clone(),
            None => {
                let known = self.announced.keys().chain(self.covered.keys());
                known.chain(plan.announcements.keys()).copied().collect()
            }
        };
        let mut aggregates = BTreeSet::new();
        for prefix in &touched {
            let missing = plan.announcements.get(prefix).is_some_and(|planned| !holds(planned));
            for aggregate in plan.aggregates_around(*prefix) {
                let all = self.missing.entry(aggregate).or_default();
                if missing {
                    all.insert(*prefix);
                } else {
                    all.remove(prefix);
                }
                aggregates.insert(aggregate);
            }
            if is_aggregate(plan.announcements.get(prefix)) || is_aggregate(self.announced.get(prefix)) {
                aggregates.insert(*prefix);
            }
        }
        let mut step = Step::default();
        for aggregate in aggregates {
            touched.remove(&aggregate);
            let complete = self.missing.get(&aggregate).is_none_or(BTreeSet::is_empty);
            let wanted =
                plan.announcements.get(&aggregate).filter(|planned| !is_aggregate(Some(planned)) || complete);
            let wanted = wanted.filter(|wanted| holds(wanted));
            if is_aggregate(wanted) != is_aggregate(self.announced.get(&aggregate)) {
                // What it stands for, or stood for.
                touched.extend(plan.covered_by(&aggregate));
                touched.extend(self.covered.keys().filter(|prefix| aggregate.contains(*prefix)));
                step.in_place = true;
            }
            self.set(aggregate, wanted, &mut step);
        }
        for prefix in touched {
            let wanted = plan.announcements.get(&prefix).filter(|planned| holds(planned));
            let before = self.announced.get(&prefix).or_else(|| self.covered.get(&prefix));
            match wanted {
                Some(wanted) if before != Some(wanted) => step.held.push(wanted.clone()),
                None if before.is_some() => step.lost.push(prefix),
                _ => {}
            }
            let covered = wanted.filter(|_| {
                plan.aggregates_around(prefix).any(|aggregate| self.stands(plan, &aggregate, &prefix))
            });
            self.set(prefix, wanted.filter(|_| covered.is_none()), &mut step);
            match covered {
                Some(covered) => self.covered.insert(prefix, covered.clone()),
                None => self.covered.remove(&prefix),
            };
        }
        step.in_place &= !step.announce.is_empty() && !step.withdraw.is_empty();
        step
    }

    /// Withdraws those of `prefixes` that the plan has no more. What the dataplane holds of the rest is as it was.
    pub fn retire(&mut self, plan: &NodePlan, prefixes: &BTreeSet<IpNet>) -> Step {
        let gone: BTreeSet<IpNet> =
            prefixes.iter().filter(|prefix| !plan.announcements.contains_key(prefix)).copied().collect();
        let mut step = Step::default();
        let mut uncovers = false;
        for prefix in &gone {
            for missing in self.missing.values_mut() {
                missing.remove(prefix);
            }
            if is_aggregate(self.announced.get(prefix)) {
                self.set(*prefix, None, &mut step);
                uncovers = true;
            } else if self.covered.remove(prefix).is_some() {
                step.lost.push(*prefix);
            } else if self.announced.contains_key(prefix) {
                step.lost.push(*prefix);
                self.set(*prefix, None, &mut step);
            }
        }
        if uncovers {
            // What an aggregate stood for that is there still.
            let revealed: Vec<IpNet> = self
                .covered
                .keys()
                .filter(|prefix| {
                    !plan.aggregates_around(**prefix).any(|aggregate| self.stands(plan, &aggregate, prefix))
                })
                .copied()
                .collect();
            for prefix in revealed {
                let announcement = self.covered.remove(&prefix);
                self.set(prefix, announcement.as_ref(), &mut step);
            }
        }
        step.in_place = !step.announce.is_empty() && !step.withdraw.is_empty();
        step
    }

    fn set(&mut self, prefix: IpNet, wanted: Option<&Announcement>, step: &mut Step) {
        match wanted {
            Some(wanted) if self.announced.get(&prefix) != Some(wanted) => {
                step.announce.push(wanted.clone());
                self.announced.insert(prefix, wanted.clone());
            }
            None if self.announced.remove(&prefix).is_some() => step.withdraw.push(prefix),
            _ => {}
        }
    }
}

fn is_aggregate(announcement: Option<&Announcement>) -> bool {
    announcement.is_some_and(|announcement| announcement.kind == AnnouncementKind::Aggregate)
}
