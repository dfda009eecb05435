//! Numbers for endpoints: what tells the kernel, after decapsulation, for whom a tunnelled packet came.
//!
//! A packet mark is all that survives decapsulation, so every endpoint this node rewrites for has a number in
//! the bits of the mark that are ours; the highest of these, [`MarkMask::bit`], says that the mark is ours.
//! An endpoint may have two numbers: one for packets of any director ([`RewriteSide::Endpoint`]), one for packets
//! of this node that it rewrites itself ([`RewriteSide::Director`]).
//!
//! Virtual servers that have destinations of their own for clients within the cluster have numbers too. No endpoint and
//! virtual server have the same: IPVS looks at the mark of every packet that this host takes in, those of tunnels over UDP
//! included.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use super::standin;
use crate::config::MarkMask;
use crate::plan::{RewriteSide, VipPort};

/// One of so many numbers is kept for rewrites without which an endpoint could not be reached.
const KEPT: u32 = 8;

/// Whom a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Captured {
    /// The endpoint's address.
    pub endpoint: IpAddr,
    /// On whose behalf.
    pub side: RewriteSide,
}

impl Captured {
    /// Destination of the outer packets.
    pub fn outer(self) -> IpAddr {
        match self.side {
            RewriteSide::Endpoint => self.endpoint,
            RewriteSide::Director => standin::of(self.endpoint),
        }
    }
}

/// Why an endpoint has no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum NumberError {
    /// The mask is too narrow.
    #[error(
        "all {0} numbers that endpoints and virtual servers of a family may have are in use: widen services.markMask"
    )]
    Exhausted(u32),
    /// Two endpoints differ in the high 4 bits of their IPv4 address alone.
    #[error("{0} has the same stand-in address as {1}: give one of them another address")]
    SharedStandIn(IpAddr, IpAddr),
}

/// The numbers in use, with how many rewrites use each.
#[derive(Debug)]
pub struct Numbers {
    mask: MarkMask,
    of_vips: HashMap<VipPort, u32>,
    /// Family (whether IPv4) and number → virtual server.
    vips: HashMap<(bool, u32), VipPort>,
    used: HashMap<Captured, (u32, usize)>,
    by_outer: HashMap<IpAddr, Captured>,
    free4: Free,
    free6: Free,
    /// What the kernel held when this agent started: an endpoint keeps its number over a restart.
    adopted: HashMap<IpAddr, u32>,
}

impl Numbers {
    /// `adopted`: outer address → number, and `of_vips`: virtual server → number, as found in the kernel. Numbers that
    /// another mask made, or that two have, are not taken over.
    pub fn new(
        mask: MarkMask,
        mut adopted: HashMap<IpAddr, u32>,
        mut of_vips: HashMap<VipPort, u32>,
    ) -> Self {
        let mut seen = HashMap::new();
        let of_endpoints = adopted.iter().map(|(outer, number)| (outer.is_ipv4(), *number));
        for each in of_endpoints.chain(of_vips.iter().map(family_and_number)) {
            *seen.entry(each).or_insert(0) += 1;
        }
        let found = adopted.len() + of_vips.len();
        let plausible = mask.capacity().min(u32::try_from(4 * found + 1024).unwrap_or(u32::MAX));
        let is_sound =
            |v4: bool, number: u32| (1..=plausible).contains(&number) && seen.get(&(v4, number)) == Some(&1);
        adopted.retain(|outer, number| is_sound(outer.is_ipv4(), *number));
        of_vips.retain(|vip, number| is_sound(vip.address.is_ipv4(), *number));
        let free = |v4: bool| {
            let of_endpoints = adopted.iter().map(|(outer, number)| (outer.is_ipv4(), *number));
            let all = of_endpoints.chain(of_vips.iter().map(family_and_number));
            Free::new(all.filter(|(family, _)| *family == v4).map(|(_, number)| number))
        };
        Self {
            mask,
            vips: of_vips.iter().map(|(vip, number)| (family_and_number((vip, number)), *vip)).collect(),
            used: HashMap::new(),
            by_outer: HashMap::new(),
            free4: free(true),
            free6: free(false),
            of_vips,
            adopted,
        }
    }

    /// Counts one more rewrite; gives the endpoint a number if it has none. What is `dispensable` leaves some numbers to
    /// what is not.
    ///
    /// # Errors
    /// [`NumberError`]: the endpoint cannot be served so; nothing has changed.
    pub fn acquire(&mut self, captured: Captured, dispensable: bool) -> Result<(), NumberError> {
        if let Some((_, uses)) = self.used.get_mut(&captured) {
            *uses += 1;
            return Ok(());
        }
        let outer = captured.outer();
        if let Some(other) = self.by_outer.get(&outer) {
            return Err(NumberError::SharedStandIn(captured.endpoint, other.endpoint));
        }
        let number = match self.adopted.remove(&outer) {
            Some(number) => number,
            None => self.take(outer, dispensable)?,
        };
        self.used.insert(captured, (number, 1));
        self.by_outer.insert(outer, captured);
        Ok(())
    }

    /// Counts one rewrite less; the last one frees the number.
    pub fn release(&mut self, captured: Captured) {
        let Some((number, uses)) = self.used.get_mut(&captured) else { return };
        *uses -= 1;
        if *uses == 0 {
            let number = *number;
            self.used.remove(&captured);
            self.by_outer.remove(&captured.outer());
            self.free(captured.outer()).put_back(number);
        }
    }

    /// Forgets what was adopted and not asked for since: those numbers are free.
    pub fn adoption_done(&mut self) {
        for (outer, number) in std::mem::take(&mut self.adopted) {
            self.free(outer).put_back(number);
        }
    }

    /// The mark of an endpoint that has a number.
    pub fn mark(&self, captured: Captured) -> Option<u32> {
        self.used.get(&captured).map(|(number, _)| self.mask.mark(*number))
    }

    /// Gives a virtual server a number if it has none. These leave some numbers to endpoints.
    ///
    /// # Errors
    /// [`NumberError::Exhausted`].
    pub fn number_vip(&mut self, vip: VipPort) -> Result<(), NumberError> {
        if !self.of_vips.contains_key(&vip) {
            let number = self.take(vip.address, true)?;
            self.of_vips.insert(vip, number);
            self.vips.insert((vip.address.is_ipv4(), number), vip);
        }
        Ok(())
    }

    /// Frees the number of a virtual server.
    pub fn release_vip(&mut self, vip: &VipPort) {
        if let Some(number) = self.of_vips.remove(vip) {
            self.vips.remove(&(vip.address.is_ipv4(), number));
            self.free(vip.address).put_back(number);
        }
    }

    /// The mark of a virtual server that has a number.
    pub fn vip_mark(&self, vip: &VipPort) -> Option<u32> {
        self.of_vips.get(vip).map(|number| self.mask.mark(*number))
    }

    /// Its mark without the reserved bit.
    pub fn vip_number_bits(&self, vip: &VipPort) -> Option<u32> {
        self.vip_mark(vip).map(|mark| mark & !self.mask.bit())
    }

    /// The virtual server of a mark.
    pub fn marked_vip(&self, v4: bool, mark: u32) -> Option<VipPort> {
        self.vips.get(&(v4, self.mask.number(mark)?)).copied()
    }

    /// Virtual servers that have a number.
    pub fn vips(&self) -> impl Iterator<Item = &VipPort> {
        self.of_vips.keys()
    }

    fn take(&mut self, of: IpAddr, dispensable: bool) -> Result<u32, NumberError> {
        let capacity = self.mask.capacity();
        let usable = if dispensable { capacity - capacity / KEPT } else { capacity };
        let free = self.free(of);
        let taken = if free.in_use() < usable { free.take(capacity) } else { None };
        taken.ok_or(NumberError::Exhausted(usable))
    }

    fn free(&mut self, of: IpAddr) -> &mut Free {
        if of.is_ipv4() { &mut self.free4 } else { &mut self.free6 }
    }
}

fn family_and_number((vip, number): (&VipPort, &u32)) -> (bool, u32) {
    (vip.address.is_ipv4(), *number)
}

/// The free numbers of one family: the gaps, the longest free first, and everything from `next` on.
#[derive(Debug)]
struct Free {
    gaps: VecDeque<u32>,
    next: u32,
}

/// So many others are freed before a number is used again: what conntrack has of its last endpoint is forgotten by then.
const REST: usize = 256;

impl Free {
    fn new(reserved: impl Iterator<Item = u32>) -> Self {
        let reserved: BTreeSet<u32> = reserved.collect();
        let next = reserved.last().map_or(1, |last| last + 1);
        Self { gaps: (1..next).filter(|number| !reserved.contains(number)).collect(), next }
    }

    fn in_use(&self) -> u32 {
        // There are no more gaps than numbers below `next`.
        self.next - 1 - u32::try_from(self.gaps.len()).unwrap_or(self.next - 1)
    }

    fn take(&mut self, capacity: u32) -> Option<u32> {
        if self.gaps.len() <= REST && self.next <= capacity {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.gaps.pop_front()
    }

    fn put_back(&mut self, number: u32) {
        self.gaps.push_back(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(endpoint: &str, side: RewriteSide) -> Captured {
        Captured { endpoint: endpoint.parse().unwrap(), side }
    }

    #[test]
    fn an_endpoint_has_one_number_per_side_until_its_last_rewrite_goes() {
        let mut numbers = Numbers::new(MarkMask::new(0x3fff).unwrap(), HashMap::new(), HashMap::new());
        let endpoint = captured("10.244.1.10", RewriteSide::Endpoint);
        let director = captured("10.244.1.10", RewriteSide::Director);
        for _ in 0..2 {
            numbers.acquire(endpoint, false).unwrap();
        }
        numbers.acquire(director, false).unwrap();
        assert_eq!((numbers.mark(endpoint), numbers.mark(director)), (Some(0x2001), Some(0x2002)));
        numbers.release(endpoint);
        assert_eq!(numbers.mark(endpoint), Some(0x2001));
        numbers.release(endpoint);
        assert_eq!(numbers.mark(endpoint), None);
        let next = captured("10.244.1.11", RewriteSide::Endpoint);
        numbers.acquire(next, false).unwrap();
        assert_eq!(numbers.mark(next), Some(0x2003), "what was just freed rests");
    }

    #[test]
    fn numbers_survive_a_restart() {
        let adopted = HashMap::from([("10.0.0.2".parse().unwrap(), 7), ("10.0.0.3".parse().unwrap(), 1)]);
        let mut numbers = Numbers::new(MarkMask::new(0x3fff).unwrap(), adopted, HashMap::new());
        for address in ["10.0.0.9", "10.0.0.2"] {
            numbers.acquire(captured(address, RewriteSide::Endpoint), false).unwrap();
        }
        numbers.adoption_done();
        numbers.acquire(captured("10.0.0.4", RewriteSide::Endpoint), false).unwrap();
        let mark = |address| numbers.mark(captured(address, RewriteSide::Endpoint));
        assert_eq!((mark("10.0.0.2"), mark("10.0.0.9")), (Some(0x2007), Some(0x2008)));
        assert_eq!(mark("10.0.0.4"), Some(0x2009));
    }

    #[test]
    fn virtual_servers_share_no_number_with_endpoints_of_their_family() {
        let vip = |address: &str| VipPort {
            address: address.parse().unwrap(),
            port: 80,
            protocol: crate::cluster::Protocol::Tcp,
        };
        let (web, dns) = (vip("192.0.2.80"), vip("2001:db8::80"));
        let twice = vip("192.0.2.81");
        let adopted = HashMap::from([("10.0.0.2".parse().unwrap(), 1), ("10.0.0.3".parse().unwrap(), 4)]);
        let of_vips = HashMap::from([(web, 2), (twice, 4), (dns, 1)]);
        let mut numbers = Numbers::new(MarkMask::new(0x3fff).unwrap(), adopted, of_vips);
        assert_eq!((numbers.vip_mark(&web), numbers.vip_mark(&dns)), (Some(0x2002), Some(0x2001)));
        assert_eq!(numbers.vip_mark(&twice), None, "an endpoint has it too");
        numbers.number_vip(twice).unwrap();
        assert_eq!(numbers.vip_mark(&twice), Some(0x2003));
        assert_eq!(numbers.marked_vip(true, 0x2003), Some(twice));
        assert_eq!(numbers.marked_vip(false, 0x2003), None);
        numbers.release_vip(&web);
        assert_eq!((numbers.vip_mark(&web), numbers.marked_vip(true, 0x2002)), (None, None));
        let endpoint = captured("10.0.0.9", RewriteSide::Endpoint);
        numbers.acquire(endpoint, false).unwrap();
        assert_eq!(numbers.mark(endpoint), Some(0x2004));
    }

    #[test]
    fn a_freed_number_rests_unless_there_is_no_other() {
        for (mask, rests) in [(0x7, false), (0xfff, true)] {
            let mask = MarkMask::new(mask).unwrap();
            let mut numbers = Numbers::new(mask, HashMap::new(), HashMap::new());
            let of = |number: u32| captured(&format!("10.0.0.{number}"), RewriteSide::Endpoint);
            for number in 1..=3 {
                numbers.acquire(of(number), false).unwrap();
            }
            numbers.release(of(2));
            numbers.acquire(of(4), false).unwrap();
            assert_eq!(numbers.mark(of(4)), Some(mask.mark(if rests { 4 } else { 2 })));
        }
    }

    #[test]
    fn what_cannot_be_numbered_is_refused() {
        let mut numbers = Numbers::new(MarkMask::new(0x3).unwrap(), HashMap::new(), HashMap::new());
        numbers.acquire(captured("10.0.0.1", RewriteSide::Endpoint), false).unwrap();
        assert_eq!(
            numbers.acquire(captured("10.0.0.2", RewriteSide::Endpoint), false),
            Err(NumberError::Exhausted(1))
        );
        numbers.acquire(captured("fd00::1", RewriteSide::Endpoint), false).unwrap();
        let mut numbers = Numbers::new(MarkMask::new(0x3fff).unwrap(), HashMap::new(), HashMap::new());
        numbers.acquire(captured("10.0.0.1", RewriteSide::Director), false).unwrap();
        assert!(matches!(
            numbers.acquire(captured("26.0.0.1", RewriteSide::Director), false),
            Err(NumberError::SharedStandIn(..))
        ));
    }
    #[test]
    fn what_can_do_without_leaves_numbers_to_what_cannot() {
        let endpoint = |number: u8, side| captured(&format!("10.0.0.{number}"), side);
        let mut numbers = Numbers::new(MarkMask::new(0x1f).unwrap(), HashMap::new(), HashMap::new());
        let vip = VipPort {
            address: "192.0.2.80".parse().unwrap(),
            port: 80,
            protocol: crate::cluster::Protocol::Tcp,
        };
        // 15 numbers, of which one is kept.
        for number in 0..14 {
            numbers.acquire(endpoint(number, RewriteSide::Director), true).unwrap();
        }
        let one_more = endpoint(14, RewriteSide::Director);
        assert_eq!(numbers.acquire(one_more, true), Err(NumberError::Exhausted(14)));
        assert_eq!(numbers.number_vip(vip), Err(NumberError::Exhausted(14)));
        numbers.acquire(endpoint(0, RewriteSide::Director), true).expect("it has one");
        numbers.acquire(endpoint(0, RewriteSide::Endpoint), false).unwrap();
        assert_eq!(
            numbers.acquire(endpoint(1, RewriteSide::Endpoint), false),
            Err(NumberError::Exhausted(15))
        );
        numbers.release(endpoint(2, RewriteSide::Director));
        numbers.release(endpoint(3, RewriteSide::Director));
        numbers.acquire(one_more, true).expect("one of the two freed, the other is kept");
    }
}
