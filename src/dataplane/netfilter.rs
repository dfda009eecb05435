//! Our nftables table: rules and elements, kept equal to the plan.
//!
//! What a plan asks for is turned into [`Element`]s. The table is listed by [`Netfilter::sync`] alone: at the start, and
//! when [`Netfilter::check`] finds that somebody else made a transaction, which the ruleset's generation tells.
//! [`Netfilter::apply`] writes just the elements that a change touches, since what is held is known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;

use super::elements::Element;
use super::generation::{Generation, Nfnetlink};
use super::nft::{self, Listing, NftError};
use super::numbers::{Captured, Numbers};
use super::ruleset::{Rules, TABLE};
use super::{standin, vip_net, vip_nets};
use crate::config::MarkMask;
use crate::plan::{AcceptedIn, Delta, NodePlan, Rewrite, RewriteKey, VipKind, VipPort};

/// How long a rewrite outlives its wish: other directors hear of a removed endpoint a little later, and what
/// they send meanwhile should still arrive.
const LINGER: Duration = Duration::from_secs(5);

/// Where others change their tables all the time, listing ours takes at most this part of the time.
const SHARE: u32 = 20;
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
    numbers: Option<Numbers>,
    /// Rewrites held, and how many of them make an endpoint local.
    rewrites: HashMap<RewriteKey, Rewrite>,
    locals: HashMap<IpAddr, usize>,
    lingering: BTreeMap<RewriteKey, Instant>,
    /// Elements held, apart from those that follow from `rewrites`.
    base: BTreeSet<Element>,
    /// The first sync found a table of an agent before.
    pub adopted: bool,
    /// Rewrites that could not be made, with the reason.
    pub refused: BTreeMap<RewriteKey, String>,
}

/// Elements on their way out and in.
#[derive(Default)]
struct Changes {
    gone: BTreeSet<Element>,
    new: BTreeSet<Element>,
}

impl Changes {
    fn remove(&mut self, element: Element) {
        if !self.new.remove(&element) {
            self.gone.insert(element);
        }
    }

    fn add(&mut self, element: Element) {
        if !self.gone.remove(&element) {
            self.new.insert(element);
        }
    }

    fn set(&mut self, element: Element, had: bool, wanted: bool) {
        match (had, wanted) {
            (true, false) => self.remove(element),
            (false, true) => self.add(element),
            _ => {}
        }
    }
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
            numbers: None,
            rewrites: HashMap::new(),
            locals: HashMap::new(),
            lingering: BTreeMap::new(),
            base: BTreeSet::new(),
            adopted: false,
            refused: BTreeMap::new(),
        })
    }

    /// Whether there is a table of ours.
    ///
    /// # Errors
    /// [`NftError`] when the kernel does not answer.
    pub fn exists(&mut self) -> Result<bool, NftError> {
        Ok(self.nfnetlink.has_table(TABLE)?)
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
        if self.numbers.is_none() {
            self.adopted = found.is_some();
            self.adopt(found.as_ref().unwrap_or(&Listing::default()), now);
        }
        self.rebuild(plan, local, now);
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
        let is_ours = self.generation == Some(self.nfnetlink.generation()?);
        if !is_ours && self.pause.is_none_or(|pause| pause <= now) {
            return self.sync(plan, local, rules, now);
        }
        if is_ours && let Some((rules, None)) = self.rules {
            self.listings += 1;
            let listed = nft::list_rules()?;
            if self.generation == Some(self.nfnetlink.generation()?) {
                self.rules = Some((rules, listed));
            }
        }
        let mut changes = Changes::default();
        for key in self.refused.keys().copied().collect::<Vec<_>>() {
            if let Some(rewrite) = plan.rewrites.get(&key) {
                self.hold(key, *rewrite, &mut changes);
            }
        }
        self.write(&changes).map(|()| Vec::new())
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
            let kind = if set.starts_with("mark") || set.starts_with("endpoints") { "map" } else { "set" };
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
            changes.set(element, self.base.contains(&element), is_taken(plan, local, *vip));
        }
        for vip in &delta.virtual_servers {
            let element = Element::NodePort(*vip);
            changes.set(element, self.base.contains(&element), is_node_port(plan, vip));
        }
        for vip in &delta.source_ranges {
            let wanted: BTreeSet<Element> = sources(plan, vip).collect();
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
        for key in &delta.rewrites {
            match plan.rewrites.get(key) {
                Some(rewrite) => self.hold(*key, *rewrite, &mut changes),
                None if self.rewrites.contains_key(key) => {
                    self.lingering.insert(*key, now + LINGER);
                }
                None => drop(self.refused.remove(key)),
            }
        }
        self.write(&changes)
    }

    /// Removes the rewrites whose time is up.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn expire(&mut self, now: Instant) -> Result<(), NftError> {
        let mut changes = Changes::default();
        for key in self.due(now) {
            self.drop(key, &mut changes);
        }
        self.write(&changes)
    }

    fn write(&mut self, changes: &Changes) -> Result<(), NftError> {
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

    /// Takes over numbers and rewrites of an agent before this one; the plan then says which stay.
    fn adopt(&mut self, listing: &Listing, now: Instant) {
        let mut by_mark = HashMap::new();
        let mut adopted = HashMap::new();
        for element in &listing.elements {
            if let Element::Mark(outer, mark) = element
                && let Some(number) = self.mask.number(*mark)
            {
                adopted.insert(*outer, number);
                by_mark.insert((*mark, outer.is_ipv4()), *outer);
            }
        }
        self.numbers = Some(Numbers::new(self.mask, adopted));
        let locals: BTreeSet<IpAddr> = listing
            .elements
            .iter()
            .filter_map(|element| match element {
                Element::Own(address) => Some(*address),
                _ => None,
            })
            .collect();
        for element in &listing.elements {
            let Element::Endpoint(mark, vip, to) = element else { continue };
            let Some(outer) = by_mark.get(&(*mark, vip.address.is_ipv4())) else { continue };
            let side = if standin::is(*outer) {
                crate::plan::RewriteSide::Director
            } else {
                crate::plan::RewriteSide::Endpoint
            };
            let key = RewriteKey { endpoint: to.ip(), side, vip: *vip };
            let rewrite = Rewrite {
                target_port: to.port(),
                accepted_in: AcceptedIn::Node,
                local: locals.contains(&to.ip()),
            };
            self.hold(key, rewrite, &mut Changes::default());
            self.lingering.insert(key, now + LINGER);
        }
        if let Some(numbers) = &mut self.numbers {
            numbers.adoption_done();
        }
    }

    /// Makes our belief what the plan says, whatever it was.
    fn rebuild(&mut self, plan: &NodePlan, local: &BTreeSet<IpAddr>, now: Instant) {
        let unwanted: Vec<RewriteKey> =
            self.rewrites.keys().filter(|key| !plan.rewrites.contains_key(key)).copied().collect();
        for key in unwanted {
            self.lingering.entry(key).or_insert(now + LINGER);
        }
        let mut ignored = Changes::default();
        for key in self.due(now) {
            self.drop(key, &mut ignored);
        }
        self.refused.clear();
        for (key, rewrite) in &plan.rewrites {
            self.hold(*key, *rewrite, &mut ignored);
        }
        self.base = base(plan, local);
    }

    fn due(&self, now: Instant) -> Vec<RewriteKey> {
        self.lingering.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect()
    }

    fn node_changes(&self, plan: &NodePlan, local: &BTreeSet<IpAddr>, changes: &mut Changes) {
        let of_node = |element: &&Element| {
            matches!(element, Element::Node(_) | Element::Vip(_) | Element::Taken(_) | Element::Pods(_))
        };
        let wanted = base(plan, local);
        for element in self.base.iter().filter(of_node) {
            changes.set(*element, true, wanted.contains(element));
        }
        for element in wanted.iter().filter(of_node) {
            changes.set(*element, self.base.contains(element), true);
        }
    }

    fn hold(&mut self, key: RewriteKey, rewrite: Rewrite, changes: &mut Changes) {
        self.lingering.remove(&key);
        if self.rewrites.get(&key) == Some(&rewrite) {
            return;
        }
        self.drop(key, changes);
        self.refused.remove(&key);
        if rewrite.accepted_in == AcceptedIn::Pod {
            return;
        }
        let captured = Captured { endpoint: key.endpoint, side: key.side };
        let Some(numbers) = &mut self.numbers else { return };
        let known = numbers.mark(captured).is_some();
        if let Err(error) = numbers.acquire(captured) {
            self.refused.insert(key, error.to_string());
            return;
        }
        let Some(mark) = numbers.mark(captured) else { return };
        self.rewrites.insert(key, rewrite);
        if !known {
            changes.add(Element::Mark(captured.outer(), mark));
        }
        changes.add(endpoint_element(mark, &key, &rewrite));
        if rewrite.local {
            let uses = self.locals.entry(key.endpoint).or_default();
            *uses += 1;
            if *uses == 1 {
                changes.add(Element::Own(key.endpoint));
                changes.add(Element::Hairpin(key.endpoint));
            }
        }
    }

    fn drop(&mut self, key: RewriteKey, changes: &mut Changes) {
        self.lingering.remove(&key);
        let Some(rewrite) = self.rewrites.remove(&key) else { return };
        let captured = Captured { endpoint: key.endpoint, side: key.side };
        let Some(numbers) = &mut self.numbers else { return };
        let Some(mark) = numbers.mark(captured) else { return };
        changes.remove(endpoint_element(mark, &key, &rewrite));
        numbers.release(captured);
        if numbers.mark(captured).is_none() {
            changes.remove(Element::Mark(captured.outer(), mark));
        }
        if rewrite.local
            && let Some(uses) = self.locals.get_mut(&key.endpoint)
        {
            *uses -= 1;
            if *uses == 0 {
                self.locals.remove(&key.endpoint);
                changes.remove(Element::Own(key.endpoint));
                changes.remove(Element::Hairpin(key.endpoint));
            }
        }
    }

    /// Every element that the table should hold now.
    fn elements(&self) -> BTreeSet<Element> {
        let mut elements = self.base.clone();
        for (key, rewrite) in &self.rewrites {
            let captured = Captured { endpoint: key.endpoint, side: key.side };
            if let Some(mark) = self.numbers.as_ref().and_then(|numbers| numbers.mark(captured)) {
                elements.insert(Element::Mark(captured.outer(), mark));
                elements.insert(endpoint_element(mark, key, rewrite));
            }
        }
        for address in self.locals.keys() {
            elements.insert(Element::Own(*address));
            elements.insert(Element::Hairpin(*address));
        }
        elements
    }
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

fn endpoint_element(mark: u32, key: &RewriteKey, rewrite: &Rewrite) -> Element {
    Element::Endpoint(mark, key.vip, SocketAddr::new(key.endpoint, rewrite.target_port))
}

/// Whether a virtual server on an address of this node stands, so that its packets must not be tracked.
fn is_node_port(plan: &NodePlan, vip: &VipPort) -> bool {
    plan.virtual_servers
        .get(vip)
        .is_some_and(|server| server.kind == VipKind::NodePort && !server.destinations.is_empty())
}

/// Whether an address lies where VIPs are but belongs to this host.
fn is_taken(plan: &NodePlan, local: &BTreeSet<IpAddr>, address: IpAddr) -> bool {
    local.contains(&address)
        && (plan.vips.contains_key(&address) || vip_net(plan, address) != IpNet::from(address))
}

fn sources(plan: &NodePlan, vip: &VipPort) -> impl Iterator<Item = Element> {
    plan.source_ranges.get(vip).into_iter().flat_map(|range| {
        let allowed = IpNet::aggregate(&range.allow.iter().copied().collect());
        std::iter::once(Element::Restricted(range.vip))
            .chain(allowed.into_iter().map(|net| Element::Source(range.vip, net)))
    })
}

/// The elements of a plan apart from its rewrites.
fn base(plan: &NodePlan, local: &BTreeSet<IpAddr>) -> BTreeSet<Element> {
    let pods = plan.node.pod_cidrs.iter().copied().chain(standin::ranges()).collect();
    let mut elements = BTreeSet::new();
    elements.extend(plan.node.tunnel_sources.iter().map(|address| Element::Node(*address)));
    elements.extend(vip_nets(plan).map(Element::Vip));
    let taken = local.iter().filter(|address| is_taken(plan, local, **address));
    elements.extend(taken.map(|address| Element::Taken(*address)));
    elements.extend(IpNet::aggregate(&pods).into_iter().map(Element::Pods));
    elements.extend(
        plan.virtual_servers.keys().filter(|vip| is_node_port(plan, vip)).map(|vip| Element::NodePort(*vip)),
    );
    elements.extend(plan.source_ranges.keys().flat_map(|vip| sources(plan, vip)));
    elements
}
