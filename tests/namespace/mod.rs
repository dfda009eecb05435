//! A network namespace for each test, on a thread of its own. Skipped, with the reason printed, where the kernel has
//! no IPVS or we are not root.

use std::net::IpAddr;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use sheave::cluster::Encapsulation;
use sheave::config::{Conntrack, MarkMask};
use sheave::dataplane::Settings;

/// A node of its own: uplink `up0` with 10.0.0.11/24 and fd00:10::11/64.
pub struct Node {
    /// With a state directory of its own.
    pub settings: Settings,
}

/// Runs a test inside a new network namespace; says so where that is impossible here.
pub fn in_namespace(name: &str, test: impl AsyncFnOnce(&Node) + Send) {
    let directory = std::env::temp_dir().join(format!("sheave-{}-{name}", std::process::id()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let missing = match unshare(CloneFlags::CLONE_NEWNET) {
                Err(error) => Some(format!("unshare: {error}")),
                Ok(()) => sheave_ipvs::Ipvs::open().err().map(|error| error.to_string()),
            };
            if let Some(missing) = missing {
                let required = std::env::var("SHEAVE_TEST_KERNEL").is_ok_and(|value| value == "required");
                assert!(!required, "{missing}");
                println!("skipped: {missing}");
                return;
            }
            for line in [
                "link set lo up",
                "link add up0 type dummy",
                "addr add 10.0.0.11/24 dev up0",
                "addr add fd00:10::11/64 dev up0 nodad",
                "link set up0 up",
                "route add default via 10.0.0.1",
                "-6 route add default via fd00:10::1",
            ] {
                shell("ip", line);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mark_mask = MarkMask::default();
            let encapsulation = Encapsulation::Ipip;
            let state_directory = directory.clone();
            let strict_arp = false;
            let conntrack = Conntrack::default();
            let settings = Settings { mark_mask, encapsulation, strict_arp, conntrack, state_directory };
            let node = Node { settings };
            runtime.block_on(test(&node));
        });
    });
    let _ = std::fs::remove_dir_all(directory);
}

/// Runs a program that must succeed; gives what it prints.
pub fn shell(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An address.
pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Everything of this namespace that an agent could change, by what shows it.
pub fn dump() -> Vec<String> {
    [
        ("ip", "-o link"),
        ("ip", "-o addr"),
        ("ip", "route show table all"),
        ("ip", "-6 route show table all"),
        ("nft", "-s list ruleset"),
        ("ipvsadm", "-Sn"),
        ("ip", "fou show"),
        ("sysctl", "-a --pattern ^net"),
    ]
    .map(|(program, arguments)| shell(program, arguments))
    .into()
}
