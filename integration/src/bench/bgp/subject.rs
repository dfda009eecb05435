//! The speakers under test: how each is set up, loaded, asked and told.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{LIMIT, PEER_ASN, SPEAKER, SPEAKER_ASN, Table, peers, prefix};
use crate::netns::NetNs;
use crate::process::{self, Daemon};
use crate::wait::await_some;

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    Sheave,
    Bird,
    Frr,
    GoBgp,
}

impl Subject {
    pub const ALL: [Self; 4] = [Self::Sheave, Self::Bird, Self::Frr, Self::GoBgp];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sheave => "Sheave",
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
            Self::GoBgp => "GoBGP",
        }
    }

    /// Starts one that has, or is about to have, all prefixes for its peers.
    pub fn sends(self, table: Table, speaker: &NetNs, work: &Path) -> Result<Daemon> {
        match self {
            Self::Sheave => {
                let [peers, prefixes] = [table.peers, table.prefixes].map(|number| number.to_string());
                sheave(&["announce", &peers, &prefixes], speaker, work)
            }
            Self::Bird => {
                let mut routes = String::new();
                for number in 0..table.prefixes {
                    writeln!(routes, "route {} blackhole;", prefix(number))?;
                }
                let mut text = format!("protocol static loaded {{ ipv4; {routes} }}\n");
                for peer in table.peers() {
                    writeln!(
                        text,
                        "protocol bgp {{ local {SPEAKER} as {SPEAKER_ASN}; neighbor {peer} as {PEER_ASN}; passive on;
                           ipv4 {{ import none; export all; next hop self; }}; }}"
                    )?;
                }
                bird(&text, speaker, work)
            }
            Self::Frr => {
                let mut networks = String::new();
                for number in 0..table.prefixes {
                    writeln!(networks, "  network {}", prefix(number))?;
                }
                frr(table.peers(), &networks, speaker, work)
            }
            Self::GoBgp => {
                let daemon = gobgp(table.peers(), "accept-route", speaker, work)?;
                let dump = work.join("table.mrt");
                fs::write(&dump, mrt(table.prefixes))?;
                await_some(LIMIT, "gobgpd", || {
                    speaker.run("gobgp global").map_err(|error| format!("{error:#}"))
                })?;
                speaker.run(&format!("gobgp mrt inject global {}", dump.display()))?;
                Ok(daemon)
            }
        }
    }

    /// Starts one that takes all that its peers announce, and tells them nothing.
    pub fn receives(self, speaker: &NetNs, work: &Path) -> Result<Daemon> {
        match self {
            Self::Sheave => sheave(&["receive"], speaker, work),
            Self::Bird => {
                let mut text = String::new();
                for peer in peers() {
                    writeln!(
                        text,
                        "protocol bgp {{ local {SPEAKER} as {SPEAKER_ASN}; neighbor {peer} as {PEER_ASN}; passive on;
                           ipv4 {{ import all; export none; }}; }}"
                    )?;
                }
                bird(&text, speaker, work)
            }
            Self::Frr => {
                let mut deny = String::new();
                for peer in peers() {
                    writeln!(deny, "  neighbor {peer} route-map none out")?;
                }
                frr(peers(), &deny, speaker, work)
            }
            Self::GoBgp => gobgp(peers(), "reject-route", speaker, work),
        }
    }

    /// Whether it has all that it is to send.
    pub fn has_loaded(self, table: Table, speaker: &NetNs, work: &Path) -> Result<()> {
        let loaded = match self {
            Self::Frr => {
                let answer = vtysh(speaker, work, &["show bgp ipv4 unicast statistics json"])?;
                let answer: serde_json::Value = serde_json::from_str(&answer)?;
                answer["ipv4Unicast"][0]["totalPrefixes"].as_u64().context("totalPrefixes")?.try_into()?
            }
            Self::Sheave | Self::Bird | Self::GoBgp => self.held(speaker, work)?,
        };
        ensure!(loaded == table.prefixes, "{loaded} prefixes");
        Ok(())
    }

    /// How many routes it has that may be used, all those to one prefix counted.
    pub fn held(self, speaker: &NetNs, work: &Path) -> Result<u32> {
        let number = |text: &str, before: &str| -> Result<u32> {
            let (_, after) = text.split_once(before).with_context(|| text.to_owned())?;
            let digits = after.split(|c: char| !c.is_ascii_digit()).next();
            digits.unwrap_or_default().parse().with_context(|| text.to_owned())
        };
        match self {
            Self::Sheave => {
                let log = fs::read_to_string(log(work))?;
                let last = log.lines().last().context("nothing yet")?;
                last.parse().with_context(|| last.to_owned())
            }
            // "7 of 8 routes for 9 networks"
            Self::Bird => number(&BirdControl::open(work)?.ask("show route count")?, " of "),
            Self::Frr => {
                let answer = vtysh(speaker, work, &["show bgp ipv4 unicast summary json"])?;
                let answer: serde_json::Value = serde_json::from_str(&answer)?;
                let peers = answer["peers"].as_object().with_context(|| answer.to_string())?;
                let held: u64 = peers.values().filter_map(|peer| peer["pfxRcd"].as_u64()).sum();
                Ok(held.try_into()?)
            }
            Self::GoBgp => number(&speaker.run("gobgp global rib summary")?, "Path: "),
        }
    }

    /// Tells it to withdraw all; when that was. The start of `vtysh` and `gobgp` counts.
    pub fn withdraw(self, table: Table, speaker: &NetNs, work: &Path, daemon: &Daemon) -> Result<Instant> {
        match self {
            Self::Sheave => {
                let pid = Pid::from_raw(i32::try_from(daemon.id())?).context("a process")?;
                let began = Instant::now();
                kill_process(pid, Signal::USR1)?;
                Ok(began)
            }
            Self::Bird => {
                let mut control = BirdControl::open(work)?;
                let began = Instant::now();
                control.ask("disable loaded")?;
                Ok(began)
            }
            Self::Frr => {
                let router = format!("router bgp {SPEAKER_ASN}");
                let deny = table.peers().map(|peer| format!("neighbor {peer} route-map none out"));
                let deny: Vec<String> = deny.collect();
                let delay = "bgp route-map delay-timer 0";
                let family = "address-family ipv4 unicast";
                let mut configure = vec!["configure terminal", delay, &router, family];
                configure.extend(deny.iter().map(String::as_str));
                vtysh(speaker, work, &configure)?;
                let began = Instant::now();
                vtysh(speaker, work, &["clear bgp ipv4 unicast * soft out"])?;
                Ok(began)
            }
            Self::GoBgp => {
                let began = Instant::now();
                speaker.run("gobgp global rib del all")?;
                Ok(began)
            }
        }
    }
}

fn log(work: &Path) -> PathBuf {
    work.join("speaker.log")
}

/// Runs a speaker whose output is all that is in its log.
fn start(command: Command, speaker: &NetNs, work: &Path) -> Result<Daemon> {
    fs::write(log(work), "")?;
    speaker.daemon(command, &log(work))
}

fn sheave(case: &[&str], speaker: &NetNs, work: &Path) -> Result<Daemon> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bench-case").args(case);
    start(command, speaker, work)
}

fn bird(protocols: &str, speaker: &NetNs, work: &Path) -> Result<Daemon> {
    let config = work.join("bird.conf");
    fs::write(&config, format!("router id {SPEAKER}; protocol device {{ }} {protocols}"))?;
    let mut command = Command::new("bird");
    command.arg("-f").arg("-c").arg(config).arg("-s").arg(work.join("bird.ctl"));
    start(command, speaker, work)
}

/// BIRD's control socket: what `birdc` does, without the start of a program.
struct BirdControl(BufReader<UnixStream>);

impl BirdControl {
    fn open(work: &Path) -> Result<Self> {
        let stream = UnixStream::connect(work.join("bird.ctl")).context("bird.ctl")?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut control = Self(BufReader::new(stream));
        control.answer()?;
        Ok(control)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.get_mut().write_all(format!("{command}\n").as_bytes())?;
        self.answer()
    }

    /// Lines up to the one with a code and a space, the last; others have a dash there, or begin with a space.
    fn answer(&mut self) -> Result<String> {
        let mut answer = String::new();
        loop {
            let at = answer.len();
            ensure!(self.0.read_line(&mut answer)? > 0, "BIRD closed its control socket: {answer}");
            let line = &answer.as_bytes()[at..];
            if line.len() > 4 && line[..4].iter().all(u8::is_ascii_digit) && line[4] == b' ' {
                return Ok(answer);
            }
        }
    }
}

fn frr(
    peers: impl IntoIterator<Item = Ipv4Addr>,
    family: &str,
    speaker: &NetNs,
    work: &Path,
) -> Result<Daemon> {
    let mut neighbours = String::new();
    for peer in peers {
        writeln!(neighbours, " neighbor {peer} remote-as {PEER_ASN}\n neighbor {peer} passive")?;
    }
    let config = work.join("frr.conf");
    fs::write(
        &config,
        format!(
            "route-map none deny 10\nrouter bgp {SPEAKER_ASN}\n bgp router-id {SPEAKER}\n no bgp ebgp-requires-policy\n \
             no bgp network import-check\n{neighbours} address-family ipv4 unicast\n{family} exit-address-family\n"
        ),
    )?;
    let mut command = Command::new("/usr/lib/frr/bgpd");
    command.args(["--no_zebra", "--no_kernel", "--skip_runas", "--vty_port", "0", "--log", "stdout"]);
    command.arg("--config_file").arg(config).arg("--pid_file").arg(work.join("frr.pid"));
    command.arg("--vty_socket").arg(work);
    start(command, speaker, work)
}

fn vtysh(speaker: &NetNs, work: &Path, commands: &[&str]) -> Result<String> {
    let mut command = Command::new("vtysh");
    command.arg("--vty_socket").arg(work);
    for line in commands {
        command.args(["-c", line]);
    }
    speaker.enter(|| process::run(command, ""))?
}

fn gobgp(
    peers: impl IntoIterator<Item = Ipv4Addr>,
    export: &str,
    speaker: &NetNs,
    work: &Path,
) -> Result<Daemon> {
    let mut config = format!(
        "[global.config]\nas = {SPEAKER_ASN}\nrouter-id = \"{SPEAKER}\"\n\
         [global.apply-policy.config]\ndefault-export-policy = \"{export}\"\n"
    );
    for peer in peers {
        write!(
            config,
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{peer}\"\npeer-as = {PEER_ASN}\n\
             [neighbors.transport.config]\npassive-mode = true\n"
        )?;
    }
    let file = work.join("gobgpd.toml");
    fs::write(&file, config)?;
    let mut command = Command::new("gobgpd");
    command.arg("--config-file").arg(file).args(["--pprof-disable", "--log-plain"]);
    start(command, speaker, work)
}

/// All prefixes as a dump of a table (RFC 6396 §4.3), what `gobgp mrt inject` reads.
fn mrt(prefixes: u32) -> Vec<u8> {
    const PEER_INDEX_TABLE: u16 = 1;
    const RIB_IPV4_UNICAST: u16 = 2;
    /// `gobgp` ends as soon as it has sent the last, which ends the call before gobgpd has read all of it: what may be
    /// lost, some hundreds, is the last prefix, said again.
    const AGAIN: usize = 10_000;
    let record = |subtype: u16, body: &[&[u8]]| {
        let body = body.concat();
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
        // A time, TABLE_DUMP_V2.
        [&[0, 0, 0, 0, 0, 13], &subtype.to_be_bytes()[..], &length, &body].concat()
    };
    let id = SPEAKER.octets();
    // The collector, a view without a name, one peer: with a 4-octet ASN.
    let mut dump = record(
        PEER_INDEX_TABLE,
        &[&id, &[0, 0], &[0, 1], &[2], &id, &SPEAKER.octets(), &SPEAKER_ASN.to_be_bytes()],
    );
    // ORIGIN IGP, an empty AS_PATH, NEXT_HOP.
    let attributes = [&[0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4], &SPEAKER.octets()[..]].concat();
    let length = [0, u8::try_from(attributes.len()).unwrap_or(u8::MAX)];
    let last = std::iter::repeat_n(prefixes - 1, AGAIN);
    for number in (0..prefixes).chain(last) {
        let address = prefix(number).addr().octets();
        // One entry: of peer 0, at a time.
        let entry: [&[u8]; 4] = [&[0, 1], &[0, 0], &[0; 4], &length];
        let net = [&number.to_be_bytes()[..], &[32], &address];
        dump.extend(record(RIB_IPV4_UNICAST, &[&net.concat(), &entry.concat(), &attributes]));
    }
    dump
}
