//! 4-octet ASNs to, from and across peers of 2-octet ones (RFC 6793).

use super::{NEXT_HOP, OLD, ORIGIN, encode, update_of};
use crate::wire::SegmentKind::{ConfedSequence, ConfedSet, Sequence, Set};
use crate::wire::{
    AS_TRANS, Aggregator, AsPath, AttributeProblem, Handling, Message, PathAttributes, Segment, SegmentKind,
    Update,
};

/// Two that take four octets.
const A: u32 = 4_200_000_001;
const B: u32 = 4_200_000_002;
/// What stands for them.
const T: u32 = AS_TRANS as u32;

fn path(segments: &[(SegmentKind, &[u32])]) -> AsPath {
    let segments = segments.iter().map(|&(kind, asns)| Segment { kind, asns: asns.to_vec() });
    AsPath { segments: segments.collect() }
}

fn decode(bytes: &[u8]) -> Update {
    match Message::decode(bytes, OLD) {
        Ok(Message::Update(update)) => update,
        other => panic!("not an UPDATE: {other:?}"),
    }
}

/// An attribute of up to 255 bytes.
fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    [&[flags, code, u8::try_from(value.len()).unwrap()], value].concat()
}

/// The values of the attributes as a 2-octet speaker sees them: by code, unread.
fn on_the_wire(attributes: PathAttributes) -> Vec<(u8, Vec<u8>)> {
    let bytes = encode(&Message::Update(Update { attributes, ..Update::default() }), OLD);
    let mut rest = &bytes[23..];
    let mut all = Vec::new();
    while let [_, code, length, after @ ..] = rest {
        let (value, after) = after.split_at(usize::from(*length));
        all.push((*code, value.to_vec()));
        rest = after;
    }
    all
}

#[test]
fn a_two_octet_peer_is_told_as_trans_and_carries_the_rest() {
    let four = |asns: &[u32]| asns.iter().flat_map(|asn| asn.to_be_bytes()).collect::<Vec<u8>>();
    let two = |asns: &[u16]| asns.iter().flat_map(|asn| asn.to_be_bytes()).collect::<Vec<u8>>();
    let trans = |asns: &[u16]| [&[2, u8::try_from(asns.len()).unwrap()][..], &two(asns)].concat();
    let address = [10, 0, 0, 9];
    let aggregator = |asn| Some(Aggregator { asn, address: address.into() });
    let by = |asn: &[u8]| [asn, &address].concat();
    type Case = (&'static str, AsPath, Option<Aggregator>, Vec<(u8, Vec<u8>)>);
    let cases: Vec<Case> = vec![
        ("all fit", path(&[(Sequence, &[65001, 65002])]), None, vec![(2, trans(&[65001, 65002]))]),
        (
            "one does not",
            path(&[(Sequence, &[A, 65001])]),
            None,
            vec![(2, trans(&[AS_TRANS, 65001])), (17, [&[2, 2][..], &four(&[A, 65001])].concat())],
        ),
        (
            "confederations are not carried along",
            path(&[(ConfedSequence, &[65100]), (Sequence, &[A])]),
            None,
            vec![
                (2, [&[3, 1][..], &two(&[65100]), &trans(&[AS_TRANS])].concat()),
                (17, [&[2, 1][..], &four(&[A])].concat()),
            ],
        ),
        (
            "nothing else to carry along",
            path(&[(ConfedSequence, &[A]), (Sequence, &[65001])]),
            None,
            vec![(2, [&[3, 1][..], &two(&[AS_TRANS]), &trans(&[65001])].concat())],
        ),
        (
            "aggregator that fits",
            path(&[(Sequence, &[65001])]),
            aggregator(65001),
            vec![(2, trans(&[65001])), (7, by(&two(&[65001])))],
        ),
        (
            "aggregator that does not",
            path(&[(Sequence, &[65001])]),
            aggregator(A),
            vec![(2, trans(&[65001])), (7, by(&two(&[AS_TRANS]))), (18, by(&four(&[A])))],
        ),
    ];
    for (name, path, aggregator, expected) in cases {
        let attributes = PathAttributes { as_path: Some(path), aggregator, ..PathAttributes::default() };
        assert_eq!(on_the_wire(attributes), expected, "{name}");
    }
}

/// RFC 6793 §4.2.3.
#[test]
fn the_real_path_behind_as_trans() {
    type Segments = &'static [(SegmentKind, &'static [u32])];
    let cases: &[(&str, Segments, Segments, Segments)] = &[
        (
            "nothing put in front",
            &[(Sequence, &[T, 65001])],
            &[(Sequence, &[A, 65001])],
            &[(Sequence, &[A, 65001])],
        ),
        (
            "two speakers in front",
            &[(Sequence, &[65003, 65002, T, 65001])],
            &[(Sequence, &[A, 65001])],
            &[(Sequence, &[65003, 65002, A, 65001])],
        ),
        (
            "AS4_PATH is longer: about another path",
            &[(Sequence, &[65002, T])],
            &[(Sequence, &[A, B, 65001])],
            &[(Sequence, &[65002, T])],
        ),
        (
            "a set counts as one",
            &[(Sequence, &[65002]), (Set, &[T, 65001])],
            &[(Set, &[A, 65001])],
            &[(Sequence, &[65002]), (Set, &[A, 65001])],
        ),
        (
            "a set in front is taken whole",
            &[(Set, &[65004, 65003]), (Sequence, &[65002, T])],
            &[(Sequence, &[B])],
            &[(Set, &[65004, 65003]), (Sequence, &[65002, B])],
        ),
        (
            "confederations that lead, and that follow what is taken, come along",
            &[(ConfedSequence, &[65100]), (Sequence, &[65002]), (ConfedSet, &[65101]), (Sequence, &[T])],
            &[(Sequence, &[A])],
            &[(ConfedSequence, &[65100]), (Sequence, &[65002]), (ConfedSet, &[65101]), (Sequence, &[A])],
        ),
        (
            "confederations further on do not",
            &[(Sequence, &[65002, T]), (ConfedSequence, &[65100])],
            &[(Sequence, &[A])],
            &[(Sequence, &[65002, A])],
        ),
        (
            "confederations in AS4_PATH are dropped",
            &[(Sequence, &[65002, T])],
            &[(ConfedSequence, &[65100]), (Sequence, &[A])],
            &[(Sequence, &[65002, A])],
        ),
    ];
    for &(name, as_path, as4_path, expected) in cases {
        let bytes = update_of(&[
            // Before AS_PATH: the order of attributes means nothing.
            &attribute(0xc0, 17, &path(as4_path).to_value(true)),
            ORIGIN,
            &attribute(0x40, 2, &path(as_path).to_value(false)),
            NEXT_HOP,
        ]);
        let update = decode(&bytes);
        assert_eq!(update.malformed, [], "{name}");
        assert_eq!(update.attributes.as_path, Some(path(expected)), "{name}");
    }
}

/// RFC 6793 §4.2.3: whoever aggregates without knowing of AS4_AGGREGATOR makes it and AS4_PATH those of an earlier route.
#[test]
fn the_real_aggregator() {
    let as_path = attribute(0x40, 2, &path(&[(Sequence, &[65002, T])]).to_value(false));
    let as4_path = attribute(0xc0, 17, &path(&[(Sequence, &[A])]).to_value(true));
    let as4_aggregator = [&[0xc0, 18, 8][..], &A.to_be_bytes(), &[1, 1, 1, 1]].concat();
    let old = |asn: u16| [&[0xc0, 7, 6][..], &asn.to_be_bytes(), &[2, 2, 2, 2]].concat();
    let (real, trans) = (path(&[(Sequence, &[65002, A])]), path(&[(Sequence, &[65002, T])]));
    let by = |asn, n: u8| Some(Aggregator { asn, address: [n; 4].into() });
    let cases: [(&str, Vec<Vec<u8>>, _, _); 4] = [
        ("both, AS_TRANS", vec![old(AS_TRANS), as4_aggregator.clone()], by(A, 1), &real),
        ("both, another", vec![old(65002), as4_aggregator.clone()], by(65002, 2), &trans),
        ("the old one alone", vec![old(65002)], by(65002, 2), &real),
        ("the new one alone", vec![as4_aggregator], None, &real),
    ];
    for (name, aggregators, aggregator, as_path_expected) in cases {
        let bytes = update_of(&[ORIGIN, &as_path, NEXT_HOP, &as4_path, &aggregators.concat()]);
        let update = decode(&bytes);
        assert_eq!(update.malformed, [], "{name}");
        assert_eq!(update.attributes.aggregator, aggregator, "{name}");
        assert_eq!(update.attributes.as_path.as_ref(), Some(as_path_expected), "{name}");
    }
}

/// RFC 6793 §6: they are discarded, and the routes stand.
#[test]
fn malformed() {
    let as_path = attribute(0x40, 2, &path(&[(Sequence, &[T])]).to_value(false));
    for (name, bad) in [
        ("empty", attribute(0xc0, 17, &[])),
        ("cut short", attribute(0xc0, 17, &[2, 2, 0, 0, 0, 1])),
        ("segment kind 5", attribute(0xc0, 17, &[5, 1, 0, 0, 0, 1])),
        ("AS4_AGGREGATOR of six", attribute(0xc0, 18, &[0, 1, 1, 1, 1, 1])),
    ] {
        let update = decode(&update_of(&[ORIGIN, &as_path, NEXT_HOP, &bad]));
        let [error] = update.malformed.as_slice() else { panic!("{name}: {:?}", update.malformed) };
        assert_eq!(error.handling, Handling::Discard, "{name}");
        assert!(matches!(error.problem, AttributeProblem::Length | AttributeProblem::Value), "{name}");
        assert_eq!(update.reachable().count(), 1, "{name}");
        assert_eq!(update.attributes.as_path, Some(path(&[(Sequence, &[T])])), "{name}");
    }
}
