//! `sheave drain` and `sheave undrain`: take this node out of the way of traffic, and back.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::{failed, print};
use crate::observe::status;

/// Take this node out of the way of traffic, so that no client notices
///
/// Asks the local agent, which goes step by step:
///
///   leaving    virtual IPs are announced with the community GRACEFUL_SHUTDOWN (RFC 8326; LOCAL_PREF 0 within the AS): routers
///              that heed it move to other nodes now. So for drain.wait, 5 s by default
///   emptying   they are withdrawn; BGP sessions stay up. All routers use other nodes, which send the packets of each
///              established connection to the endpoint that has it. What still comes is forwarded
///   drained    no connection of a client outside the cluster comes through this node any more
///
/// Pods of this node serve on: their endpoints stay in use by way of other nodes, and routes to pods stay announced. To empty
/// the node of pods too, run `kubectl drain` after this.
///
/// A virtual IP that no other node is to announce is kept as a last resort until one is. The drain outlasts restarts of the
/// agent, not a reboot of the node; `sheave undrain` ends it. The Node's annotation `sheave.io/drain: "true"` does the same and
/// outlasts both.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Examples:
  sheave drain --wait                       before work on the node; then: kubectl drain node-a --ignore-daemonsets
  sheave drain --wait --timeout 90s         in a unit or hook that must not hold up a shutdown for longer
  kubectl -n sheave exec POD -- sheave drain --wait

Exit codes: 0 asked for (with --wait: drained); 1 no agent answers, or with --wait: something is left beyond drain.limit or
after --timeout, as printed, and the drain goes on; 2 usage."
)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
}

/// Take this node back into service after `sheave drain`
///
/// Once the kernel holds all that is planned, virtual IPs are announced with the community GRACEFUL_SHUTDOWN for drain.wait, then
/// without. What the Node's annotation or a taint asks for stays in force until that is taken away.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  sheave undrain --wait

Exit codes: 0 asked for (with --wait: the node serves); 1 no agent answers, or with --wait: it does not serve after --timeout, or
something else asks for the drain; 2 usage.")]
pub(super) struct UndrainArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Wait for the end, and print each step
    #[arg(long)]
    wait: bool,

    /// With --wait: how long at most, such as 90s; without it as long as the agent takes
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,

    /// The agent's status socket (`observe.status` in its config)
    #[arg(long, value_name = "PATH", default_value = "/run/sheave/status.sock")]
    socket: PathBuf,
}

/// How often the agent is asked.
const ASK: Duration = Duration::from_millis(500);
/// How long an agent may be away in between: it may be restarted, and goes on then.
const AWAY: Duration = Duration::from_secs(60);

/// Runs `sheave drain`.
pub(super) fn run(Args { common }: Args) -> ExitCode {
    order(true, &common)
}

/// Runs `sheave undrain`.
pub(super) fn run_undrain(UndrainArgs { common }: UndrainArgs) -> ExitCode {
    order(false, &common)
}

/// What a drain is like, seen by whoever waits for its end.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    Done,
    GoesOn,
    /// It will not end by itself, or not soon.
    Stuck(String),
}

fn order(asked: bool, Common { wait, timeout, socket }: &Common) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("runtime: {error}")),
    };
    match runtime.block_on(order_and_wait(asked, *wait, *timeout, socket)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn order_and_wait(
    asked: bool,
    wait: bool,
    timeout: Option<Duration>,
    socket: &Path,
) -> Result<(), String> {
    let start = Instant::now();
    let limit = timeout.map(|timeout| (start, timeout));
    let drain = within(rest(limit), status::drain(socket, asked)).await;
    let drain = drain.map_err(|error| unanswered(socket, &error))?;
    let line = say(&drain)?;
    if wait { await_end(asked, socket, limit, drain, line).await } else { Ok(()) }
}

/// How long it may be waited for an answer.
fn rest(limit: Option<(Instant, Duration)>) -> Duration {
    limit.map_or(AWAY, |(start, timeout)| timeout.saturating_sub(start.elapsed()).min(AWAY))
}

/// Asks on and on, and prints what changes; until so long after that moment, if there is a limit.
async fn await_end(
    asked: bool,
    socket: &Path,
    limit: Option<(Instant, Duration)>,
    mut drain: status::Drain,
    mut line: String,
) -> Result<(), String> {
    let mut answered = Instant::now();
    loop {
        match judge(asked, &drain) {
            Wait::Done => return Ok(()),
            Wait::Stuck(why) => return Err(why),
            Wait::GoesOn => {}
        }
        if let Some((_, timeout)) = limit.filter(|_| rest(limit).is_zero()) {
            let timeout = humantime::format_duration(timeout);
            return Err(format!("not within {timeout}: {}", left(&drain)));
        }
        tokio::time::sleep(ASK.min(rest(limit))).await;
        match within(rest(limit), status::draining(socket)).await {
            Ok(told) => {
                drain = told;
                answered = Instant::now();
                if words(&drain) != line {
                    line = say(&drain)?;
                }
            }
            Err(error) if answered.elapsed() > AWAY => return Err(unanswered(socket, &error)),
            Err(_) => {}
        }
    }
}

/// An agent that is there may not answer either: it was stopped, or waits for its kernel.
async fn within<T>(time: Duration, answer: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(time, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            let why = format!("no answer within {:.1} s", time.as_secs_f64());
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        }
    }
}

fn judge(asked: bool, drain: &status::Drain) -> Wait {
    match (asked, &*drain.phase) {
        (true, "drained") | (false, "serving") => Wait::Done,
        (true, _) if drain.asked_by.is_empty() => Wait::Stuck("somebody ended the drain".into()),
        (true, _) if drain.overdue => {
            Wait::Stuck(format!("beyond drain.limit: {}; the drain goes on", left(drain)))
        }
        (false, _) if !drain.asked_by.is_empty() => Wait::Stuck(format!(
            "the node drains on, as {} asks: take that away",
            drain.asked_by.join(" and ")
        )),
        _ => Wait::GoesOn,
    }
}

/// What is left of a drain that has not come to its end.
fn left(drain: &status::Drain) -> String {
    let some = drain.some_connections.iter().map(|connection| format!("\n  {connection}"));
    let more = drain.connections.saturating_sub(drain.some_connections.len());
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    some.fold(words(drain), |text, line| text + &line) + &more
}

fn words(drain: &status::Drain) -> String {
    drain.words().unwrap_or_else(|| drain.phase.clone())
}

fn say(drain: &status::Drain) -> Result<String, String> {
    let line = words(drain);
    print(&format!("{line}\n")).map_err(|error| error.to_string())?;
    Ok(line)
}

fn unanswered(socket: &Path, error: &io::Error) -> String {
    format!("{}: {error}; is the agent running, and is this its `observe.status`?", socket.display())
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;

    use super::*;
    use crate::observe::status::Question;

    fn emptying() -> status::Drain {
        status::Drain {
            phase: "emptying".into(),
            since: None,
            asked_by: vec!["command `sheave drain`".into()],
            overdue: false,
            connections: 0,
            some_connections: Vec::new(),
            kept: Vec::new(),
        }
    }

    #[tokio::test]
    async fn the_order_is_given_once_and_then_asked_how_far_the_drain_is() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("status.sock");
        let (sender, mut questions) = mpsc::channel(1);
        status::serve(&socket, sender).unwrap();
        let agent = tokio::spawn(async move {
            let mut asked = Vec::new();
            while let Some(question) = questions.recv().await {
                match question {
                    Question::Drain(true, asker) => {
                        asked.push("drain");
                        asker.send(emptying()).unwrap();
                    }
                    Question::Draining(asker) => {
                        asked.push("draining");
                        let drained = asked.len() > 3;
                        let phase = if drained { "drained" } else { "emptying" };
                        asker.send(status::Drain { phase: phase.into(), ..emptying() }).unwrap();
                        if drained {
                            break;
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
            asked
        });
        let timeout = Some(Duration::from_secs(60));
        assert_eq!(order_and_wait(true, true, timeout, &socket).await, Ok(()));
        assert_eq!(agent.await.unwrap(), ["drain", "draining", "draining", "draining"]);
    }

    #[tokio::test]
    async fn the_timeout_holds_where_the_agent_does_not_answer() {
        let directory = tempfile::tempdir().unwrap();
        let timeout = Some(Duration::from_millis(700));
        // One that takes no connection up, and one that takes the order alone.
        let silent = directory.path().join("silent.sock");
        let _listener = UnixListener::bind(&silent).unwrap();
        let ordered = directory.path().join("ordered.sock");
        let (sender, mut questions) = mpsc::channel(1);
        status::serve(&ordered, sender).unwrap();
        let _agent = tokio::spawn(async move {
            let mut waiting = Vec::new();
            while let Some(question) = questions.recv().await {
                match question {
                    Question::Drain(_, asker) => asker.send(emptying()).unwrap(),
                    other => waiting.push(other),
                }
            }
        });
        for (socket, expected) in [(silent, "no answer within 0."), (ordered, "not within 700ms: emptying")] {
            let waiting = order_and_wait(true, true, timeout, &socket);
            let ended = tokio::time::timeout(Duration::from_secs(20), waiting).await;
            let error = ended.expect("the timeout holds").unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn when_the_wait_is_over() {
        let by = "command `sheave drain`";
        for (asked, phase, asked_by, overdue, expected) in [
            (true, "leaving", &[by][..], false, Ok(false)),
            (true, "emptying", &[by], false, Ok(false)),
            (true, "emptying", &[by], true, Err("beyond drain.limit")),
            (true, "drained", &[by], false, Ok(true)),
            (true, "returning", &[], false, Err("somebody ended")),
            (true, "serving", &[], false, Err("somebody ended")),
            (false, "drained", &[], false, Ok(false)),
            (false, "returning", &[], false, Ok(false)),
            (false, "serving", &[], false, Ok(true)),
            (
                false,
                "drained",
                &["annotation sheave.io/drain"],
                false,
                Err("as annotation sheave.io/drain asks"),
            ),
        ] {
            let asked_by = asked_by.iter().copied().map(str::to_owned).collect();
            let drain = status::Drain { phase: phase.into(), asked_by, overdue, ..emptying() };
            let judged = match judge(asked, &drain) {
                Wait::Done => Ok(true),
                Wait::GoesOn => Ok(false),
                Wait::Stuck(why) => Err(why),
            };
            match (&judged, expected) {
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
                (judged, expected) => assert_eq!(judged.as_ref().ok(), expected.as_ref().ok(), "{drain:?}"),
            }
        }
    }

    #[test]
    fn what_is_left_is_named() {
        let drain = status::Drain {
            phase: "emptying".into(),
            since: Some("2026-11-20T16:00:00Z".into()),
            asked_by: vec!["command `sheave drain`".into()],
            overdue: true,
            connections: 3,
            some_connections: vec!["203.0.113.7:40000 → TCP 10.0.0.11:30080".into()],
            kept: vec![status::Kept { prefix: "192.0.2.80/32".into(), service: Some("default/web".into()) }],
        };
        assert_eq!(
            left(&drain),
            "emptying, since 2026-11-20T16:00:00Z, by command `sheave drain`; connections through this node: 3; kept as a last \
             resort, as no other node is to announce them: 192.0.2.80/32 of default/web; beyond drain.limit\n  \
             203.0.113.7:40000 → TCP 10.0.0.11:30080\n  and 2 more"
        );
    }
}
