//! Router discovery (RFC 4861 §6): two routers on a link learn each other's link-local addresses, so that a session needs none
//! configured ("unnumbered"). FRR does the same.
//!
//! ```text
//!   RS, RA of the link ──► Discovery ──► RS, RA to the link
//!   time ─────────────────►    └───────► the neighbour's address
//! ```
//!
//! What is advertised is no default gateway (router lifetime 0), and what is heard need not be one either: an advertisement tells who
//! is there, nothing else of it is used. A neighbour stays until another takes its place: how soon it is to be heard again is not told, and
//! whether it still lives is the session's business.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use crate::session::Jitter;

/// ICMPv6 types (RFC 4861 §4.1, §4.2).
pub(crate) const SOLICITATION: u8 = 133;
pub(crate) const ADVERTISEMENT: u8 = 134;
/// Header and fields before the options.
const SOLICITATION_LENGTH: usize = 8;
const ADVERTISEMENT_LENGTH: usize = 16;
/// What comes from another link has less (§6.1).
const HOP_LIMIT: u8 = 255;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;

/// Advertisements are no closer to each other (`MIN_DELAY_BETWEEN_RAS`); the first ones are that close.
const SHORTEST: Duration = Duration::from_secs(3);
const FIRST: u8 = 3;
/// How far apart they are then (`MaxRtrAdvInterval`): FRR's, where it does the same.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long an answer to a solicitation is put off at most (`MAX_RA_DELAY_TIME`).
const ANSWER: Duration = Duration::from_millis(500);
/// How long a router may take to answer a solicitation: its own delay, after the pause between two of its advertisements.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a second router counts as being on the link: the longest that may pass between two advertisements.
const REMEMBERED: Duration = Duration::from_secs(1800);

/// What is heard or said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who is there? (RS)
    Solicitation,
    /// A router is (RA).
    Advertisement,
}

impl Message {
    /// Reads an ICMPv6 message, and checks what RFC 4861 §6.1 has a receiver check. The kernel has checked the checksum. `None`: it is
    /// to be ignored.
    pub fn read(bytes: &[u8], source: Ipv6Addr, hop_limit: u8) -> Option<Message> {
        let [kind, code, ..] = *bytes else { return None };
        if code != 0 || hop_limit != HOP_LIMIT {
            return None;
        }
        let (message, length) = match kind {
            SOLICITATION => (Message::Solicitation, SOLICITATION_LENGTH),
            ADVERTISEMENT => (Message::Advertisement, ADVERTISEMENT_LENGTH),
            _ => return None,
        };
        let has_link_layer_address = read_options(bytes.get(length..)?)?;
        let source_fits = match message {
            Message::Advertisement => source.is_unicast_link_local(),
            // A host without an address yet may ask.
            Message::Solicitation => !source.is_unspecified() || !has_link_layer_address,
        };
        source_fits.then_some(message)
    }

    /// The message, but for its checksum, which is the kernel's. An advertisement is of no default gateway, and leaves all else to
    /// others (0: unspecified).
    pub fn bytes(self) -> Vec<u8> {
        let (kind, length) = match self {
            Message::Solicitation => (SOLICITATION, SOLICITATION_LENGTH),
            Message::Advertisement => (ADVERTISEMENT, ADVERTISEMENT_LENGTH),
        };
        let mut bytes = vec![0; length];
        bytes[0] = kind;
        bytes
    }
}

/// Whether there is a source link-layer address among the options; `None` where one of them cannot be (§4.6: lengths are in units of
/// eight octets, and none is 0).
fn read_options(mut bytes: &[u8]) -> Option<bool> {
    let mut has_link_layer_address = false;
    while let [kind, length, ..] = *bytes {
        let length = usize::from(length) * 8;
        bytes = bytes.get(length..).filter(|_| length > 0)?;
        has_link_layer_address |= kind == SOURCE_LINK_LAYER_ADDRESS;
    }
    bytes.is_empty().then_some(has_link_layer_address)
}

/// One link.
#[derive(Clone, Debug)]
pub struct Discovery {
    neighbour: Option<Neighbour>,
    /// Another one that advertises itself, until it is known whether the first still does.
    rival: Option<Rival>,
    /// One that does beside the neighbour, and how long that counts.
    other: Option<(Ipv6Addr, Instant)>,
    advertised: Option<Instant>,
    next: Instant,
    /// How many more come soon.
    first: u8,
    jitter: Jitter,
}

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    address: Ipv6Addr,
    heard: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Rival {
    address: Ipv6Addr,
    heard: Instant,
}

impl Discovery {
    /// A link that works from `now` on.
    pub fn new(now: Instant, jitter: Jitter) -> Discovery {
        let (neighbour, rival, other, advertised) = (None, None, None, None);
        Discovery { neighbour, rival, other, advertised, next: now, first: FIRST, jitter }
    }

    /// The address of the router on the other end, once it has been heard.
    pub fn neighbour(&self) -> Option<Ipv6Addr> {
        self.neighbour.map(|neighbour| neighbour.address)
    }

    /// Another router on the link: it has more than two ends.
    pub fn other(&self) -> Option<Ipv6Addr> {
        self.other.map(|(address, _)| address)
    }

    /// Takes in what was heard; what is to be said at once.
    pub fn heard(&mut self, message: Message, source: Ipv6Addr, now: Instant) -> Vec<Message> {
        match message {
            Message::Solicitation => {
                let soonest = self.advertised.map_or(now, |advertised| advertised + SHORTEST);
                let answer = now + (ANSWER - self.jitter.shorten(ANSWER));
                self.next = self.next.min(answer.max(soonest));
                Vec::new()
            }
            Message::Advertisement => self.advertised_by(source, now),
        }
    }

    fn advertised_by(&mut self, source: Ipv6Addr, now: Instant) -> Vec<Message> {
        match &mut self.neighbour {
            None => self.neighbour = Some(Neighbour { address: source, heard: now }),
            Some(neighbour) if neighbour.address == source => neighbour.heard = now,
            // Whether it comes in place of the neighbour, or beside it, the neighbour's silence tells.
            Some(_) if self.rival.is_none() => {
                self.rival = Some(Rival { address: source, heard: now });
                return vec![Message::Solicitation];
            }
            Some(_) => {}
        }
        Vec::new()
    }

    /// When [`Discovery::expired`] is due.
    pub fn deadline(&self) -> Instant {
        let verdict = self.rival.map(|rival| rival.heard + PATIENCE);
        let forgotten = self.other.map(|(_, until)| until);
        [verdict, forgotten].into_iter().flatten().fold(self.next, Instant::min)
    }

    /// Does what is due; what is to be said.
    pub fn expired(&mut self, now: Instant) -> Vec<Message> {
        self.other = self.other.filter(|(_, until)| *until > now);
        if let Some(rival) = self.rival.filter(|rival| rival.heard + PATIENCE <= now) {
            self.rival = None;
            if self.neighbour.is_some_and(|neighbour| neighbour.heard >= rival.heard) {
                self.other = Some((rival.address, now + REMEMBERED));
            } else {
                let Rival { address, heard } = rival;
                self.neighbour = Some(Neighbour { address, heard });
                self.other = None;
            }
        }
        if self.next > now {
            return Vec::new();
        }
        self.advertised = Some(now);
        self.first = self.first.saturating_sub(1);
        // Never less than `SHORTEST` apart.
        self.next = now + if self.first > 0 { SHORTEST } else { self.jitter.shorten(INTERVAL) };
        match self.neighbour {
            Some(_) => vec![Message::Advertisement],
            None => vec![Message::Advertisement, Message::Solicitation],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa);
    const B: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xb);
    const GLOBAL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

    #[test]
    fn what_is_taken_in() {
        use Message::{Advertisement, Solicitation};
        let with = |message: Message, options: &[u8]| [&message.bytes(), options].concat();
        let mac = [1, 1, 2, 0, 0, 0, 0, 1];
        let prefix = [&[3, 4, 64, 0xc0][..], &[0; 28]].concat();
        let none = Ipv6Addr::UNSPECIFIED;
        for (name, bytes, source, hop_limit, expected) in [
            ("an advertisement", Advertisement.bytes(), A, 255, Some(Advertisement)),
            ("with options", with(Advertisement, &[&mac[..], &prefix].concat()), A, 255, Some(Advertisement)),
            (
                "with one that nobody knows",
                with(Advertisement, &[200, 1, 0, 0, 0, 0, 0, 0]),
                A,
                255,
                Some(Advertisement),
            ),
            (
                "of a default gateway",
                [&[134, 0, 0, 0, 64, 0, 7, 8][..], &[0; 8]].concat(),
                A,
                255,
                Some(Advertisement),
            ),
            ("from another link", Advertisement.bytes(), A, 254, None),
            ("from a global address", Advertisement.bytes(), GLOBAL, 255, None),
            ("from no address", Advertisement.bytes(), none, 255, None),
            ("cut short", Advertisement.bytes()[..15].into(), A, 255, None),
            ("with another code", [&[134, 1][..], &[0; 14]].concat(), A, 255, None),
            ("an option of no length", with(Advertisement, &[1, 0, 0, 0, 0, 0, 0, 0]), A, 255, None),
            ("an option beyond the end", with(Advertisement, &[1, 2, 0, 0, 0, 0, 0, 0]), A, 255, None),
            ("a part of an option", with(Advertisement, &[1]), A, 255, None),
            ("a solicitation", Solicitation.bytes(), A, 255, Some(Solicitation)),
            ("with an address of its own", with(Solicitation, &mac), GLOBAL, 255, Some(Solicitation)),
            ("of a host without address", Solicitation.bytes(), none, 255, Some(Solicitation)),
            ("which has one nevertheless", with(Solicitation, &mac), none, 255, None),
            ("from another link", Solicitation.bytes(), A, 64, None),
            ("cut short", Solicitation.bytes()[..7].into(), A, 255, None),
            ("a neighbour solicitation", [&[135][..], &[0; 23]].concat(), A, 255, None),
            ("nothing", Vec::new(), A, 255, None),
        ] {
            assert_eq!(Message::read(&bytes, source, hop_limit), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_is_a_panic(bytes in any::<Vec<u8>>(), kind in 132..136u8, source in any::<u128>(), hop_limit in any::<u8>()) {
            let source = Ipv6Addr::from(source);
            for bytes in [&bytes[..], &[&[kind, 0][..], &bytes].concat()] {
                let read = Message::read(bytes, source, hop_limit);
                if read == Some(Message::Advertisement) {
                    assert!(hop_limit == 255 && source.is_unicast_link_local() && bytes.len() >= 16);
                }
            }
        }

        /// Whatever is heard and whenever: advertisements keep their distance, and there is always a next one.
        #[test]
        fn advertisements_keep_their_distance(steps in proptest::collection::vec((0..4u8, 0..4000u64), 0..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut discovery = Discovery::new(now, Jitter::seeded(1));
            let mut advertised: Vec<Instant> = Vec::new();
            for (what, wait) in steps {
                let until = now + Duration::from_millis(wait);
                while discovery.deadline() <= until {
                    now = now.max(discovery.deadline());
                    let said = discovery.expired(now);
                    advertised.extend(said.contains(&Message::Advertisement).then_some(now));
                }
                now = until;
                let said = match what {
                    0 => discovery.heard(Message::Solicitation, A, now),
                    1 => discovery.heard(Message::Advertisement, A, now),
                    2 => discovery.heard(Message::Advertisement, B, now),
                    _ => discovery.expired(now),
                };
                assert!(!said.contains(&Message::Advertisement));
                assert!(discovery.deadline() <= now + INTERVAL);
            }
            assert!(advertised.windows(2).all(|pair| pair[1] - pair[0] >= SHORTEST), "{advertised:?}");
        }
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// Up to then, as a clock would.
    fn pass(discovery: &mut Discovery, until: Instant) -> Vec<Message> {
        let mut said = Vec::new();
        while discovery.deadline() <= until {
            said.extend(discovery.expired(discovery.deadline()));
        }
        said
    }

    #[test]
    fn a_neighbour_is_asked_for_until_it_is_heard() {
        use Message::{Advertisement, Solicitation};
        let start = Instant::now();
        let mut discovery = Discovery::new(start, Jitter::seeded(1));
        assert_eq!(discovery.expired(start), [Advertisement, Solicitation], "at once");
        assert_eq!(discovery.neighbour(), None);
        let said = pass(&mut discovery, at(start, 60));
        assert_eq!(said.iter().filter(|said| **said == Solicitation).count(), said.len() / 2);
        assert!((7..=11).contains(&(said.len() / 2)), "two soon, then some every ten seconds: {said:?}");
        discovery.heard(Advertisement, A, at(start, 60));
        assert_eq!(discovery.neighbour(), Some(A));
        let said = pass(&mut discovery, at(start, 3600));
        assert!(!said.contains(&Solicitation));
        assert_eq!(discovery.neighbour(), Some(A), "however long it is silent");
    }

    #[test]
    fn another_neighbour_takes_the_place_of_one_that_is_silent() {
        let start = Instant::now();
        let mut discovery = Discovery::new(start, Jitter::seeded(1));
        discovery.heard(Message::Advertisement, A, start);
        assert_eq!(
            discovery.heard(Message::Advertisement, B, at(start, 1)),
            [Message::Solicitation],
            "asks A"
        );
        assert_eq!(discovery.heard(Message::Advertisement, B, at(start, 2)), [], "once");
        pass(&mut discovery, at(start, 5));
        assert_eq!(discovery.neighbour(), Some(A));
        pass(&mut discovery, at(start, 6));
        assert_eq!((discovery.neighbour(), discovery.other()), (Some(B), None));
    }

    #[test]
    fn a_second_router_on_the_link_is_told_of() {
        let start = Instant::now();
        let mut discovery = Discovery::new(start, Jitter::seeded(1));
        discovery.heard(Message::Advertisement, A, start);
        discovery.heard(Message::Advertisement, B, at(start, 1));
        discovery.heard(Message::Advertisement, A, at(start, 3));
        pass(&mut discovery, at(start, 6));
        assert_eq!((discovery.neighbour(), discovery.other()), (Some(A), Some(B)));
        pass(&mut discovery, at(start, 1900));
        assert_eq!((discovery.neighbour(), discovery.other()), (Some(A), None), "gone for long");
        discovery.heard(Message::Advertisement, B, at(start, 1900));
        pass(&mut discovery, at(start, 1906));
        assert_eq!(discovery.neighbour(), Some(B));
    }
}
