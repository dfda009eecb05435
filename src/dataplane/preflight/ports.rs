//! Who listens where the agent shall.

use std::fs;
use std::path::Path;

use super::Finding;
use super::owners::first_few;

/// State `LISTEN` in /proc/net/tcp (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// Looks whether the BGP port is free. `port`: `None` where the agent does not listen.
pub fn bgp(port: Option<u16>) -> Option<Finding> {
    let port = port?;
    let sockets: Vec<String> = ["tcp", "tcp6"]
        .iter()
        .filter_map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok())
        .flat_map(|table| listeners(&table, port))
        .collect();
    let mut programs: Vec<String> = sockets.iter().map(|inode| owner(inode)).collect();
    programs.sort_unstable();
    programs.dedup();
    Some(judge(port, &programs))
}

fn judge(port: u16, programs: &[String]) -> Finding {
    let subject = format!("BGP port {port}");
    if programs.is_empty() {
        return Finding::ok(subject, "free");
    }
    if programs == ["sheave"] {
        return Finding::ok(subject, "an agent listens");
    }
    Finding::fail(
        subject,
        format!(
            "{} listens there (Calico's BIRD?), and without it nothing is announced",
            first_few(programs)
        ),
        "set `router.listen.port: 0` (the agent then opens all sessions itself) or to another port, or stop the other",
    )
}

/// The inodes of sockets that listen on a port, of /proc/net/tcp or tcp6 (proc(5)).
fn listeners(table: &str, port: u16) -> Vec<String> {
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        let listens = *fields.get(3)? == LISTEN && u16::from_str_radix(local_port, 16) == Ok(port);
        listens.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
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
";

    #[test]
    fn sockets_that_listen() {
        for (port, expected) in [(179, &["20345"][..]), (8080, &["20346"]), (1790, &[])] {
            assert_eq!(listeners(TABLE, port), expected, "{port}");
        }
        assert_eq!(listeners("", 179), [""; 0]);
    }

    #[test]
    fn the_port_is_free_or_ours() {
        for (programs, severity, words) in [
            (&[][..], Severity::Ok, "free"),
            (&["sheave"], Severity::Ok, "an agent"),
            (&["bird"], Severity::Fail, "bird listens"),
            (&["a program", "sheave"], Severity::Fail, "a program"),
        ] {
            let programs: Vec<String> = programs.iter().map(|program| (*program).into()).collect();
            let finding = judge(179, &programs);
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
        }
    }
}
