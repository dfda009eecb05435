//! Every parser under mutations of real messages.
//!
//! Everything follows from the seed, and a failure prints the message that did it. A few seconds as part of the tests;
//! `EXECUTIONS=100000000 SEED=7 cargo test --release -p sheave-bgp --test fuzz -- --nocapture` for longer.
//!
//! What must hold of any bytes, on any kind of session:
//! - no panic, and an error's NOTIFICATION fits into a message;
//! - what is held of a message is bounded by its length;
//! - what was read without complaint is read again from what is written of it;
//! - no prefix is lost: each that stands in the message is either reachable or withdrawn, none both, and all of them are
//!   withdrawn where an attribute is so malformed that RFC 7606 wants that. A second reader, here, says which there are.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::time::Instant;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sheave_bgp::Families;
use sheave_bgp::wire::{
    Capability, Context, Handling, Message, MpReach, MpUnreach, Nlri, SegmentKind, TooLong, Update, frame,
};

/// Every kind of session that the meaning of bytes depends on.
fn contexts() -> Vec<Context> {
    let mut all = Vec::new();
    for four_octet_asn in [true, false] {
        for ibgp in [true, false] {
            for add_path in
                [Families::NONE, Families::ALL, Families { ipv4_unicast: true, ipv6_unicast: false }]
            {
                all.push(Context { four_octet_asn, ibgp, extended_messages: true, add_path });
            }
        }
    }
    all
}

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[4]
    }

    /// A byte of those that mean something somewhere.
    fn telling(&mut self) -> u8 {
        const TELLING: [u8; 22] =
            [0, 1, 2, 3, 4, 5, 6, 8, 12, 14, 15, 16, 17, 32, 33, 35, 64, 69, 128, 129, 192, 255];
        TELLING[self.below(TELLING.len())]
    }
}

/// Prints the message under test, and where it came from, if that panics.
struct Culprit<'a> {
    seed: u64,
    execution: u64,
    context: Context,
    message: &'a [u8],
}

impl Drop for Culprit<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Culprit { seed, execution, context, message } = self;
            eprintln!("seed {seed}, execution {execution}, {context:?}: {message:02x?}");
        }
    }
}

/// The messages of `tests/corpus`.
fn corpus() -> Vec<Vec<u8>> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "bgp"));
    files.sort();
    let mut messages = Vec::new();
    for path in files {
        let bytes = std::fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        while let Some(length) = frame(rest).unwrap() {
            messages.push(rest[..length].to_vec());
            rest = &rest[length..];
        }
        assert_eq!(rest, [], "whole messages");
    }
    messages
}

/// Sets the length in the header, so that the body is looked at.
fn fit(message: &mut Vec<u8>) {
    message.truncate(65535);
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    message[16..18].copy_from_slice(&length);
}

/// The attributes of an UPDATE, each as it stands there, with where they begin and end; `None` where lengths contradict
/// each other.
fn attributes(message: &[u8]) -> Option<(usize, usize, Vec<Vec<u8>>)> {
    let number = |at: usize| Some(usize::from(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?)));
    let start = 19 + 2 + number(19)? + 2;
    let end = start + number(start - 2)?;
    let mut rest = message.get(start..end)?;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let head = if rest[0] & 0x10 != 0 { 4 } else { 3 };
        let length = match rest.get(2..head)? {
            [high, low] => usize::from(u16::from_be_bytes([*high, *low])),
            short => usize::from(short[0]),
        };
        let (attribute, after) = rest.split_at_checked(head + length)?;
        all.push(attribute.to_vec());
        rest = after;
    }
    Some((start, end, all))
}

/// Changes the list of attributes, and the lengths with it.
fn mutate_attributes(message: &mut Vec<u8>, other: &[u8], random: &mut Random) -> Option<()> {
    let (start, end, mut list) = attributes(message)?;
    let at = random.below(list.len());
    match random.below(6) {
        0 if !list.is_empty() => drop(list.remove(at)),
        1 if !list.is_empty() => list.insert(random.below(list.len()), list[at].clone()),
        2 if list.len() > 1 => list.swap(at, 0),
        // Another's attribute.
        3 => {
            let mut others = attributes(other).filter(|(_, _, others)| !others.is_empty())?.2;
            list.insert(at, others.swap_remove(random.below(others.len())));
        }
        // Another value of the same attribute, its length right.
        4 if !list.is_empty() => {
            let length = u8::try_from(random.below(40)).unwrap();
            let (flags, code) = (list[at][0] & !0x10, list[at][1]);
            list[at] = vec![flags, code, length];
            for _ in 0..length {
                let byte = random.telling();
                list[at].push(byte);
            }
        }
        // Other flags or another code.
        _ if !list.is_empty() => list[at][random.below(2)] = random.telling(),
        _ => {}
    }
    let list = list.concat();
    let length = u16::try_from(list.len()).ok()?;
    message.splice(start..end, list);
    message[start - 2..start].copy_from_slice(&length.to_be_bytes());
    Some(())
}

/// One small change anywhere behind the marker.
fn mutate_bytes(message: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = 18 + random.below(message.len() - 18);
    match random.below(7) {
        0 => message[at] ^= 1 << random.below(8),
        1 => message[at] = random.byte(),
        2 => message[at] = random.telling(),
        3 => message.insert(at, random.telling()),
        4 if message.len() > 19 && at > 18 => drop(message.remove(at)),
        5 => message.truncate(at.max(19)),
        // The rest from another message.
        _ => {
            let from = other.len().min(19) + random.below(other.len() - 18);
            message.truncate(at.max(19));
            message.extend_from_slice(other.get(from..).unwrap_or(&[]));
        }
    }
}

/// The prefixes in NLRI, by a reader of its own.
fn read_nlri(bytes: &[u8], add_path: bool, v6: bool) -> Option<Vec<(u32, IpNet)>> {
    let mut rest = bytes;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let mut id = 0;
        if add_path {
            let (head, after) = rest.split_first_chunk::<4>()?;
            (id, rest) = (u32::from_be_bytes(*head), after);
        }
        let (&bits, after) = rest.split_first()?;
        let (octets, after) = after.split_at_checked(usize::from(bits).div_ceil(8))?;
        let mut address = [0; 16];
        address.get_mut(..octets.len())?.copy_from_slice(octets);
        let prefix: IpNet = if v6 {
            Ipv6Net::new(address.into(), bits).ok()?.into()
        } else {
            let [a, b, c, d, ..] = address;
            Ipv4Net::new([a, b, c, d].into(), bits).ok()?.into()
        };
        all.push((id, prefix.trunc()));
        rest = after;
    }
    Some(all)
}

/// The prefixes that stand in an UPDATE: withdrawn, announced.
type Prefixes = (Vec<(u32, IpNet)>, Vec<(u32, IpNet)>);

/// By a reader of its own, as far as lengths let them be found.
fn prefixes(message: &[u8], context: Context) -> Option<Prefixes> {
    let body = message.get(19..)?;
    let number = |bytes: &[u8]| Some(usize::from(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?)));
    let (withdrawn, rest) = body.get(2..)?.split_at_checked(number(body)?)?;
    let (mut list, nlri) = rest.get(2..)?.split_at_checked(number(rest)?)?;
    let add_path = context.add_path.ipv4_unicast;
    let mut gone = read_nlri(withdrawn, add_path, false)?;
    let mut there = read_nlri(nlri, add_path, false)?;
    while list.len() >= 3 {
        let extended = list[0] & 0x10 != 0;
        let code = list[1];
        let head =
            if extended { number(&list[2..]).zip(list.get(4..)) } else { Some((list[2].into(), &list[3..])) };
        // Lengths contradict each other: nothing after this can be found.
        let Some((length, value)) = head else { break };
        let Some((value, after)) = value.split_at_checked(length) else { break };
        list = after;
        let v6 = match (code, value) {
            (14 | 15, [0, 1, 1, ..]) => false,
            (14 | 15, [0, 2, 1, ..]) => true,
            _ => continue,
        };
        let add_path = if v6 { context.add_path.ipv6_unicast } else { add_path };
        if code == 15 {
            gone.extend(read_nlri(&value[3..], add_path, v6)?);
        } else {
            there.extend(read_nlri(value.get(5 + usize::from(*value.get(3)?)..)?, add_path, v6)?);
        }
    }
    Some((gone, there))
}

/// How many bytes are held in lists.
fn held(message: &Message) -> usize {
    fn list<T>(list: &Vec<T>) -> usize {
        list.capacity() * size_of::<T>()
    }
    match message {
        Message::Open(open) => {
            let values = open.capabilities.iter().map(|capability| match capability {
                Capability::Unknown { value, .. } => list(value),
                Capability::GracefulRestart(restart) => list(&restart.families),
                Capability::AddPath(families) => list(families),
                Capability::LongLivedGracefulRestart(families) => list(families),
                _ => 0,
            });
            list(&open.capabilities) + values.sum::<usize>()
        }
        Message::Update(update) => {
            let attributes = &update.attributes;
            let path = attributes.as_path.as_ref().map_or(0, |path| {
                list(&path.segments) + path.segments.iter().map(|segment| list(&segment.asns)).sum::<usize>()
            });
            let reach = match &update.mp_reach {
                Some(MpReach::Ipv4 { prefixes, .. }) => list(prefixes),
                Some(MpReach::Ipv6 { prefixes, .. }) => list(prefixes),
                None => 0,
            };
            let unreach = match &update.mp_unreach {
                Some(MpUnreach::Ipv4(prefixes)) => list(prefixes),
                Some(MpUnreach::Ipv6(prefixes)) => list(prefixes),
                None => 0,
            };
            let other =
                list(&attributes.other) + attributes.other.iter().map(|raw| list(&raw.value)).sum::<usize>();
            list(&update.withdrawn)
                + list(&update.nlri)
                + list(&update.malformed)
                + reach
                + unreach
                + path
                + other
                + list(&attributes.communities)
                + list(&attributes.cluster_list)
                + list(&attributes.extended_communities)
                + list(&attributes.large_communities)
                + list(&attributes.partial)
        }
        Message::Notification(notification) => list(&notification.data),
        Message::Keepalive | Message::RouteRefresh(_) => 0,
    }
}

fn encode(message: &Message, context: Context) -> Result<Vec<u8>, TooLong> {
    let mut bytes = Vec::new();
    message.encode(context, &mut bytes)?;
    Ok(bytes)
}

/// No prefix is lost, none is told twice.
fn check_prefixes(update: &Update, bytes: &[u8], context: Context) {
    let (mut gone, mut there) = prefixes(bytes, context).unwrap();
    if update.malformed.iter().any(|error| error.handling == Handling::TreatAsWithdraw) {
        gone.append(&mut there);
    }
    let told = |nlri: Nlri| (nlri.path_id, nlri.prefix);
    let (mut unreachable, mut reachable): (Vec<_>, Vec<_>) =
        (update.unreachable().map(told).collect(), update.reachable().map(told).collect());
    for list in [&mut gone, &mut there, &mut unreachable, &mut reachable] {
        list.sort_unstable();
    }
    assert_eq!((unreachable, reachable), (gone, there));
}

/// Confederations do not pass through an AS4_PATH: behind a 2-octet peer such a path is not what it was.
fn survives(message: &Message, context: Context) -> bool {
    let Message::Update(update) = message else { return true };
    let path = update.attributes.as_path.iter().flat_map(|path| &path.segments);
    let mut confederations =
        path.filter(|s| matches!(s.kind, SegmentKind::ConfedSequence | SegmentKind::ConfedSet));
    update.malformed.is_empty() && (context.four_octet_asn || confederations.next().is_none())
}

/// What must hold of any message. Returns whether it was one.
fn check(bytes: &[u8], context: Context) -> bool {
    match frame(bytes) {
        Ok(Some(length)) => assert!(length <= bytes.len()),
        Ok(None) => return false,
        Err(error) => {
            encode(&Message::Notification(error.notification()), Context::default()).unwrap();
            return false;
        }
    }
    let message = match Message::decode(bytes, context) {
        Ok(message) => message,
        Err(error) => {
            encode(&Message::Notification(error.notification()), Context::default()).unwrap();
            return false;
        }
    };
    // The least that a prefix takes is one byte; in memory it is 24, in a list that may be half empty.
    let held = held(&message);
    assert!(held <= 1024 + 64 * bytes.len(), "{held} bytes held of {}", bytes.len());
    if let Message::Update(update) = &message {
        check_prefixes(update, bytes, context);
    }
    // It may be longer than it was where lengths were written in fewer octets than ours.
    if survives(&message, context)
        && let Ok(written) = encode(&message, context)
    {
        assert_eq!(Message::decode(&written, context), Ok(message));
    }
    true
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

/// The corpus itself is read without complaint, by the kind of session that it comes from.
#[test]
fn the_corpus_is_well_formed() {
    let messages = corpus();
    assert!(messages.len() > 50, "{} messages", messages.len());
    let kinds: std::collections::BTreeSet<u8> = messages.iter().map(|message| message[18]).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
    for message in messages {
        let clean = |&context: &Context| match Message::decode(&message, context) {
            Ok(Message::Update(update)) => update.malformed.is_empty(),
            other => other.is_ok(),
        };
        assert!(contexts().iter().any(clean), "{message:02x?}");
    }
}

#[test]
fn mutated_messages() {
    let (seed, executions) = (setting("SEED", 1), setting("EXECUTIONS", 500_000));
    let (messages, contexts) = (corpus(), contexts());
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut accepted = 0;
    let began = Instant::now();
    for execution in 0..executions {
        let mut message = messages[random.below(messages.len())].clone();
        for _ in 0..=random.below(4) {
            let other = &messages[random.below(messages.len())];
            let by_attributes = message[18] == 2 && random.below(4) != 0;
            if !by_attributes || mutate_attributes(&mut message, other, &mut random).is_none() {
                mutate_bytes(&mut message, other, &mut random);
            }
        }
        // Now and then the header contradicts the body.
        if random.below(16) != 0 {
            fit(&mut message);
        }
        let context = contexts[random.below(contexts.len())];
        let culprit = Culprit { seed, execution, context, message: &message };
        accepted += u64::from(check(&message, context));
        drop(culprit);
    }
    let rate = executions as f64 / began.elapsed().as_secs_f64();
    println!("{executions} executions, {accepted} of them messages, {rate:.0} a second");
    // A mutator whose messages are all refused, or none, tests little.
    assert!(
        (executions / 10..executions * 9 / 10).contains(&accepted),
        "{accepted} of {executions} accepted"
    );
}
