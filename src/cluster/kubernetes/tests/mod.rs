//! Tests of the parts without I/O; those against a server are in `tests/source`.

mod answers;
mod connect;
mod ledger;
mod reflector;

use std::time::Duration;

use super::lines::Lines;
use super::pauses::Pauses;

#[test]
fn lines_come_whole_however_a_body_is_cut() {
    let body = b"first\n\nsecond line\nthird\ncut of";
    for size in 1..=body.len() {
        let mut lines = Lines::default();
        let mut read = Vec::new();
        for piece in body.chunks(size) {
            lines
                .push(piece, |line| {
                    read.push(String::from_utf8(line.to_vec()).unwrap());
                    Ok::<_, ()>(())
                })
                .unwrap();
        }
        assert_eq!(read, ["first", "second line", "third"], "in pieces of {size}");
    }
}

#[test]
fn lines_end_at_the_first_error() {
    let mut read = 0;
    let result = Lines::default().push(b"a\nb\nc\n", |line| {
        read += 1;
        if line == b"b" { Err("b") } else { Ok(()) }
    });
    assert_eq!((result, read), (Err("b"), 2));
}

#[test]
fn pauses_double_up_to_a_limit_and_begin_again_after_success() {
    let mut pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(5));
    let mut next = |chance| pauses.after_failure(None, chance).as_secs_f64();
    assert_eq!([next(1.0), next(1.0), next(1.0), next(1.0), next(0.0)], [1.0, 2.0, 4.0, 5.0, 2.5]);
    pauses.reset();
    assert_eq!(pauses.after_failure(None, 1.0), Duration::from_secs(1));
}

#[test]
fn a_server_that_asks_for_a_pause_gets_it() {
    let cases = [
        ("longer than ours", 7, 0.0, 7.0),
        ("lengthened by chance", 8, 1.0, 10.0),
        ("shorter than ours", 0, 1.0, 1.0),
        ("absurd", 1_000_000, 0.0, 300.0),
    ];
    for (name, asked, chance, expected) in cases {
        let mut pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(5));
        let pause = pauses.after_failure(Some(Duration::from_secs(asked)), chance);
        assert_eq!(pause, Duration::from_secs_f64(expected), "{name}");
    }
}
