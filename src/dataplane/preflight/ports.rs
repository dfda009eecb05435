//! Who has the ports that the agent needs.

use std::fs;
use std::path::Path;

use super::Finding;
use super::owners::first_few;

/// What listens has this state in /proc/net/tcp: `TCP_LISTEN` (include/net/tcp_states.h).
const LISTEN: &str = "0A";
/// What takes in datagrams of anybody has that one in /proc/net/udp: `TCP_CLOSE`.
const UNCONNECTED: &str = "07";

/// Looks whether the BGP port is free.
pub fn bgp(port: u16) -> Finding {
    judge(
        format!("BGP port {port}"),
        &programs(["tcp", "tcp6"], LISTEN, port),
        "(Calico's BIRD?), and without it nothing is announced",
        "set `router.listen.port: 0` (the agent then opens all sessions itself) or to another port, or stop the other",
    )
}

/// Looks whether a port of BFD is free.
pub fn bfd(port: u16) -> Finding {
    judge(
        format!("BFD port {port}"),
        &programs(["udp", "udp6"], UNCONNECTED, port),
        "(FRR's bfdd, BIRD?), and without it no BFD session comes up",
        "stop the BFD of the other: RFC 5881 leaves no choice of port",
    )
}

fn judge(subject: String, programs: &[String], consequence: &str, remedy: &str) -> Finding {
    if programs.is_empty() {
        return Finding::ok(subject, "free");
    }
    if programs == ["sheave"] {
        return Finding::ok(subject, "an agent listens");
    }
    Finding::fail(subject, format!("{} listens there {consequence}", first_few(programs)), remedy)
}

/// Programs that have sockets of a state on a port, by tables of this network namespace.
fn programs(tables: [&str; 2], state: &str, port: u16) -> Vec<String> {
    let sockets: Vec<String> = tables
        .iter()
        .filter_map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok())
        .flat_map(|table| sockets(&table, state, port))
        .collect();
    let mut programs: Vec<String> = sockets.iter().map(|inode| owner(inode)).collect();
    programs.sort_unstable();
    programs.dedup();
    programs
}

/// The inodes of sockets of a state on a port, of /proc/net/tcp or another of its shape (proc(5)).
fn sockets(table: &str, state: &str, port: u16) -> Vec<String> {
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let meant = *fields.get(3)? == state && u16::from_str_radix(local_port, 16) == Ok(port);
        meant.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// The program that has a socket, as far as we may see.
fn owner(inode: &str) -> String {
    let target = format!("socket:[{inode}]");
    let has_it = |process: &Path| {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files
            .map(|file| file.path())
            .any(|file| fs::read_link(file).is_ok_and(|link| link.as_os_str() == &*target))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    processes
        .filter(|process| has_it(process))
        .find_map(|process| fs::read_to_string(process.join("comm")).ok())
        .map_or_else(|| "a program".into(), |comm| comm.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:00B3 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20345 1 ffff8e4f4 100 0 0 10 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 20346 1 ffff8e4f5 100 0 0 10 0
   2: 0B00000A:00B3 0100000A:D431 01 00000000:00000000 02:000003E8 00000000     0        0 20347 2 ffff8e4f6 20 4 30 10 -1
   3: 00000000:0EC8 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 20348 2 ffff8e4f7 0
";

    #[test]
    fn sockets_by_port_and_state() {
        for (port, state, expected) in [
            (179, LISTEN, &["20345"][..]),
            (8080, LISTEN, &["20346"]),
            (3784, UNCONNECTED, &["20348"]),
            (3784, LISTEN, &[]),
            (1790, LISTEN, &[]),
        ] {
            assert_eq!(sockets(TABLE, state, port), expected, "{port}");
        }
        assert_eq!(sockets("", LISTEN, 179), [""; 0]);
    }

    #[test]
    fn a_port_is_free_or_ours() {
        for (programs, severity, words) in [
            (&[][..], Severity::Ok, "free"),
            (&["sheave"], Severity::Ok, "an agent"),
            (&["bird"], Severity::Fail, "bird listens"),
            (&["a program", "sheave"], Severity::Fail, "a program"),
        ] {
            let programs: Vec<String> = programs.iter().map(|program| (*program).into()).collect();
            let finding = judge("a port".into(), &programs, "", "");
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
        }
    }
}
