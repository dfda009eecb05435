//! The status API on a Unix socket: a line with the question, `status`, `draining` or `explain TARGET`, or the order `drain` or `undrain`;
//! then one JSON object and the end of the stream.
//!
//! Whoever ends their side without a question, or asks nothing for a second, gets the [`Status`].

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::explain::{Explanation, Target};
use super::metrics::Snapshot;

/// Longest question, in bytes.
const LONGEST_QUESTION: u64 = 1024;
/// How long a question may take to be asked.
const ASKING: Duration = Duration::from_secs(1);
/// How often it is looked whether the socket is still there.
const LOOK: Duration = Duration::from_secs(1);

/// An agent at one moment. Lists are sorted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// The source has told everything, and the kernel was brought in line with it at least once.
    pub ready: bool,
    /// Not ready, and going on to announce what an agent before announced, as far as the kernel forwards it.
    pub holding: bool,
    /// How far this node has drained.
    pub drain: Drain,
    /// Whether it works, and where it says so.
    pub health: Health,
    /// How the source stands with each resource of the API server; empty with manifests.
    pub watches: Vec<Watch>,
    /// BGP peers.
    pub peers: Vec<Peer>,
    /// Monitoring stations that are told by BMP.
    pub bmp: Vec<BmpStation>,
    /// Routes learnt of peers.
    pub imported: Imported,
    /// Prefixes that are passed on between internal peers, by a route reflector.
    pub reflected: usize,
    /// Prefixes that the plan announces.
    pub announcements: Vec<Announcement>,
    /// Virtual servers that the plan has, with what the kernel holds of them.
    pub virtual_servers: Vec<VirtualServer>,
    /// What is not as planned, and why.
    pub problems: Vec<String>,
    /// What users should know about their objects and the config.
    pub warnings: Vec<String>,
}

/// Whether this node works, as `/healthz` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// No change waits for the kernel for too long.
    pub healthy: bool,
    /// The Node exists and is not about to go.
    pub node_eligible: bool,
    /// When the kernel last held everything (RFC 3339).
    pub last_updated: Option<String>,
    /// Where health and metrics are served.
    pub listeners: Vec<Listener>,
}

/// How far a node has drained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// `serving`, `leaving` (VIPs are a last resort), `emptying` (withdrawn, something is left, or that is not known yet), `drained` or
    /// `returning` (a last resort again).
    pub phase: String,
    /// Since when it is not serving (RFC 3339).
    pub since: Option<String>,
    /// Who asks for it: each has to take that back.
    pub asked_by: Vec<String>,
    /// Something is left beyond `drain.limit`.
    pub overdue: bool,
    /// Connections of clients outside the cluster that need this node still, while it empties.
    pub connections: usize,
    /// Some of them: client, protocol and virtual IP.
    pub some_connections: Vec<String>,
    /// What is not withdrawn.
    pub kept: Vec<Kept>,
}

impl Drain {
    /// In a line; `None` where nobody asks for it and nothing is left of one.
    pub fn words(&self) -> Option<String> {
        let Self { phase, since, asked_by, overdue, connections, some_connections: _, kept } = self;
        if phase == "serving" && asked_by.is_empty() {
            return None;
        }
        let mut words = phase.clone();
        words.extend(since.iter().map(|since| format!(", since {since}")));
        if !asked_by.is_empty() {
            words += &format!(", by {}", asked_by.join(" and "));
        }
        if *connections > 0 {
            words += &format!("; connections through this node: {connections}");
        }
        if !kept.is_empty() {
            let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
            words += &format!(
                "; kept as a last resort, as no other node is to announce them: {}",
                kept.join(", ")
            );
        }
        if *overdue {
            words += "; beyond drain.limit";
        }
        Some(words)
    }
}

/// A VIP that is a last resort still, as no other node is to announce it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// The prefix.
    pub prefix: String,
    /// Whose it is.
    pub service: Option<String>,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prefix, service } = self;
        match service {
            Some(service) => write!(f, "{prefix} of {service}"),
            None => f.write_str(prefix),
        }
    }
}

/// An address that health or metrics are served at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Field of the config that asks for it.
    pub name: String,
    /// Address and port.
    pub address: String,
    /// Why not is among the problems.
    pub listening: bool,
}

/// How the source stands with a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Watch {
    /// Its name as in API paths.
    pub resource: String,
    /// `listing`, `watching`, `not served` or `down`.
    pub state: String,
    /// Since when it is down (RFC 3339).
    pub since: Option<String>,
    /// Why it is down.
    pub error: Option<String>,
}

/// A BGP peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its address; with its interface, where that is link-local; and while it is not known, the interface alone or the default gateway that
    /// it is to be.
    pub address: String,
    /// Its ASN; 0 where that is the peer's to tell and it has not yet.
    pub asn: u32,
    /// The range of `router.dynamicPeers` that it has connected from.
    pub range: Option<String>,
    /// State of the session (RFC 4271 section 8.2.2).
    pub state: String,
    /// Seconds since the session was established, if it is.
    pub uptime_seconds: Option<u64>,
    /// Prefixes it has been told and not withdrawn.
    pub prefixes_sent: usize,
    /// Prefixes it announces; `None` where nothing of it is imported.
    pub prefixes_received: Option<usize>,
    /// Those of them that its import policy lets in.
    pub prefixes_accepted: Option<usize>,
    /// What ended the last session or attempt.
    pub last_error: Option<String>,
    /// BFD beside the session, where it is configured.
    pub bfd: Option<Bfd>,
}

/// BFD with a peer (RFC 5880).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bfd {
    /// This side's state.
    pub state: String,
    /// The peer's, as it last told.
    pub remote_state: String,
    /// Why it last went down.
    pub diagnostic: String,
    /// Why the peer's did, as it last told.
    pub remote_diagnostic: String,
    /// Microseconds between packets of this side.
    pub transmit_interval_us: u64,
    /// Microseconds between packets of the peer.
    pub receive_interval_us: u64,
    /// Microseconds that silence takes to be noticed.
    pub detection_time_us: u64,
    /// How often it came up.
    pub ups: u64,
    /// How often it went down, but for when an operator of either side took it down.
    pub failures: u64,
    /// Why packets cannot be sent or received.
    pub problem: Option<String>,
}

/// A monitoring station.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BmpStation {
    /// Its address and port.
    pub address: String,
    /// Seconds since it was connected, if it is.
    pub connected_seconds: Option<u64>,
    /// Bytes that wait for it.
    pub queued_bytes: usize,
    /// How often it was cut off because it did not keep up.
    pub cut_off: u64,
    /// What ended the last connection or attempt.
    pub last_error: Option<String>,
}

/// Routes learnt of peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Imported {
    /// Prefixes that some peer's import policy lets in.
    pub prefixes: usize,
    /// Those of them whose route the kernel holds, to all next hops.
    pub in_kernel: usize,
    /// Routes of sessions before that the kernel keeps until peers have told all.
    pub kept: usize,
}

/// A prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// The prefix.
    pub prefix: String,
    /// Why it is planned.
    pub kind: String,
    /// Whose it is, if a Service's.
    pub service: Option<String>,
    /// It is announced now; false while the kernel does not hold it, or where there is nobody to tell.
    pub announced: bool,
    /// The aggregate that is announced in its place.
    pub aggregate: Option<String>,
    /// The peers, and ranges of `router.dynamicPeers`, whose export policies keep it from them.
    pub withheld_from: Vec<String>,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualServer {
    /// Whose it is.
    pub service: String,
    /// Where its address came from.
    pub kind: String,
    /// Protocol, address and port.
    pub vip: String,
    /// Scheduler.
    pub scheduler: String,
    /// What the kernel has; false without destinations too.
    pub in_kernel: bool,
    /// No destination takes connections, and packets are dropped, not refused: a traffic policy keeps this node from the endpoints there are.
    pub drops: bool,
    /// Its destinations: those planned, then those that drain.
    pub destinations: Vec<Destination>,
    /// Those of clients within the cluster (this node and its pods), where they have a service of their own in the kernel.
    pub internal: Option<Vec<Destination>>,
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The endpoint's address and port.
    pub endpoint: String,
    /// Its node, where known.
    pub node: Option<String>,
    /// `tunnel`, `nat` or `masquerade`; `draining` for one that is not planned any more.
    pub forwarding: String,
    /// Weight in the kernel; `None` where the kernel does not have it.
    pub weight: Option<u32>,
    /// Connections in the kernel's count.
    pub active_connections: u32,
    /// Connections that are closing, or datagram flows.
    pub inactive_connections: u32,
}

/// A question to the agent's loop, which it answers between two changes.
#[derive(Debug)]
pub enum Question {
    /// For the status socket.
    Status(oneshot::Sender<Status>),
    /// For the status socket; why not, where there is no such target.
    Explain(Target, oneshot::Sender<Result<Explanation, String>>),
    /// For the status socket: the node is to drain (or, false, not any more, as far as that was asked for here before).
    Drain(bool, oneshot::Sender<Drain>),
    /// For the status socket: how far the node has drained, for whoever waits; costs nothing.
    Draining(oneshot::Sender<Drain>),
    /// For a scrape of metrics.
    Snapshot(oneshot::Sender<Snapshot>),
}

/// Listens on `path` and passes questions on. A socket left by an agent that was killed is replaced, and one that somebody removes is
/// made again.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(path: &Path, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let mut listener = listen(path)?;
    let path = path.to_owned();
    tokio::spawn(async move {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut missed = false;
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => drop(tokio::spawn(answer(stream, questions.clone()))),
                    Err(error) => {
                        warn!(%error, "status socket");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                // One that is another's is left alone: an agent that takes this one's place has made it.
                _ = looks.tick() => if is_gone(&path) {
                    match listen(&path) {
                        Ok(made) => {
                            warn!(path = %path.display(), "status socket: somebody removed it, made again");
                            listener = made;
                            missed = false;
                        }
                        Err(error) if !missed => {
                            warn!(path = %path.display(), %error, "status socket: somebody removed it, and it cannot be made again");
                            missed = true;
                        }
                        Err(_) => {}
                    }
                },
            }
        }
    });
    Ok(())
}

/// In one step, whatever is there: at no time is there none, or one that others may open.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

fn is_gone(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

async fn answer(mut stream: UnixStream, questions: mpsc::Sender<Question>) {
    let question = question(&mut stream).await;
    let text = match question.split_once(' ') {
        Some(("explain", target)) => match target.parse::<Target>() {
            Ok(target) => asked(&questions, |answer| Question::Explain(target, answer)).await,
            Err(error) => json(&Err::<Explanation, _>(error.to_string())),
        },
        None if question == "drain" => asked(&questions, |answer| Question::Drain(true, answer)).await,
        None if question == "draining" => asked(&questions, Question::Draining).await,
        None if question == "undrain" => asked(&questions, |answer| Question::Drain(false, answer)).await,
        _ => asked(&questions, Question::Status).await,
    };
    if let Some(text) = text {
        // Whoever asked may have gone: nothing is lost.
        let _ = stream.write_all(&text).await;
    }
}

/// The first line that is sent, if any is.
async fn question(stream: &mut UnixStream) -> String {
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(stream.take(LONGEST_QUESTION));
    let read = reader.read_line(&mut line);
    // Cut off, or not text: no question that would be understood.
    let _ = tokio::time::timeout(ASKING, read).await;
    line.trim_end().to_owned()
}

/// The loop's answer to a question; `None` if it is ending.
async fn asked<T: Serialize>(
    questions: &mpsc::Sender<Question>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Option<Vec<u8>> {
    let (sender, answer) = oneshot::channel();
    questions.send(question(sender)).await.ok()?;
    json(&answer.await.ok()?)
}

fn json(answer: &impl Serialize) -> Option<Vec<u8>> {
    serde_json::to_vec(answer).ok()
}

/// Asks the agent that listens on `path` for its status.
///
/// # Errors
/// When there is none, or its answer does not read.
pub async fn ask(path: &Path) -> io::Result<Status> {
    say(path, "status").await
}

/// Asks the agent that listens on `path` to explain a target; it may have nothing of that kind, and says so.
///
/// # Errors
/// As [`ask`].
pub async fn explain(path: &Path, target: &Target) -> io::Result<Result<Explanation, String>> {
    say(path, &format!("explain {target}")).await
}

/// Has the agent that listens on `path` drain its node, or end that.
///
/// # Errors
/// As [`ask`].
pub async fn drain(path: &Path, asked: bool) -> io::Result<Drain> {
    say(path, if asked { "drain" } else { "undrain" }).await
}

/// How far the node of the agent that listens on `path` has drained.
///
/// # Errors
/// As [`ask`].
pub async fn draining(path: &Path) -> io::Result<Drain> {
    say(path, "draining").await
}

async fn say<T: serde::de::DeserializeOwned>(path: &Path, question: &str) -> io::Result<T> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("{question}\n").as_bytes()).await?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await?;
    if text.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the agent is shutting down"));
    }
    serde_json::from_slice(&text).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// Answers with the target's own words.
    async fn echo(mut questions: mpsc::Receiver<Question>) {
        while let Some(question) = questions.recv().await {
            if let Question::Explain(target, asker) = question {
                let _ = asker.send(Err(target.to_string()));
            }
        }
    }

    async fn answers(path: &Path) -> bool {
        let target: Target = "default/web".parse().unwrap();
        explain(path, &target).await.is_ok_and(|answer| answer == Err("default/web".into()))
    }

    #[tokio::test]
    async fn a_socket_that_somebody_removes_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/status.sock");
        let (sender, questions) = mpsc::channel(1);
        tokio::spawn(echo(questions));
        // What an agent that was killed left.
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        serve(&path, sender).unwrap();
        assert!(answers(&path).await);

        type Remove = fn(&Path) -> io::Result<()>;
        let removals: [(&str, Remove); 2] = [
            ("the socket", |path| std::fs::remove_file(path)),
            ("its directory", |path| std::fs::remove_dir_all(path.parent().unwrap())),
        ];
        for (what, remove) in removals {
            remove(&path).unwrap();
            assert!(!answers(&path).await, "{what}");
            let back = tokio::time::timeout(10 * LOOK, async {
                while !answers(&path).await {
                    tokio::time::sleep(LOOK / 20).await;
                }
            });
            assert!(back.await.is_ok(), "{what}");
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "{what}");
        }

        let others = directory.path().join("others");
        let _other = UnixListener::bind(&others).unwrap();
        std::fs::rename(&others, &path).unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        tokio::time::sleep(LOOK * 5 / 2).await;
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode, "another agent's is left alone");
    }
}
