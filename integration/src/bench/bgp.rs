//! BGP: this speaker beside BIRD, FRR and GoBGP, one after the other on the same two cores. Their peers are the same for
//! all: sessions written by hand that send what was encoded beforehand, and count.
//!
//! Sending: a speaker has a table before its peers connect, one after the other. The clock starts with the first one's KEEPALIVE
//! and stops with the last prefix to the last of them; then with the word to withdraw all, and the last withdrawal.
//! Receiving: [`PEERS`] connect, each when the one before has its session (BIRD keeps 8 connections waiting, and loses
//! some of more), and sends [`EACH`] as soon as it has. The clock starts with the first session and stops when the
//! speaker, left alone all the while, was seen to work last; only then it is asked whether it has them all.

mod peer;
mod speaker;
mod subject;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ipnet::Ipv4Net;

pub use self::speaker::{announce, receive};
use self::subject::Subject;
use super::memory::{self, Memory};
use crate::netns::NetNs;
use crate::process::{self, Daemon};
use crate::wait::await_some;

/// How often each figure is taken; odd, for the median.
const ROUNDS: usize = 5;
/// What a speaker sends, all with the same attributes: to how many peers how many prefixes.
const TABLES: [Table; 2] = [Table { peers: 1, prefixes: 100_000 }, Table { peers: PEERS, prefixes: 10_000 }];
/// How many peers a speaker receives from, each with attributes of its own.
const PEERS: u32 = 100;
/// What each of them sends.
const EACH: u32 = 1_000;
const SPEAKER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const SPEAKER_ASN: u32 = 65001;
const PEER_ASN: u16 = 65000;
/// How long a speaker may take for anything.
const LIMIT: Duration = Duration::from_secs(100);
/// How often it is looked at whether a speaker works.
const LOOK: Duration = Duration::from_millis(5);
/// A speaker that has worked for less than a fifth of each look for so long is done, or waits.
const QUIET: Duration = Duration::from_millis(300);

/// What is sent.
#[derive(Clone, Copy)]
struct Table {
    peers: u32,
    prefixes: u32,
}

impl Table {
    /// To whom.
    fn peers(self) -> impl Iterator<Item = Ipv4Addr> {
        peers().take(self.peers as usize)
    }

    /// How many UPDATEs to each peer there are without a byte to spare: header 19, lengths 4, ORIGIN 4, AS_PATH 9, NEXT_HOP 7, each
    /// prefix 5 of 4096 octets.
    fn fewest_messages(self) -> u32 {
        self.prefixes.div_ceil((4096 - 19 - 4 - 4 - 9 - 7) / 5)
    }
}

fn prefix(number: u32) -> Ipv4Net {
    Ipv4Addr::from_bits(Ipv4Addr::new(11, 0, 0, 0).to_bits() + number).into()
}

/// The addresses of peers.
fn peers() -> impl Iterator<Item = Ipv4Addr> {
    (1..=PEERS).map(|number| Ipv4Addr::from_bits(Ipv4Addr::new(10, 255, 1, 0).to_bits() + number))
}

/// Measures all and prints a row for each.
///
/// # Errors
/// When one cannot be run, or tells something else.
pub fn run(work: &Path) -> Result<()> {
    fs::create_dir_all(work)?;
    println!(
        "median of {ROUNDS} (slowest); time from outside, CPU time of the speaker until then, its peak memory without pages of \
         programs and libraries (and with them)"
    );
    for table in TABLES {
        let Table { peers, prefixes } = table;
        println!(
            "\n{prefixes} prefixes with the same attributes, to {peers} peers; the fewest UPDATEs to each that they fit in: {}",
            table.fewest_messages()
        );
        println!(
            "{:<8} {:>16} {:>8} {:>8} {:>14} {:>16} {:>8} {:>17}",
            "", "announced", "CPU", "UPDATEs", "prefixes each", "withdrawn", "CPU", "memory"
        );
        for (subject, rows) in in_turn(|subject| sending(subject, table, work))? {
            let messages = rows[0].announced.messages;
            println!(
                "{:<8} {} {} {:>8} {:>14.1} {} {} {}",
                subject.name(),
                times(&rows, |row| row.announced.cost.time),
                cpu(&rows, |row| row.announced.cost.cpu),
                messages / peers,
                f64::from(prefixes * peers) / f64::from(messages),
                times(&rows, |row| row.withdrawn.cost.time),
                cpu(&rows, |row| row.withdrawn.cost.cpu),
                mebibytes(&rows, |row| row.memory),
            );
        }
    }
    for shared in [0, EACH / 2] {
        println!("\n{PEERS} peers × {EACH} prefixes to one speaker, {shared} of each the same for all peers");
        println!("{:<8} {:>16} {:>16} {:>8} {:>17}", "", "sessions up", "all in its table", "CPU", "memory");
        for (subject, rows) in in_turn(|subject| receiving(subject, shared, work))? {
            println!(
                "{:<8} {} {} {} {}",
                subject.name(),
                times(&rows, |row| row.sessions),
                times(&rows, |row| row.cost.time),
                cpu(&rows, |row| row.cost.cpu),
                mebibytes(&rows, |row| row.memory),
            );
        }
    }
    Ok(())
}

/// Measures each subject as often as it is to be; by turns, so that what disturbs one disturbs all.
fn in_turn<Row>(measure: impl Fn(Subject) -> Result<Row>) -> Result<Vec<(Subject, Vec<Row>)>> {
    let mut all: Vec<(Subject, Vec<Row>)> =
        Subject::ALL.into_iter().map(|subject| (subject, Vec::new())).collect();
    for _ in 0..ROUNDS {
        for (subject, rows) in &mut all {
            rows.push(measure(*subject).with_context(|| subject.name())?);
        }
    }
    Ok(all)
}

/// The median, and the most.
fn spread<Row, T: Ord + Copy>(rows: &[Row], of: impl Fn(&Row) -> T) -> (T, T) {
    let mut values: Vec<T> = rows.iter().map(of).collect();
    values.sort_unstable();
    (values[values.len() / 2], values[values.len() - 1])
}

fn times<Row>(rows: &[Row], of: impl Fn(&Row) -> Duration) -> String {
    let (median, most) = spread(rows, of);
    format!("{:>7.3} ({:.3}) s", median.as_secs_f64(), most.as_secs_f64())
}

fn cpu<Row>(rows: &[Row], of: impl Fn(&Row) -> Duration) -> String {
    format!("{:>6.3} s", spread(rows, of).0.as_secs_f64())
}

fn mebibytes<Row>(rows: &[Row], of: impl Fn(&Row) -> Memory) -> String {
    let median = |of: &dyn Fn(&Row) -> u64| spread(rows, of).0 as f64 / 1024.0;
    let own = median(&|row| of(row).peak - of(row).file);
    format!("{own:>6.1} ({:.1}) MiB", median(&|row| of(row).peak))
}

/// What something took: by the clock, and of the speaker's CPU time.
struct Cost {
    time: Duration,
    cpu: Duration,
}

/// What was told, until all of it was: to all peers.
struct Told {
    cost: Cost,
    messages: u32,
}

struct Sending {
    announced: Told,
    withdrawn: Told,
    memory: Memory,
}

fn sending(subject: Subject, table: Table, work: &Path) -> Result<Sending> {
    let (feeders, speaker) = link()?;
    let mut daemon = subject.sends(table, &speaker, work)?;
    await_some(LIMIT, "the routes", || {
        daemon.ensure_running().map_err(|error| format!("{error:#}"))?;
        subject.has_loaded(table, &speaker, work).map_err(|error| format!("{error:#}"))
    })?;
    let spent = memory::cpu_time(daemon.id())?;
    let (mut threads, mut reports, mut ups) = (Vec::new(), Vec::new(), Vec::new());
    for address in table.peers() {
        let (report, of_peer) = mpsc::channel();
        threads.push(feeders.thread(move || peer::count(address, table.prefixes, &report))?);
        // The thread says why, if there is none.
        let Ok(up) = of_peer.recv_timeout(LIMIT) else { break };
        ups.push(up.at);
        reports.push(of_peer);
    }
    let told = ups.iter().min().context("no session").and_then(|began| {
        let announced = told(&reports, &daemon, (*began, spent))?;
        let spent = memory::cpu_time(daemon.id())?;
        let began = subject.withdraw(table, &speaker, work, &daemon)?;
        Ok((announced, told(&reports, &daemon, (began, spent))?))
    });
    let (memory, log) = (Memory::of(daemon.id())?, daemon.log_tail(30));
    daemon.kill();
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a peer panicked"))??.with_context(|| log.clone())?;
    }
    let (announced, withdrawn) = told?;
    Ok(Sending { announced, withdrawn, memory })
}

/// Waits until all peers have been told all.
fn told(
    reports: &[mpsc::Receiver<peer::Report>],
    daemon: &Daemon,
    (began, spent): (Instant, Duration),
) -> Result<Told> {
    let (mut end, mut messages) = (began, 0);
    for of_peer in reports {
        let report = of_peer.recv_timeout(LIMIT).context("a peer was not told all")?;
        end = end.max(report.at);
        messages += report.messages;
    }
    let cost = Cost { time: end - began, cpu: memory::cpu_time(daemon.id())? - spent };
    Ok(Told { cost, messages })
}

struct Receiving {
    /// From the first session to the last.
    sessions: Duration,
    cost: Cost,
    memory: Memory,
}

fn receiving(subject: Subject, shared: u32, work: &Path) -> Result<Receiving> {
    let (feeders, speaker) = link()?;
    let mut daemon = subject.receives(&speaker, work)?;
    // It answers, and so it has read its configuration.
    await_some(LIMIT, "the speaker", || {
        daemon.ensure_running().map_err(|error| format!("{error:#}"))?;
        subject.held(&speaker, work).map_err(|error| format!("{error:#}"))
    })?;
    let updates = |(address, number)| {
        // First those that all have, then its own.
        let prefixes = (0..EACH).map(|own| if own < shared { own } else { EACH * number + own });
        Ok((address, peer::updates(address, number, prefixes.map(prefix))?))
    };
    let feeds: Vec<_> = peers().zip(1..).map(updates).collect::<Result<_>>()?;
    let spent = memory::cpu_time(daemon.id())?;
    let (up, ups) = mpsc::channel();
    let (mut threads, mut sessions) = (Vec::new(), Vec::new());
    for (address, updates) in feeds {
        let up = up.clone();
        threads.push(feeders.thread(move || peer::feed(address, &updates, &up))?);
        match ups.recv_timeout(LIMIT) {
            Ok(at) => sessions.push(at),
            // The thread says why.
            Err(_) => break,
        }
    }
    let done = settle(&mut daemon, || {
        let held = subject.held(&speaker, work)?;
        ensure!(held == PEERS * EACH, "{held} routes of {}", PEERS * EACH);
        Ok(())
    });
    let memory = Memory::of(daemon.id())?;
    daemon.kill();
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a feeder panicked"))???;
    }
    let (done, cpu) = done?;
    let (first, last) = sessions.first().zip(sessions.last()).context("no session")?;
    let cost = Cost { time: done.saturating_duration_since(*first), cpu: cpu - spent };
    Ok(Receiving { sessions: *last - *first, cost, memory })
}

/// Waits until a speaker has `all`, and works no more: when it did last, and the CPU time it had used by then.
fn settle(daemon: &mut Daemon, mut all: impl FnMut() -> Result<()>) -> Result<(Instant, Duration)> {
    let end = Instant::now() + LIMIT;
    // When it was last seen to work, and the CPU time used until then.
    let mut busy = (Instant::now(), memory::cpu_time(daemon.id())?);
    let mut before = busy;
    loop {
        thread::sleep(LOOK);
        let now = (Instant::now(), memory::cpu_time(daemon.id())?);
        if (now.1 - before.1) * 5 > now.0 - before.0 {
            busy = now;
        }
        before = now;
        if now.0 - busy.0 < QUIET {
            continue;
        }
        match all() {
            Ok(()) => return Ok(busy),
            Err(error) if now.0 > end => return Err(error),
            Err(_) => daemon.ensure_running()?,
        }
        // Being asked is no work to be measured.
        before = (Instant::now(), memory::cpu_time(daemon.id())?);
    }
}

/// Two namespaces with a link between them, made anew: one for the peers, one for the speaker.
fn link() -> Result<(NetNs, NetNs)> {
    let [peer, speaker] = ["bench-peer", "bench-speaker"].map(|name| {
        let ip = |words: &[&str]| {
            let mut command = Command::new("ip");
            command.args(words);
            process::run(command, "")
        };
        // It may be there from a run before.
        let _ = ip(&["netns", "del", name]);
        ip(&["netns", "add", name])?;
        NetNs::open(name)
    });
    let (peer, speaker) = (peer?, speaker?);
    peer.ip(&format!("link add link0 type veth peer name link0 netns {}\n", speaker.name()))?;
    let addresses: String = peers().map(|peer| format!("addr add {peer}/16 dev link0\n")).collect();
    for (ns, addresses) in [(&peer, addresses), (&speaker, format!("addr add {SPEAKER}/16 dev link0\n"))] {
        ns.ip(&format!("link set lo up\n{addresses}link set link0 up\n"))?;
    }
    Ok((peer, speaker))
}
