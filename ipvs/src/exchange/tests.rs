use std::collections::VecDeque;

use super::*;
use crate::batch::Chunk;
use crate::socket::Socket;
use crate::uapi::{NLM_F_DUMP, ctrl};
use crate::wire::{NLMSG_HDRLEN, Writer};
use crate::{Operation, ServiceKey};

const FAMILY: u16 = 0x25;
const DATAGRAM: usize = 8 << 10;

/// A kernel that answers each send with the datagrams given.
#[derive(Default)]
struct Scripted {
    answers: VecDeque<Answer>,
    last: Vec<u8>,
    discarded: bool,
}

enum Answer {
    Datagram(Vec<u8>),
    Overrun,
}

impl Scripted {
    fn new(datagrams: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { answers: datagrams.into_iter().map(Answer::Datagram).collect(), ..Self::default() }
    }
}

impl Transport for Scripted {
    fn send(&mut self, _bytes: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    fn receive(&mut self) -> Result<Option<&[u8]>, Error> {
        match self.answers.pop_front() {
            Some(Answer::Datagram(bytes)) => {
                self.last = bytes;
                Ok(Some(&self.last))
            }
            Some(Answer::Overrun) => Err(Error::Overrun),
            None => Ok(None),
        }
    }

    fn discard(&mut self) {
        self.answers.clear();
        self.discarded = true;
    }
}

fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(NLMSG_HDRLEN + payload.len()).unwrap().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An error with `echo` bytes of the request behind it.
fn error(sequence: u32, errno: i32, echo: usize) -> Vec<u8> {
    let mut payload = (-errno).to_ne_bytes().to_vec();
    payload.resize(4 + echo, 0xee);
    message(NLMSG_ERROR, sequence, &payload)
}

fn operation() -> Operation {
    Operation::DelService(ServiceKey::Fwmark { family: crate::Family::V4, mark: 1 })
}

fn sent(count: usize) -> Vec<u8> {
    let mut chunk = Chunk::default();
    for _ in 0..count {
        assert!(chunk.push(FAMILY, &operation()));
    }
    chunk.bytes_mut().to_vec()
}

fn run_batch(kernel: &mut Scripted, first: u32, count: usize) -> Result<Applied, Error> {
    let mut applied = Applied { messages: 100, sends: 1, failures: Vec::new() };
    let mut sequence = first;
    batch(kernel, &mut sequence, &mut sent(count), &mut applied)?;
    assert_eq!(sequence, first.wrapping_add(u32::try_from(count).unwrap()));
    Ok(applied)
}

fn failure(index: usize, errno: Errno) -> Failure {
    Failure { index, errno }
}

#[test]
fn failures_belong_to_their_operations() {
    let first = u32::MAX - 1;
    let cases = [
        ("none", vec![error(first.wrapping_add(4), 0, 16)], vec![]),
        (
            "two in the middle, echoed whole, in part and not at all",
            vec![
                error(first, 3, 200),
                error(first.wrapping_add(2), 17, 16),
                error(first.wrapping_add(4), 0, 0),
            ],
            vec![failure(100, Errno::SRCH), failure(102, Errno::EXIST)],
        ),
        ("the last", vec![error(first.wrapping_add(4), 2, 16)], vec![failure(104, Errno::NOENT)]),
        (
            "several in one datagram",
            vec![[error(first, 3, 16), error(first.wrapping_add(4), 3, 16)].concat()],
            vec![failure(100, Errno::SRCH), failure(104, Errno::SRCH)],
        ),
        (
            "answers to others",
            vec![
                error(first.wrapping_sub(1), 3, 16),
                error(first.wrapping_add(5), 3, 16),
                message(FAMILY, first, &[1; 20]),
                error(first.wrapping_add(4), 0, 16),
            ],
            vec![],
        ),
    ];
    for (name, datagrams, failures) in cases {
        let mut kernel = Scripted::new(datagrams);
        let applied = run_batch(&mut kernel, first, 5).unwrap();
        assert_eq!(applied, Applied { messages: 105, sends: 2, failures }, "{name}");
        assert!(!kernel.discarded, "{name}");
    }
}

#[test]
fn a_batch_whose_answers_are_lost_needs_a_resync() {
    let overrun = || Scripted { answers: [Answer::Overrun].into(), ..Scripted::default() };
    let cases = [
        ("overrun", overrun()),
        ("no answer", Scripted::default()),
        ("error too short", Scripted::new([message(NLMSG_ERROR, 1, &[1, 2])])),
        ("error out of range", Scripted::new([error(1, 4096, 16)])),
        ("success with a number", Scripted::new([error(1, -1, 16)])),
        ("datagram cut short", Scripted::new([error(2, 0, 16)[..30].to_vec()])),
    ];
    for (name, mut kernel) in cases {
        assert!(run_batch(&mut kernel, 1, 2).unwrap_err().needs_resync(), "{name}");
        assert!(kernel.discarded, "{name}");
    }
}

fn run_query(kernel: &mut Scripted) -> Result<(usize, Vec<Vec<u8>>), Error> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).message(FAMILY, NLM_F_DUMP, (4, 1), |_| {});
    let mut replies = Vec::new();
    let pieces = query(kernel, &mut 5, "dump", &mut bytes, |message| {
        replies.push(message.payload.to_vec());
        if message.payload == b"bad!" { Err(Malformed::new("service", "family")) } else { Ok(()) }
    })?;
    Ok((pieces, replies))
}

#[test]
fn a_dump_ends_with_done() {
    let done = || message(NLMSG_DONE, 5, &[0; 4]);
    let mut kernel = Scripted::new([
        [message(FAMILY, 5, b"one!"), message(FAMILY, 4, b"old!"), message(FAMILY, 5, b"two!")].concat(),
        message(NLMSG_DONE, 4, &[0; 4]),
        [message(FAMILY, 5, b"last"), done()].concat(),
    ]);
    let (pieces, replies) = run_query(&mut kernel).unwrap();
    assert_eq!((pieces, replies), (2, ["one!", "two!", "last"].map(Vec::from).to_vec()));

    let mut kernel = Scripted::new([message(FAMILY, 5, b"bad!"), done()]);
    assert!(matches!(run_query(&mut kernel), Err(Error::Malformed(_))));
    assert!(kernel.discarded);

    let mut kernel = Scripted::new([error(5, 1, 16)]);
    let refused = run_query(&mut kernel).unwrap_err();
    assert!(!refused.needs_resync());
    assert_eq!(
        refused.to_string(),
        "dump: Operation not permitted (os error 1): IPVS takes CAP_NET_ADMIN in the initial user namespace"
    );
}

#[test]
fn a_dump_given_up_leaves_no_trace() {
    let mut socket = Socket::open(DATAGRAM).unwrap();
    let mut sequence = 1;
    // All families of generic netlink, which any kernel lists without privileges.
    let mut dump = |on_reply: &mut dyn FnMut() -> Result<(), Malformed>| {
        let mut bytes = Vec::new();
        let version = (ctrl::CMD_GETFAMILY, ctrl::VERSION);
        Writer::new(&mut bytes).message(ctrl::FAMILY, NLM_F_DUMP, version, |_| {});
        query(&mut socket, &mut sequence, "dump of families", &mut bytes, |_| on_reply())
    };
    for _ in 0..2 {
        let given_up = dump(&mut || Err(Malformed::new("family", "name")));
        assert!(matches!(given_up, Err(Error::Malformed(_))), "{given_up:?}");
        let mut families = 0;
        dump(&mut || {
            families += 1;
            Ok(())
        })
        .unwrap();
        assert!(families >= 1);
    }
}

/// As many of the smallest messages as fit one send, to a family that does not exist: any kernel refuses each.
fn refused_by_any_kernel() -> (Vec<u8>, usize) {
    let mut chunk = Chunk::default();
    let mut count = 0;
    while chunk.push(0x7fff, &operation()) {
        count += 1;
    }
    (chunk.bytes_mut().to_vec(), count)
}

#[test]
fn a_send_that_fails_throughout_fits_the_receive_buffer() {
    let (mut bytes, count) = refused_by_any_kernel();
    let mut socket = Socket::open(DATAGRAM).unwrap();
    let mut applied = Applied::default();
    let result = batch(&mut socket, &mut 1, &mut bytes, &mut applied);
    if matches!(result, Err(Error::Overrun)) && !rustix::process::geteuid().is_root() {
        return; // The large receive buffer takes CAP_NET_ADMIN.
    }
    result.unwrap();
    assert_eq!(applied.messages, count);
    let expected: Vec<_> = (0..count).map(|index| failure(index, Errno::NOENT)).collect();
    assert_eq!(applied.failures, expected);
}

#[test]
fn an_overrun_is_told_and_leaves_no_trace() {
    let (mut bytes, _) = refused_by_any_kernel();
    let mut socket = Socket::open(DATAGRAM).unwrap();
    socket.set_receive_buffer(4096).unwrap();
    let mut sequence = 1;
    for _ in 0..2 {
        let result = batch(&mut socket, &mut sequence, &mut bytes, &mut Applied::default());
        assert!(matches!(result, Err(Error::Overrun)), "{result:?}");
    }
    let mut small = Chunk::default();
    small.push(0x7fff, &operation());
    let mut applied = Applied::default();
    batch(&mut socket, &mut sequence, small.bytes_mut(), &mut applied).unwrap();
    assert_eq!(applied.failures, [failure(0, Errno::NOENT)]);
}
