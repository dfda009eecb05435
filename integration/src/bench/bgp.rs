//! BGP: one peer is sent [`PREFIXES`] by each speaker, then their withdrawal. The peer is the same for all: a session written by hand that counts.
//!
//! Routes are loaded before the peer connects, and the clock starts with its KEEPALIVE: what is measured is the way from a full table to a peer.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use rustix::process::{Pid, Signal, kill_process};
use sheave_bgp::wire::{Capability, Context as Wire, Message, Open, frame};
use sheave_bgp::{Attributes, PeerConfig, RouteChanges, Speaker, SpeakerConfig};
use tokio::signal::unix::{SignalKind, signal};

use super::memory::Memory;
use crate::netns::NetNs;
use crate::process::{self, Daemon};
use crate::wait::await_some;

/// How many, all with the same attributes.
const PREFIXES: u32 = 100_000;
const PEER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const SPEAKER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);
const PEER_ASN: u16 = 65000;
const SPEAKER_ASN: u32 = 65001;
/// What [`announce`] prints once it knows its routes and its peer.
const READY: &str = "ready";
/// How long a speaker may take for anything.
const LIMIT: Duration = Duration::from_secs(100);
/// UPDATEs without a byte to spare: header 19, lengths 4, ORIGIN 4, AS_PATH 9, NEXT_HOP 7, each prefix 5 of 4096 octets.
const FEWEST_MESSAGES: u32 = PREFIXES.div_ceil((4096 - 19 - 4 - 4 - 9 - 7) / 5);

fn prefix(number: u32) -> Ipv4Net {
    Ipv4Addr::from_bits(Ipv4Addr::new(11, 0, 0, 0).to_bits() + number).into()
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
enum Sender {
    Sheave,
    Bird,
    Frr,
}

/// Measures each and prints a row for it.
///
/// # Errors
/// When one cannot be run, or tells something else.
pub fn run(work: &Path) -> Result<()> {
    fs::create_dir_all(work)?;
    println!(
        "{PREFIXES} prefixes with the same attributes to one peer; the fewest UPDATEs they fit in: {FEWEST_MESSAGES}"
    );
    println!(
        "{:<10} {:>12} {:>9} {:>14} {:>12} {:>12}",
        "", "announced", "UPDATEs", "prefixes each", "withdrawn", "peak memory"
    );
    for sender in [Sender::Sheave, Sender::Bird, Sender::Frr] {
        let row = measure(sender, work).with_context(|| format!("{sender:?}"))?;
        println!(
            "{:<10} {:>10.3} s {:>9} {:>14.1} {:>10.3} s {:>8.1} MiB",
            format!("{sender:?}"),
            row.announced.time.as_secs_f64(),
            row.announced.messages,
            f64::from(PREFIXES) / f64::from(row.announced.messages),
            row.withdrawn.time.as_secs_f64(),
            row.peak as f64 / 1024.0,
        );
    }
    Ok(())
}

struct Row {
    announced: Told,
    withdrawn: Told,
    /// KiB.
    peak: u64,
}

fn measure(sender: Sender, work: &Path) -> Result<Row> {
    let (peer, speaker) = link()?;
    let mut daemon = sender.start(&speaker, work)?;
    await_some(LIMIT, "the routes", || {
        daemon.ensure_running().map_err(|error| format!("{error:#}"))?;
        sender.loaded(&speaker, work).map_err(|error| format!("{error:#}"))
    })?;
    let stream = peer.enter(|| connect(&mut daemon))??;
    let mut session = Session::open(stream)?;
    let announced = session.hear(|update| update.0)?;
    let began = Instant::now();
    sender.withdraw(&speaker, work, &daemon)?;
    let asked = began.elapsed();
    let mut withdrawn = session.hear(|update| update.1)?;
    // What came while it was being asked counts from the question on.
    withdrawn.time += asked;
    let peak = Memory::of(daemon.id())?.peak;
    daemon.kill();
    Ok(Row { announced, withdrawn, peak })
}

/// Two namespaces with a link between them, made anew.
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
    for (ns, address) in [(&peer, PEER), (&speaker, SPEAKER)] {
        ns.ip(&format!("link set lo up\naddr add {address}/24 dev link0\nlink set link0 up\n"))?;
    }
    Ok((peer, speaker))
}

/// Connects once the speaker listens.
fn connect(speaker: &mut Daemon) -> Result<TcpStream> {
    let end = Instant::now() + LIMIT;
    loop {
        match TcpStream::connect_timeout(&SocketAddr::from((SPEAKER, 179)), Duration::from_secs(1)) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > end => bail!("{error}"),
            Err(_) => speaker.ensure_running()?,
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// What was told, until all of it was.
struct Told {
    time: Duration,
    messages: u32,
}

/// The peer's side of an Established session.
struct Session {
    stream: TcpStream,
    bytes: Vec<u8>,
    since: Instant,
}

impl Session {
    const CONTEXT: Wire = Wire {
        four_octet_asn: true,
        ibgp: false,
        extended_messages: false,
        add_path: sheave_bgp::Families::NONE,
    };

    fn open(mut stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        let open = Message::Open(Open {
            my_as: PEER_ASN,
            hold_time: 180,
            router_id: PEER,
            capabilities: vec![
                Capability::Multiprotocol { afi: 1, safi: 1 },
                Capability::FourOctetAsn(PEER_ASN.into()),
            ],
        });
        let mut greeting = Vec::new();
        for message in [open, Message::Keepalive] {
            message.encode(Self::CONTEXT, &mut greeting)?;
        }
        stream.write_all(&greeting)?;
        Ok(Self { stream, bytes: Vec::new(), since: Instant::now() })
    }

    /// Counts UPDATEs until all prefixes were in what `of` picks: reachable, unreachable.
    fn hear(&mut self, of: impl Fn((u32, u32)) -> u32) -> Result<Told> {
        let (mut left, mut messages) = (PREFIXES, 0);
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let mut done = 0;
            while let Some(length) = frame(&self.bytes[done..])? {
                match Message::decode(&self.bytes[done..done + length], Self::CONTEXT)? {
                    Message::Update(update) => {
                        let count = |prefixes: usize| u32::try_from(prefixes).unwrap_or(u32::MAX);
                        let told =
                            of((count(update.reachable().count()), count(update.unreachable().count())));
                        left = left.saturating_sub(told);
                        messages += u32::from(told > 0);
                    }
                    Message::Notification(notification) => bail!("NOTIFICATION: {notification}"),
                    _ => {}
                }
                done += length;
            }
            self.bytes.drain(..done);
            if left > 0 {
                let read = self.stream.read(&mut buffer).context("reading from the speaker")?;
                ensure!(read > 0, "the speaker closed the connection, {left} prefixes were left");
                self.bytes.extend_from_slice(&buffer[..read]);
            }
        }
        let time = self.since.elapsed();
        self.since = Instant::now();
        Ok(Told { time, messages })
    }
}

impl Sender {
    fn start(self, speaker: &NetNs, work: &Path) -> Result<Daemon> {
        let file = |name: &str| work.join(name).display().to_string();
        let written = |name: &str, text: &str| -> Result<String> {
            fs::write(work.join(name), text)?;
            Ok(file(name))
        };
        let mut command;
        match self {
            Self::Sheave => {
                command = Command::new(std::env::current_exe()?);
                command.args(["bench-case", "announce"]);
            }
            Self::Bird => {
                let mut routes = String::new();
                for number in 0..PREFIXES {
                    writeln!(routes, "route {} blackhole;", prefix(number))?;
                }
                let config = written("bird.conf", &format!(
                    "router id {SPEAKER}; protocol device {{ }} protocol static loaded {{ ipv4; {routes} }}
                     protocol bgp peer {{ local {SPEAKER} as {SPEAKER_ASN}; neighbor {PEER} as {PEER_ASN}; passive on;
                       ipv4 {{ import none; export all; next hop self; }}; }}"
                ))?;
                command = Command::new("bird");
                command.args(["-f", "-c", &config, "-s", &file("bird.ctl")]);
            }
            Self::Frr => {
                let mut networks = String::new();
                for number in 0..PREFIXES {
                    writeln!(networks, "  network {}", prefix(number))?;
                }
                let config = written(
                    "frr.conf",
                    &format!(
                        "route-map none deny 10\nrouter bgp {SPEAKER_ASN}\n bgp router-id {SPEAKER}\n no bgp ebgp-requires-policy\n no bgp network import-check\n \
                     neighbor {PEER} remote-as {PEER_ASN}\n neighbor {PEER} passive\n address-family ipv4 unicast\n{networks} exit-address-family\n"
                    ),
                )?;
                command = Command::new("/usr/lib/frr/bgpd");
                command.args([
                    "--no_zebra",
                    "--no_kernel",
                    "--skip_runas",
                    "--vty_port",
                    "0",
                    "--log",
                    "stdout",
                ]);
                command.args([
                    "--config_file",
                    &config,
                    "--pid_file",
                    &file("frr.pid"),
                    "--vty_socket",
                    &file(""),
                ]);
            }
        }
        speaker.daemon(command, &work.join("speaker.log"))
    }

    /// Whether it has all routes.
    fn loaded(self, speaker: &NetNs, work: &Path) -> Result<()> {
        let all = PREFIXES.to_string();
        let (answer, found) = match self {
            Self::Sheave => (fs::read_to_string(work.join("speaker.log"))?, READY.to_owned()),
            Self::Bird => {
                (speaker.run(&format!("birdc -s {}/bird.ctl show route count", work.display()))?, all)
            }
            Self::Frr => (vtysh(speaker, work, &["show bgp ipv4 unicast statistics"])?, all),
        };
        ensure!(answer.contains(&found), "{answer}");
        Ok(())
    }

    fn withdraw(self, speaker: &NetNs, work: &Path, daemon: &Daemon) -> Result<()> {
        match self {
            Self::Sheave => {
                let pid = Pid::from_raw(i32::try_from(daemon.id())?).context("a process")?;
                kill_process(pid, Signal::USR1)?;
            }
            Self::Bird => drop(speaker.run(&format!("birdc -s {}/bird.ctl disable loaded", work.display()))?),
            Self::Frr => {
                let deny = format!("neighbor {PEER} route-map none out");
                let router = format!("router bgp {SPEAKER_ASN}");
                let now = format!("clear bgp ipv4 unicast {PEER} soft out");
                vtysh(
                    speaker,
                    work,
                    &[
                        "configure terminal",
                        "bgp route-map delay-timer 0",
                        &router,
                        "address-family ipv4 unicast",
                        &deny,
                    ],
                )?;
                vtysh(speaker, work, &[&now])?;
            }
        }
        Ok(())
    }
}

fn vtysh(speaker: &NetNs, work: &Path, commands: &[&str]) -> Result<String> {
    let mut command = Command::new("vtysh");
    command.arg("--vty_socket").arg(work);
    for line in commands {
        command.args(["-c", line]);
    }
    speaker.enter(|| process::run(command, ""))?
}

/// The speaker of this repository, as a process of its own: announces all until SIGUSR1, then withdraws them.
///
/// # Errors
/// When it cannot start.
pub fn announce() -> Result<()> {
    let prefixes = || (0..PREFIXES).map(|number| IpNet::from(prefix(number)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut withdraw = signal(SignalKind::user_defined1())?;
        let speaker = Speaker::start(SpeakerConfig {
            asn: SPEAKER_ASN,
            router_id: SPEAKER,
            listen: Some(vec![(SPEAKER, 179).into()]),
            graceful_restart: None,
            restarting: false,
        })
        .await?;
        let all = prefixes().map(|prefix| (prefix, Attributes::default())).collect();
        speaker.update(RouteChanges { announce: all, withdraw: Vec::new() });
        speaker
            .set_peers(vec![PeerConfig { passive: true, ..PeerConfig::new(PEER.into(), PEER_ASN.into()) }]);
        println!("{READY}");
        withdraw.recv().await;
        speaker.update(RouteChanges { announce: Vec::new(), withdraw: prefixes().collect() });
        std::future::pending::<Result<()>>().await
    })
}
