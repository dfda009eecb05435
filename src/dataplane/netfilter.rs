//! Our nftables table: rules and elements, kept equal to the plan.
//!
//! What a plan asks for is turned into [`Element`]s. The table is listed by [`Netfilter::sync`] alone: at the start, and
//! when [`Netfilter::check`] finds that somebody else made a transaction, which the ruleset's generation tells.
//! [`Netfilter::apply`] writes just the elements that a change touches, since what is held is known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;

use super::changes::Changes;
use super::conntrack::Stale;
use super::direct::Direct;
use super::elements::Element;
use super::generation::{Generation, Nfnetlink};
use super::lookup::{self, Found};
use super::nft::{self, Listing, NftError};
use super::numbers::Numbers;
use super::rewrites::{Refused, Rewrites};
use super::ruleset::{Rules, TABLE};
use super::{vip_net, wishes};
use crate::config::MarkMask;
use crate::plan::{Delta, NodePlan, RewriteKey, VipPort};

/// Where others change their tables all the time, listing ours takes at most this part of the time.
const SHARE: u32 = 10;
/// But it is not put off longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The table, as we believe the kernel holds it.
#[derive(Debug)]
pub struct Netfilter {
    mask: MarkMask,
    nfnetlink: Nfnetlink,
    /// Of the ruleset when the table was as we believe; `None` where somebody else may have changed it since.
    generation: Option<Generation>,
    /// No listing before that, though others made transactions.
    pause: Option<Instant>,
    /// How often the table was listed since the start, with elements or without.
    pub listings: u64,
    /// Rules in force, with how nft lists them as soon as that is known.
    rules: Option<(Rules, Option<Vec<Value>>)>,
    numbers: Numbers,
    rewrites: Rewrites,
    /// What passes to pods, written with whatever is written next.
    pub direct: Direct,
    /// Elements held, apart from those of rewrites.
    base: BTreeSet<Element>,
    /// Virtual servers that have no mark though they need one, with the reason: clients within the cluster get what others get.
    pub unmarked: BTreeMap<VipPort, String>,
    /// There was a first sync.
    began: bool,
    /// The first sync found a table of an agent before.
    pub adopted: bool,
}

impl Netfilter {
    /// Nothing is known of the kernel before the first [`Self::sync`].
    ///
    /// # Errors
    /// [`NftError`] where there is no socket.
    pub fn open(mask: MarkMask) -> Result<Self, NftError> {
        Ok(Self {
            mask,
            nfnetlink: Nfnetlink::open()?,
            generation: None,
            pause: None,
            listings: 0,
            rules: None,
            numbers: Numbers::new(mask, HashMap::new(), HashMap::new()),
            rewrites: Rewrites::default(),
            direct: Direct::default(),
            base: BTreeSet::new(),
            unmarked: BTreeMap::new(),
            began: false,
            adopted: false,
        })
    }

    /// Whether there is a table of ours.
    ///
    /// # Errors
    /// [`NftError`] when the kernel does not answer.
    pub fn exists(&mut self) -> Result<bool, NftError> {
        Ok(self.nfnetlink.has_table(TABLE)?)
    }

    /// Whether there was a first [`Self::sync`].
    pub fn began(&self) -> bool {
        self.began
    }

    /// Lists the table and makes it what the plan says; the first time, adopts what is there. Gives what had to be
    /// repaired, in words; the first time that is everything there was to do.
    ///
    /// # Errors
    /// [`NftError`]; the table is as before then.
    pub fn sync(
        &mut self,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        rules: Rules,
        now: Instant,
    ) -> Result<Vec<String>, NftError> {
        let began = Instant::now();
        // Read before the listing: what is changed in between is listed once more next time.
        let generation = self.nfnetlink.generation()?;
        let found = if self.exists()? {
            self.listings += 1;
            nft::list()?
        } else {
            None
        };
        self.pause = Some(now + (began.elapsed() * SHARE).min(LONGEST_PAUSE));
        if self.generation == Some(generation)
            && let (Some((_, listed @ None)), Some(found)) = (&mut self.rules, &found)
        {
            *listed = Some(found.rules.clone());
        }
        self.generation = Some(generation);
        if !self.began {
            self.began = true;
            self.adopted = found.is_some();
            if let Some(found) = &found {
                self.adopt(&found.elements);
            }
        }
        self.rewrites.rebuild(&mut self.numbers, plan, now);
        self.unmarked.clear();
        for vip in plan.virtual_servers.keys() {
            self.number(plan, local, vip);
        }
        self.rewrites.rebuild_dispensable(&mut self.numbers, plan);
        self.base.retain(|element| matches!(element, Element::Internal(..)));
        self.base.append(&mut wishes::all(plan, local, &self.numbers));
        let put = self.put(found, rules);
        if put.is_err() {
            self.generation = None;
        }
        put
    }

    /// Repairs the table if somebody else may have changed it; costs next to nothing where nobody did. Tries again what
    /// was refused. Gives what had to be repaired, in words.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn check(
        &mut self,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        rules: Rules,
        now: Instant,
    ) -> Result<Vec<String>, NftError> {
        let is_ours = self.is_untouched()?;
        // Whether the table is there at all costs nothing to ask.
        if !is_ours && (self.pause.is_none_or(|pause| pause <= now) || !self.exists()?) {
            return self.sync(plan, local, rules, now);
        }
        if is_ours {
            self.learn_rules()?;
        }
        let mut changes = Changes::default();
        for key in self.rewrites.refused.keys().copied().collect::<Vec<_>>() {
            self.rewrites.follow(&mut self.numbers, plan, key, now, &mut changes);
        }
        for vip in self.unmarked.keys().copied().collect::<Vec<_>>() {
            self.follow(plan, local, &vip, &mut changes);
        }
        self.write(changes).map(|()| Vec::new())
    }

    /// Reads the rules back that were written, so that it is known how nft lists them.
    fn learn_rules(&mut self) -> Result<(), NftError> {
        let Some((rules, None)) = self.rules else { return Ok(()) };
        self.listings += 1;
        let listed = nft::list_rules()?;
        if self.is_untouched()? {
            self.rules = Some((rules, listed));
        }
        Ok(())
    }

    /// Makes the table, found so, what is believed.
    fn put(&mut self, found: Option<Listing>, rules: Rules) -> Result<Vec<String>, NftError> {
        let existed = found.is_some();
        let listing = found.unwrap_or_default();
        let rules_stand = self
            .rules
            .as_ref()
            .is_some_and(|(held, listed)| *held == rules && listed.as_ref() == Some(&listing.rules));
        let wanted = self.elements();
        let mut text = if rules_stand { String::new() } else { rules.transaction() };
        let strange: BTreeSet<&str> = listing.strange.iter().map(|(set, _)| set.as_str()).collect();
        for set in &strange {
            let is_map = ["mark", "endpoints", "internal"].iter().any(|map| set.starts_with(map));
            let kind = if is_map { "map" } else { "set" };
            text.push_str(&format!("flush {kind} inet {TABLE} {set}\n"));
        }
        // A flushed set is filled again whole.
        let found: BTreeSet<Element> =
            listing.elements.into_iter().filter(|element| !strange.contains(element.set())).collect();
        let (gone, new): (Vec<_>, Vec<_>) =
            (found.difference(&wanted).collect(), wanted.difference(&found).collect());
        text.push_str(&nft::changes(gone.iter().copied(), new.iter().copied()));
        if text.is_empty() {
            return Ok(Vec::new());
        }
        match self.transact(&text) {
            // A table of another version may have sets of another shape: made anew, in one transaction.
            Err(NftError::Refused(_)) if existed && !rules_stand => {
                self.transact(&format!("{}{}", rules.replacement(), nft::changes([], &wanted)))?;
            }
            result => result?,
        }
        let mut repaired = Vec::new();
        if !rules_stand {
            let what = match (&self.rules, existed) {
                (_, false) => "made table inet sheave",
                (None, true) => "took over table inet sheave",
                (Some(_), true) => "put back rules of table inet sheave",
            };
            repaired.push(what.into());
            self.rules = Some((rules, None));
            self.learn_rules()?;
        }
        for (verb, elements) in [("removed from", &gone), ("added to", &new)] {
            let mut counts = BTreeMap::<&str, usize>::new();
            for element in elements {
                *counts.entry(element.set()).or_default() += 1;
            }
            repaired.extend(counts.iter().map(|(set, count)| format!("{verb} {set}: {count} elements")));
        }
        Ok(repaired)
    }

    /// Whether these rules are in force, as far as is known.
    pub fn has(&self, rules: Rules) -> bool {
        self.rules.as_ref().is_some_and(|(held, _)| *held == rules)
    }

    /// Writes what a change touches, in one transaction; rewrites that are not wanted any more linger.
    ///
    /// # Errors
    /// [`NftError`]: what is held is unknown then, and [`Self::sync`] is due.
    pub fn apply(
        &mut self,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        delta: &Delta,
        now: Instant,
    ) -> Result<(), NftError> {
        let mut changes = Changes::default();
        if delta.node {
            self.node_changes(plan, local, &mut changes);
        }
        for vip in &delta.vips {
            let element = Element::Vip(IpNet::from(*vip));
            let bound_alone = vip_net(plan, *vip) == IpNet::from(*vip);
            changes.set(element, self.base.contains(&element), plan.vips.contains_key(vip) && bound_alone);
            let element = Element::Taken(*vip);
            changes.set(element, self.base.contains(&element), wishes::is_taken(plan, local, *vip));
        }
        for vip in &delta.source_ranges {
            let wanted: BTreeSet<Element> = wishes::sources(plan, vip).collect();
            let held: BTreeSet<Element> = std::iter::once(Element::Restricted(*vip))
                .filter(|element| self.base.contains(element))
                .chain(
                    self.base
                        .range(Element::Source(*vip, IpNet::default())..)
                        .take_while(|element| matches!(element, Element::Source(of, _) if of == vip))
                        .copied(),
                )
                .collect();
            held.difference(&wanted).for_each(|element| changes.remove(*element));
            wanted.difference(&held).for_each(|element| changes.add(*element));
        }
        for element in &changes.gone {
            self.base.remove(element);
        }
        self.base.extend(&changes.new);
        for vip in &delta.virtual_servers {
            self.follow(plan, local, vip, &mut changes);
        }
        for key in &delta.rewrites {
            self.rewrites.follow(&mut self.numbers, plan, *key, now, &mut changes);
        }
        self.write(changes)
    }

    /// Removes the rewrites whose time is up.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn expire(&mut self, now: Instant) -> Result<(), NftError> {
        let mut changes = Changes::default();
        for key in self.rewrites.due(now) {
            self.rewrites.drop(&mut self.numbers, key, &mut changes);
        }
        self.write(changes)
    }

    /// Whether nobody else has made a transaction since the table was as is believed: then it is so still.
    ///
    /// # Errors
    /// [`NftError`] when the kernel does not answer.
    pub fn is_untouched(&mut self) -> Result<bool, NftError> {
        Ok(self.generation == Some(self.nfnetlink.generation()?))
    }

    /// Whether the rules are in force. They are listed only where somebody made a transaction since we knew.
    ///
    /// # Errors
    /// [`NftError`] when the kernel does not answer.
    pub fn rules_now(&mut self) -> Result<RulesNow, NftError> {
        if self.is_untouched()? {
            return Ok(RulesNow::AsPlanned);
        }
        self.listings += 1;
        let now = nft::list_rules()?;
        Ok(match (now, &self.rules) {
            (None, _) => RulesNow::Absent,
            // How nft lists them has not been seen yet.
            (Some(_), Some((_, None))) => RulesNow::AsPlanned,
            (Some(now), Some((_, Some(known)))) if now == *known => RulesNow::AsPlanned,
            _ => RulesNow::Otherwise,
        })
    }

    /// How long the table is not listed, whoever changes it.
    pub fn pauses_for(&self, now: Instant) -> Duration {
        self.pause.map_or(Duration::ZERO, |pause| pause.saturating_duration_since(now))
    }

    /// The elements that a packet for a virtual server meets, given the rewrites it may have; whether each should be there.
    pub fn elements_of(
        &self,
        plan: &NodePlan,
        vip: VipPort,
        rewrites: impl Iterator<Item = RewriteKey>,
    ) -> Vec<(Element, bool)> {
        let mut elements: Vec<(Element, bool)> = wishes::candidates(plan, &vip, &self.numbers)
            .map(|element| (element, self.base.contains(&element)))
            .collect();
        let held = rewrites.flat_map(|key| self.rewrites.elements_of(&self.numbers, key));
        elements.extend(held.map(|element| (element, true)));
        elements
    }

    /// Looks for an element in the kernel.
    ///
    /// # Errors
    /// [`NftError`] when it does not answer.
    pub fn look_up(&mut self, element: &Element) -> Result<Found, NftError> {
        Ok(lookup::look_up(&mut self.nfnetlink, element)?)
    }

    fn write(&mut self, mut changes: Changes) -> Result<(), NftError> {
        self.direct.write(&mut changes);
        let text = nft::changes(&changes.gone, &changes.new);
        if text.is_empty() { Ok(()) } else { self.transact(&text) }
    }

    /// Runs a transaction. Where it was the only one since we knew the table, we know it still.
    fn transact(&mut self, text: &str) -> Result<(), NftError> {
        let before = self.nfnetlink.generation()?;
        let known = self.generation == Some(before);
        nft::transact(text)?;
        let after = self.nfnetlink.generation()?;
        self.generation = (known && after.follows(before)).then_some(after);
        Ok(())
    }

    /// Every element that the table should hold now.
    fn elements(&mut self) -> BTreeSet<Element> {
        let mut elements = self.rewrites.elements(&self.numbers);
        elements.extend(&self.base);
        elements.extend(self.direct.all());
        elements
    }

    /// Takes over numbers, marks and rewrites of an agent before this one; the plan then says which stay.
    fn adopt(&mut self, found: &BTreeSet<Element>) {
        let (mut endpoints, mut vips) = (HashMap::new(), HashMap::new());
        for element in found {
            match *element {
                Element::Mark(outer, mark) => {
                    endpoints.extend(self.mask.number(mark).map(|number| (outer, number)));
                }
                Element::Internal(vip, mark) => {
                    vips.extend(self.mask.number(mark).map(|number| (vip, number)));
                }
                _ => {}
            }
        }
        self.numbers = Numbers::new(self.mask, endpoints, vips);
        let marked = |vip: &VipPort| Some(Element::Internal(*vip, self.numbers.vip_mark(vip)?));
        self.base = self.numbers.vips().filter_map(marked).collect();
        self.rewrites.adopt(&mut self.numbers, found);
        self.numbers.adoption_done();
    }

    /// Gives a virtual server that needs a mark its number. One that has a number keeps it until IPVS holds nothing of it.
    fn number(&mut self, plan: &NodePlan, local: &BTreeSet<IpAddr>, vip: &VipPort) {
        self.unmarked.remove(vip);
        if wishes::needs_mark(plan, local, vip)
            && let Err(error) = self.numbers.number_vip(*vip)
        {
            self.unmarked.insert(*vip, error.to_string());
        }
    }

    /// Follows the plan for one virtual server, apart from its mark.
    fn follow(&mut self, plan: &NodePlan, local: &BTreeSet<IpAddr>, vip: &VipPort, changes: &mut Changes) {
        self.number(plan, local, vip);
        let wanted = wishes::of_virtual_server(plan, local, vip, &self.numbers);
        let one = [Element::NodePort(*vip), Element::Closed(*vip), Element::Dropped(*vip)];
        let closing = self.base.range(Element::Closing(*vip, 0)..=Element::Closing(*vip, u32::MAX)).copied();
        let held: BTreeSet<Element> =
            one.into_iter().filter(|element| self.base.contains(element)).chain(closing).collect();
        for element in held.difference(&wanted) {
            self.base.remove(element);
            changes.remove(*element);
        }
        for element in wanted.difference(&held) {
            self.base.insert(*element);
            changes.add(*element);
        }
    }

    /// Marks what clients within the cluster send to the virtual servers for whose mark IPVS has come to hold a service, and no
    /// more where it holds none: there the mark is free again, unless the plan wants one.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn mark(
        &mut self,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        held: &BTreeMap<VipPort, bool>,
    ) -> Result<(), NftError> {
        let mut changes = Changes::default();
        for (vip, held) in held {
            let Some(mark) = self.numbers.vip_mark(vip) else { continue };
            let element = Element::Internal(*vip, mark);
            if *held {
                if self.base.insert(element) {
                    changes.add(element);
                }
                continue;
            }
            if self.base.remove(&element) {
                changes.remove(element);
            }
            if !wishes::needs_mark(plan, local, vip) {
                self.numbers.release_vip(vip);
                self.follow(plan, local, vip, &mut changes);
            }
        }
        self.write(changes)
    }

    /// Numbers in use.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// What conntrack is to forget now that the table is written.
    pub fn take_stale(&mut self) -> Vec<Stale> {
        self.rewrites.take_stale()
    }

    /// Rewrites that could not be made, with the reason.
    pub fn refused(&self) -> &BTreeMap<RewriteKey, Refused> {
        &self.rewrites.refused
    }

    fn node_changes(&self, plan: &NodePlan, local: &BTreeSet<IpAddr>, changes: &mut Changes) {
        let of_node = |element: &&Element| {
            matches!(
                element,
                Element::Node(_)
                    | Element::Vip(_)
                    | Element::Taken(_)
                    | Element::Pods(_)
                    | Element::Client(_)
            )
        };
        let wanted = wishes::all(plan, local, &self.numbers);
        for element in self.base.iter().filter(of_node) {
            changes.set(*element, true, wanted.contains(element));
        }
        for element in wanted.iter().filter(of_node) {
            changes.set(*element, self.base.contains(element), true);
        }
    }
}

/// There is no table.
pub const NO_TABLE: &str = "nftables has no table inet sheave";
/// Rules are not ours.
pub const OTHER_RULES: &str = "rules of nftables' table inet sheave are not as planned";

/// How our rules stand in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RulesNow {
    /// In force, as far as is known.
    AsPlanned,
    /// Somebody changed them.
    Otherwise,
    /// There is no table of ours.
    Absent,
}

/// Removes our table. Gives whether there was one.
///
/// # Errors
/// [`NftError`].
pub fn remove() -> Result<bool, NftError> {
    if nft::list()?.is_none() {
        return Ok(false);
    }
    nft::transact(&format!("delete table inet {TABLE}\n")).map(|()| true)
}
