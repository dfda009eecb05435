//! Memory of what follows an API server and plans, at 10,000 Services × 10 endpoints, against a stored bound
//! (`memory.bound`). No kernel is programmed, so that this runs anywhere, natively; `integration/lab bench api` has the
//! whole agent. Pages of the program itself do not count: the one that is measured has all of the lab in it.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]

use std::fs;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use sheave_apiserver::{Options, Reach, Server, StreamingLists};
use sheave_integration::bench::memory::{Memory, reset_peak};
use sheave_integration::bench::population::Population;

/// A process that follows the API server and plans, and what it prints.
struct Follower {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Follower {
    fn start(kubeconfig: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sheave-lab"));
        command.args(["bench-case", "source"]).arg(kubeconfig).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    fn memory(&self) -> Memory {
        Memory::of(self.child.id()).unwrap()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The peak and what there is, in KiB, without pages of files.
fn anonymous(Memory { peak, resident, file }: Memory) -> (u64, u64) {
    (peak - file, resident - file)
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(10));
    }
}

fn bound(name: &str) -> u64 {
    let figure = |name: &str| -> u64 {
        let line = include_str!("memory.bound").lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    };
    figure(name) * (100 + figure("slack")) / 100
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes long without optimisation: cargo test --profile lab")]
fn a_large_cluster_takes_no_more_than_it_did() {
    let server = Server::start(Options::default()).unwrap();
    let (api, population) = (server.api(), Population { services: 10_000 });
    population.load(api).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig()).unwrap();
    let mut exceeded = Vec::new();
    for (mode, ready) in [(StreamingLists::Served, false), (StreamingLists::Rejected, true)] {
        api.set_streaming_lists(mode);
        let mut follower = Follower::start(&kubeconfig);
        assert_eq!(follower.line(), "synced 10000");
        // What is given back is given back by now.
        sleep(Duration::from_secs(1));
        let (peak, steady) = anonymous(follower.memory());

        // History is truncated while the server is away: everything is listed anew.
        reset_peak(follower.child.id()).unwrap();
        let watches = api.watches().len();
        api.set_reach(Reach::Refused);
        until("watches end with their connections", || api.watches().is_empty());
        population.set_ready(api, 4_711, ready).unwrap();
        api.compact();
        api.set_reach(Reach::Up);
        assert_eq!(follower.line(), "changed 1", "virtual servers, and not one more");
        // Each resource tries again when chance wants it; pages of Nodes count as much as the slices that changed.
        until("everything is watched again", || api.watches().len() == watches);
        sleep(Duration::from_secs(1));
        let (relist, _) = anonymous(follower.memory());
        for (name, figure) in [("peak", peak), ("steady", steady), ("relist", relist)] {
            println!("{mode:?}: {name} {figure} KiB, bound {} KiB", bound(name));
            if figure > bound(name) {
                exceeded.push(format!("{mode:?}: {name}: {figure} KiB > {} KiB", bound(name)));
            }
        }
    }
    assert_eq!(
        exceeded, [""; 0],
        "what it takes has grown: find out why, or store the new figures and say why"
    );
}
