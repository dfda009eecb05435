//! Against the running kernel and `ipvsadm`: as root, each test in a network namespace of its own.
//!
//! Where that cannot be, a test says why and passes; with `SHEAVE_TEST_KERNEL=required` in the environment it
//! fails instead.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is the test's report")]

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sheave_ipvs::{
    Destination, Errno, Error, Failure, Family, ForwardingMethod, Ipvs, Operation, Protocol, Service,
    ServiceEntry, ServiceFlags, ServiceKey, Stats, Timeouts, TunnelFlags, TunnelType,
};

use ForwardingMethod::{DirectRoute, Local, Masquerade, Tunnel};

/// Runs a test in a new network namespace with `lo` up; on a thread of its own, which ends with the namespace.
fn in_namespace(test: impl FnOnce(&mut Ipvs) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| match enter_namespace() {
            Ok(mut ipvs) => test(&mut ipvs),
            Err(reason) if std::env::var("SHEAVE_TEST_KERNEL").is_ok_and(|value| value == "required") => {
                panic!("{reason}")
            }
            Err(reason) => tell(&format!("skipped: {reason}")),
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Tells even if the test passes; what the print macros print is shown of failed ones only.
fn tell(line: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{line}").unwrap();
}

fn enter_namespace() -> Result<Ipvs, String> {
    #[expect(deprecated, reason = "its successor is unsafe for the sake of file descriptor tables only")]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET)
        .map_err(|errno| format!("unshare(CLONE_NEWNET): {errno}"))?;
    let ipvs = Ipvs::open().map_err(|error| error.to_string())?;
    run("ip", &["link", "set", "lo", "up"], "")?;
    run("ipvsadm", &["-Sn"], "")?;
    Ok(ipvs)
}

/// Runs a program in this thread's namespace; what it prints, or why it failed.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let name = format!("{program} {}", arguments.join(" "));
    let finish = || -> std::io::Result<Output> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()))?;
        child.wait_with_output()
    };
    let output = finish().map_err(|error| format!("{name}: {error}"))?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() || !errors.is_empty() {
        return Err(format!("{name}: {}: {errors}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Applies operations, all of which must succeed.
fn apply(ipvs: &mut Ipvs, operations: &[Operation]) {
    let applied = ipvs.apply(operations).unwrap();
    for failure in &applied.failures {
        let operation = &operations[failure.index];
        eprintln!("{operation}: {} {}", failure.errno, operation.explain(failure.errno));
    }
    assert_eq!((applied.messages, applied.failures.len()), (operations.len(), 0));
}

fn address(protocol: Protocol, address: &str, port: u16) -> ServiceKey {
    ServiceKey::Address { protocol, address: address.parse().unwrap(), port }
}

fn tcp(n: u16) -> ServiceKey {
    let [high, low] = n.to_be_bytes();
    address(Protocol::Tcp, &format!("198.18.{high}.{low}"), 80)
}

fn service(key: ServiceKey, scheduler: &str) -> Service {
    Service::new(key, scheduler.parse().unwrap())
}

fn destination(address: &str, port: u16, forwarding: ForwardingMethod) -> Destination {
    Destination::new(address.parse().unwrap(), port, forwarding)
}

/// A virtual server, its destinations, and what `ipvsadm -Sn` prints of them.
struct Case {
    service: Service,
    destinations: Vec<Destination>,
    lines: &'static str,
}

/// All that `ipvsadm` can write. It prints destinations sorted as text.
fn cases() -> Vec<Case> {
    let tunnel =
        |last: u8, tunnel| Destination { tunnel, ..destination(&format!("10.0.0.{last}"), 80, Tunnel) };
    let gue = |flags| TunnelType::Gue { port: 5555, flags };
    let none = TunnelFlags::empty();
    vec![
        Case {
            service: Service {
                flags: ServiceFlags::MH_FALLBACK | ServiceFlags::MH_PORT,
                ..service(address(Protocol::Tcp, "192.0.2.1", 80), "mh")
            },
            destinations: vec![
                Destination { weight: 5, ..destination("10.0.0.1", 80, Tunnel) },
                tunnel(2, gue(none)),
                tunnel(3, gue(TunnelFlags::CSUM)),
                tunnel(4, gue(TunnelFlags::REMCSUM)),
                tunnel(5, TunnelType::Gre { flags: none }),
                tunnel(6, TunnelType::Gre { flags: TunnelFlags::CSUM }),
                Destination { weight: 0, ..destination("10.0.0.7", 8080, Masquerade) },
                destination("10.0.0.8", 80, DirectRoute),
                destination("2001:db8::9", 80, Tunnel),
            ],
            lines: "-A -t 192.0.2.1:80 -s mh -b mh-fallback,mh-port
                -a -t 192.0.2.1:80 -r 10.0.0.1:80 -i -w 5 --tun-type ipip
                -a -t 192.0.2.1:80 -r 10.0.0.2:80 -i -w 1 --tun-type gue --tun-port 5555 --tun-nocsum
                -a -t 192.0.2.1:80 -r 10.0.0.3:80 -i -w 1 --tun-type gue --tun-port 5555 --tun-csum
                -a -t 192.0.2.1:80 -r 10.0.0.4:80 -i -w 1 --tun-type gue --tun-port 5555 --tun-remcsum
                -a -t 192.0.2.1:80 -r 10.0.0.5:80 -i -w 1 --tun-type gre --tun-nocsum
                -a -t 192.0.2.1:80 -r 10.0.0.6:80 -i -w 1 --tun-type gre --tun-csum
                -a -t 192.0.2.1:80 -r 10.0.0.7:8080 -m -w 0
                -a -t 192.0.2.1:80 -r 10.0.0.8:80 -g -w 1
                -a -t 192.0.2.1:80 -r [2001:db8::9]:80 -i -w 1 --tun-type ipip",
        },
        Case {
            service: Service {
                flags: ServiceFlags::PERSISTENT | ServiceFlags::SH_PORT,
                timeout: 360,
                netmask: 24,
                ..service(address(Protocol::Tcp, "192.0.2.2", 443), "sh")
            },
            destinations: vec![],
            lines: "-A -t 192.0.2.2:443 -s sh -p 360 -M 255.255.255.0 -b sh-port",
        },
        Case {
            service: Service {
                flags: ServiceFlags::ONE_PACKET,
                ..service(address(Protocol::Udp, "192.0.2.1", 53), "rr")
            },
            destinations: vec![],
            lines: "-A -u 192.0.2.1:53 -s rr -o",
        },
        Case {
            service: Service {
                flags: ServiceFlags::PERSISTENT,
                timeout: 60,
                pe_name: Some("sip".parse().unwrap()),
                ..service(address(Protocol::Udp, "192.0.2.3", 5060), "rr")
            },
            destinations: vec![],
            lines: "-A -u 192.0.2.3:5060 -s rr -p 60 --pe sip",
        },
        Case {
            service: Service {
                flags: ServiceFlags::PERSISTENT,
                timeout: 300,
                netmask: 0,
                ..service(address(Protocol::Tcp, "192.0.2.5", 0), "rr")
            },
            destinations: vec![],
            lines: "-A -t 192.0.2.5:0 -s rr -p 300 -M 0.0.0.0",
        },
        Case {
            service: service(address(Protocol::Sctp, "192.0.2.4", 9), "rr"),
            destinations: vec![destination("10.0.0.1", 9, Masquerade)],
            lines: "-A --sctp-service 192.0.2.4:9 -s rr
                -a --sctp-service 192.0.2.4:9 -r 10.0.0.1:9 -m -w 1",
        },
        Case {
            service: Service {
                flags: ServiceFlags::SCHED1 | ServiceFlags::SCHED3,
                ..service(address(Protocol::Tcp, "2001:db8::1", 80), "rr")
            },
            destinations: vec![
                destination("10.0.0.1", 80, Tunnel),
                destination("2001:db8::2", 8080, Masquerade),
            ],
            lines: "-A -t [2001:db8::1]:80 -s rr -b flag-1,flag-3
                -a -t [2001:db8::1]:80 -r 10.0.0.1:80 -i -w 1 --tun-type ipip
                -a -t [2001:db8::1]:80 -r [2001:db8::2]:8080 -m -w 1",
        },
        Case {
            service: service(ServiceKey::Fwmark { family: Family::V4, mark: 7 }, "wrr"),
            destinations: vec![Destination { weight: 100, ..destination("10.0.0.8", 0, Masquerade) }],
            lines: "-A -f 7 -s wrr
                -a -f 7 -r 10.0.0.8:0 -m -w 100",
        },
        Case {
            service: Service {
                flags: ServiceFlags::PERSISTENT,
                timeout: 50,
                netmask: 64,
                ..service(ServiceKey::Fwmark { family: Family::V6, mark: 7 }, "wlc")
            },
            destinations: vec![],
            lines: "-A -f 7 -6 -s wlc -p 50 -M 64",
        },
    ]
}

/// What `ipvsadm` should print of all cases, in any order.
fn expected_lines() -> Vec<String> {
    let mut lines: Vec<_> =
        cases().iter().flat_map(|case| case.lines.lines().map(|line| line.trim().to_owned())).collect();
    lines.sort();
    lines
}

fn printed_lines() -> Vec<String> {
    let mut lines: Vec<_> =
        run("ipvsadm", &["-Sn"], "").unwrap().lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

/// Adds what a case is made of.
fn additions(case: &Case) -> impl Iterator<Item = Operation> {
    let key = case.service.key;
    let destinations = case.destinations.iter();
    std::iter::once(Operation::AddService(case.service))
        .chain(destinations.map(move |destination| Operation::AddDestination(key, *destination)))
}

/// Checks a dump, and looking up each virtual server, against the cases.
fn assert_reads_as_cases(ipvs: &mut Ipvs) {
    let entries: BTreeMap<_, _> =
        ipvs.dump().unwrap().into_iter().map(|entry| (entry.service.key, entry)).collect();
    let cases = cases();
    assert_eq!(entries.len(), cases.len());
    for case in cases {
        let entry = &entries[&case.service.key];
        assert_eq!(entry.service, case.service);
        let mut read: Vec<_> = entry.destinations.iter().map(|entry| entry.destination).collect();
        read.reverse(); // The kernel lists the newest first.
        assert_eq!(read, case.destinations, "{}", case.service.key);
        assert_eq!(ipvs.service(&case.service.key).unwrap().as_ref(), Some(entry));
    }
}

#[test]
fn ipvsadm_prints_what_is_added() {
    in_namespace(|ipvs| {
        apply(ipvs, &cases().iter().flat_map(additions).collect::<Vec<_>>());
        assert_eq!(printed_lines(), expected_lines());
        assert_reads_as_cases(ipvs);
    });
}

#[test]
fn ipvsadm_prints_what_is_set() {
    in_namespace(|ipvs| {
        // Every attribute differs at first, and is set then.
        let mut operations = Vec::new();
        for case in cases() {
            let key = case.service.key;
            let flags = ServiceFlags::PERSISTENT | ServiceFlags::SCHED2;
            let at_first = Service { flags, timeout: 77, netmask: 31, ..service(key, "lc") };
            operations.push(Operation::AddService(at_first));
            for &destination in &case.destinations {
                let tunnel = TunnelType::Gue { port: 1, flags: TunnelFlags::CSUM };
                let at_first = Destination {
                    weight: 77,
                    upper_threshold: 9,
                    lower_threshold: 8,
                    // A destination of the other family must be a tunnel from the start.
                    forwarding: Tunnel,
                    tunnel,
                    ..destination
                };
                operations.push(Operation::AddDestination(key, at_first));
            }
            operations.push(Operation::SetService(case.service));
            operations.extend(case.destinations.iter().map(|set| Operation::SetDestination(key, *set)));
        }
        apply(ipvs, &operations);
        assert_eq!(printed_lines(), expected_lines());
        assert_reads_as_cases(ipvs);
    });
}

#[test]
fn what_ipvsadm_restores_is_read() {
    in_namespace(|ipvs| {
        let lines: String =
            cases().iter().flat_map(|case| case.lines.lines()).flat_map(|line| [line.trim(), "\n"]).collect();
        run("ipvsadm", &["-R"], &lines).unwrap();
        assert_eq!(printed_lines(), expected_lines());
        assert_reads_as_cases(ipvs);
    });
}

/// What `ipvsadm -S` does not print, or not take: thresholds, another port in tunnel mode, the local method.
#[test]
fn attributes_that_ipvsadm_does_not_save() {
    in_namespace(|ipvs| {
        let key = tcp(1);
        let destinations = [
            Destination {
                upper_threshold: 100,
                lower_threshold: 50,
                ..destination("10.0.0.1", 8080, Tunnel)
            },
            destination("127.0.0.1", 81, Local),
        ];
        let case = Case { service: service(key, "none"), destinations: destinations.to_vec(), lines: "" };
        apply(ipvs, &additions(&case).collect::<Vec<_>>());
        let entry = ipvs.service(&key).unwrap().unwrap();
        assert_eq!(entry.service, case.service);
        let read: Vec<_> = entry.destinations.iter().rev().map(|entry| entry.destination).collect();
        assert_eq!(read, destinations);
        let table = run("ipvsadm", &["-Ln", "--thresholds"], "").unwrap();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let thresholds =
            table.lines().map(words).find(|words| words.iter().any(|word| word == "10.0.0.1:8080"));
        assert_eq!(thresholds, Some(words("-> 10.0.0.1:8080 100 50 0 0")), "{table}");
    });
}

#[test]
fn a_table_changes_as_told() {
    in_namespace(|ipvs| {
        let key = tcp(1);
        let at = |last: u8| destination(&format!("10.0.0.{last}"), 80, Masquerade);
        let order = |ipvs: &mut Ipvs| -> Option<Vec<u8>> {
            let entry = ipvs.service(&key).unwrap()?;
            let last = |address: std::net::IpAddr| match address {
                std::net::IpAddr::V4(address) => address.octets()[3],
                std::net::IpAddr::V6(_) => 0,
            };
            Some(entry.destinations.iter().map(|entry| last(entry.destination.address)).collect())
        };
        assert_eq!(order(ipvs), None);
        assert_eq!(ipvs.destinations(&key).unwrap(), []);

        let add = |last| Operation::AddDestination(key, at(last));
        let mut operations = vec![Operation::AddService(service(key, "rr"))];
        operations.extend([add(1), add(2), add(3)]);
        apply(ipvs, &operations);
        assert_eq!(order(ipvs), Some(vec![3, 2, 1]), "the newest comes first");
        let entry = ipvs.service(&key).unwrap().unwrap();
        assert_eq!(entry.stats, Stats::default());

        apply(ipvs, &[Operation::SetDestination(key, Destination { weight: 9, ..at(2) })]);
        assert_eq!(order(ipvs), Some(vec![3, 2, 1]), "setting keeps the place");
        apply(ipvs, &[Operation::SetService(service(key, "wrr"))]);
        assert_eq!(order(ipvs), Some(vec![3, 2, 1]), "setting a service keeps its destinations");

        let delete = |last: u8| Operation::DelDestination(key, at(last).address, 80);
        apply(ipvs, &[delete(2), delete(1), add(1)]);
        assert_eq!(order(ipvs), Some(vec![1, 3]));

        apply(ipvs, &[Operation::ZeroService(key), Operation::DelService(key)]);
        assert_eq!(order(ipvs), None);

        apply(ipvs, &[Operation::AddService(service(key, "rr")), add(1)]);
        ipvs.flush().unwrap();
        assert_eq!(ipvs.dump().unwrap(), []);
        assert_eq!(ipvs.apply([] as [Operation; 0]).unwrap().sends, 0);
    });
}

#[test]
fn refusals_are_explained() {
    in_namespace(|ipvs| {
        let key = tcp(1);
        let good = destination("10.0.0.1", 80, Masquerade);
        let v6 = address(Protocol::Tcp, "2001:db8::1", 80);
        apply(ipvs, &[Operation::AddService(service(key, "rr")), Operation::AddDestination(key, good)]);
        let cases = [
            (Operation::AddService(service(key, "rr")), Errno::EXIST),
            (Operation::SetService(service(tcp(2), "rr")), Errno::SRCH),
            (Operation::DelService(tcp(2)), Errno::SRCH),
            (Operation::ZeroService(tcp(2)), Errno::SRCH),
            (Operation::AddService(service(tcp(2), "absent")), Errno::NOENT),
            (Operation::AddService(Service { netmask: 0, ..service(v6, "rr") }), Errno::INVAL),
            (Operation::AddDestination(key, good), Errno::EXIST),
            (Operation::AddDestination(tcp(2), good), Errno::SRCH),
            (Operation::AddDestination(key, destination("224.0.0.1", 80, Masquerade)), Errno::INVAL),
            (Operation::AddDestination(key, destination("2001:db8::1", 80, Masquerade)), Errno::INVAL),
            (
                Operation::AddDestination(
                    key,
                    Destination {
                        tunnel: TunnelType::Gue { port: 0, flags: TunnelFlags::empty() },
                        ..destination("10.0.0.2", 80, Tunnel)
                    },
                ),
                Errno::INVAL,
            ),
            (Operation::SetDestination(key, destination("10.0.0.2", 80, Masquerade)), Errno::NOENT),
            (Operation::SetDestination(key, Destination { weight: 1 << 31, ..good }), Errno::RANGE),
            (
                Operation::SetDestination(
                    key,
                    Destination { upper_threshold: 1, lower_threshold: 2, ..good },
                ),
                Errno::RANGE,
            ),
            (Operation::DelDestination(key, good.address, 81), Errno::NOENT),
        ];
        let applied = ipvs.apply(cases.iter().map(|(operation, _)| operation)).unwrap();
        let expected: Vec<_> =
            cases.iter().enumerate().map(|(index, &(_, errno))| Failure { index, errno }).collect();
        assert_eq!(applied.failures, expected);
        for (operation, errno) in cases {
            assert_ne!(operation.explain(errno), "", "{operation}: {errno}");
        }
    });
}

#[test]
fn failures_in_the_middle_of_thousands_are_found() {
    in_namespace(|ipvs| {
        let key = tcp(1);
        let mut operations = vec![Operation::AddService(service(key, "rr"))];
        let mut failures = Vec::new();
        for n in 0..5000_u16 {
            let port = if n % 500 == 499 { 1 } else { n + 1 };
            if port == 1 && n > 0 {
                failures.push(Failure { index: operations.len(), errno: Errno::EXIST });
            }
            operations.push(Operation::AddDestination(key, destination("10.0.0.1", port, Tunnel)));
        }
        let applied = ipvs.apply(&operations).unwrap();
        assert!(applied.sends > 2, "{}", applied.sends);
        assert_eq!((applied.messages, applied.failures), (5001, failures));
        assert_eq!(ipvs.destinations(&key).unwrap().len(), 4990);
    });
}

#[test]
fn every_one_of_thousands_may_fail() {
    in_namespace(|ipvs| {
        let operations: Vec<_> = (0..8000).map(|n| Operation::DelService(tcp(n))).collect();
        let applied = ipvs.apply(&operations).unwrap();
        let failures: Vec<_> =
            (0..operations.len()).map(|index| Failure { index, errno: Errno::SRCH }).collect();
        assert_eq!(applied.failures, failures);
    });
}

/// Also tells what encoding costs: applying the same again from bytes made before is the least there can be.
#[test]
fn a_large_table_reads_back() {
    in_namespace(|ipvs| {
        let mut operations = Vec::new();
        for n in 0..500 {
            operations.push(Operation::AddService(service(tcp(n), "rr")));
            for last in 1..=10 {
                let destination = destination(&format!("10.0.0.{last}"), 8080, Tunnel);
                operations.push(Operation::AddDestination(tcp(n), destination));
            }
        }
        let started = Instant::now();
        apply(ipvs, &operations);
        let applying = started.elapsed();
        let entries = ipvs.dump().unwrap();
        let destinations: usize = entries.iter().map(|entry: &ServiceEntry| entry.destinations.len()).sum();
        assert_eq!((entries.len(), destinations), (500, 5000));
        assert_eq!(ipvs.services().unwrap().len(), 500);

        // In a namespace without deleted destinations, which would slow it down.
        in_namespace(|ipvs| {
            let mut batch = ipvs.batch();
            operations.iter().for_each(|operation| batch.push(operation));
            assert_eq!(batch.len(), operations.len());
            let started = Instant::now();
            let applied = ipvs.apply_batch(&mut batch).unwrap();
            let replaying = started.elapsed();
            assert_eq!((applied.messages, applied.failures), (operations.len(), vec![]));
            assert_eq!(ipvs.services().unwrap().len(), 500);
            let again = ipvs.apply_batch(&mut batch).unwrap();
            assert_eq!(again.failures.len(), operations.len());
            tell(&format!("{} operations: {applying:?}, prebuilt {replaying:?}", operations.len()));
        });
    });
}

/// The kernel counts the virtual servers of all namespaces to find the next piece of a dump, so that changes in
/// one namespace make it skip virtual servers of another.
#[test]
fn changes_in_another_namespace_hide_nothing() {
    in_namespace(|ipvs| {
        let operations: Vec<_> = (0..500).map(|n| Operation::AddService(service(tcp(n), "rr"))).collect();
        apply(ipvs, &operations);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                in_namespace(|other| {
                    while !done.load(Ordering::Relaxed) {
                        let added = (1000..1040).map(|n| Operation::AddService(service(tcp(n), "rr")));
                        other.apply(added).unwrap();
                        other.apply((1000..1040).map(|n| Operation::DelService(tcp(n)))).unwrap();
                    }
                });
            });
            let listed: Vec<_> = (0..8).map(|_| ipvs.services().map(|services| services.len())).collect();
            done.store(true, Ordering::Relaxed);
            for count in listed {
                assert_eq!(count.unwrap(), 500);
            }
        });
    });
}

#[test]
fn info_and_timeouts() {
    in_namespace(|ipvs| {
        let info = ipvs.info().unwrap();
        assert_eq!(info.version, (1, 2, 1));
        assert!(info.connection_table_size.is_power_of_two());

        ipvs.set_timeouts(&Timeouts { tcp: 901, tcp_fin: 121, udp: 301 }).unwrap();
        ipvs.set_timeouts(&Timeouts { tcp_fin: 122, ..Timeouts::default() }).unwrap();
        assert_eq!(ipvs.timeouts().unwrap(), Timeouts { tcp: 901, tcp_fin: 122, udp: 301 });
        let printed = run("ipvsadm", &["-L", "--timeout"], "").unwrap();
        assert_eq!(printed.trim(), "Timeout (tcp tcpfin udp): 901 122 301");

        let refused = ipvs.set_timeouts(&Timeouts { tcp: u32::MAX, ..Timeouts::default() }).unwrap_err();
        assert!(matches!(refused, Error::Refused { errno: Errno::INVAL, .. }), "{refused}");
    });
}
