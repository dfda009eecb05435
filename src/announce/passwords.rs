//! Passwords of sessions, read where the config says, and again, so that a change takes effect by itself.
//!
//! ```text
//! Announcer ──sources──► task: files every FILES, Secrets every SECRETS ──Readings──► Announcer
//! ```
//!
//! A password that cannot be read any more stays in force as it was read last. One that never could be read keeps its
//! peer's session from being set up: never is a session made without the password that was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use sheave_bgp::Password;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::config::{PasswordSource, Peer, SecretKey};

/// How often files are looked at.
const FILES: Duration = Duration::from_secs(2);
/// How often Secrets are asked for: nobody watches them, since that takes the permission to list.
const SECRETS: Duration = Duration::from_secs(60);
/// How soon one that could not be had is asked for again.
const SECRETS_AGAIN: Duration = Duration::from_secs(5);
/// How long the API server has for one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// More than any password has.
const LONGEST_FILE: u64 = 1024;

/// What has been read so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Readings(BTreeMap<PasswordSource, Reading>);

/// Of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reading {
    /// As of the last time that it could be read.
    password: Option<Password>,
    /// Why it could not be read the last time, and what to do.
    problem: Option<String>,
}

impl Readings {
    fn update(&mut self, source: PasswordSource, result: Result<Password, String>) {
        let reading = self.0.entry(source).or_default();
        match result {
            Ok(password) => *reading = Reading { password: Some(password), problem: None },
            Err(problem) => reading.problem = Some(problem),
        }
    }

    fn of(&self, peer: &Peer) -> Resolved {
        let address = peer.address;
        let Some(source) = peer.password_source() else {
            return Resolved { password: Ok(peer.password.clone()), problem: None };
        };
        match self.0.get(&source) {
            Some(Reading { password: Some(password), problem }) => Resolved {
                password: Ok(Some(password.clone())),
                problem: problem.as_ref().map(|problem| {
                    format!(
                        "peer {address}: password of {source}: {problem}; the one read last stays in force"
                    )
                }),
            },
            Some(Reading { password: None, problem }) => Resolved {
                password: Err(Missing),
                problem: problem.as_ref().map(|problem| {
                    format!("peer {address}: no session without its password: {source}: {problem}")
                }),
            },
            None => Resolved { password: Err(Missing), problem: None },
        }
    }
}

/// There is no password yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missing;

/// What a peer's session is to be made with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// `Ok(None)`: none is asked for.
    pub(super) password: Result<Option<Password>, Missing>,
    /// What the user should know: peer, source and remedy.
    pub(super) problem: Option<String>,
}

/// The passwords of all peers.
#[derive(Debug)]
pub(super) struct Passwords {
    wanted: watch::Sender<BTreeSet<PasswordSource>>,
    readings: watch::Receiver<Readings>,
}

impl Passwords {
    /// Reads on `runtime`; `client` is who is asked for Secrets.
    pub(super) fn start(runtime: &Handle, client: Option<kube::Client>) -> Self {
        let (wanted, sources) = watch::channel(BTreeSet::new());
        let (sender, readings) = watch::channel(Readings::default());
        let secrets = client.map(Api::default_namespaced);
        runtime.spawn(read(sources, sender, secrets));
        Self { wanted, readings }
    }

    /// Has those that `peers` ask for read from now on, and the others forgotten.
    pub(super) fn want(&self, peers: &[Peer]) {
        let sources: BTreeSet<_> = peers.iter().filter_map(Peer::password_source).collect();
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != sources;
            *wanted = sources;
            changed
        });
    }

    /// Whether something has been read that [`Passwords::of`] was not asked for since.
    pub(super) fn changed(&mut self) -> bool {
        let changed = self.readings.has_changed().unwrap_or(false);
        if changed {
            self.readings.mark_unchanged();
        }
        changed
    }

    /// The password of a peer.
    pub(super) fn of(&self, peer: &Peer) -> Resolved {
        self.readings.borrow().of(peer)
    }
}

/// The task that reads. Ends with its [`Passwords`].
async fn read(
    mut wanted: watch::Receiver<BTreeSet<PasswordSource>>,
    readings: watch::Sender<Readings>,
    secrets: Option<Api<Secret>>,
) {
    // When each is to be read next.
    let mut due: BTreeMap<PasswordSource, Instant> = BTreeMap::new();
    loop {
        let sources = wanted.borrow_and_update().clone();
        due.retain(|source, _| sources.contains(source));
        readings.send_if_modified(|readings| {
            let before = readings.0.len();
            readings.0.retain(|source, _| sources.contains(source));
            readings.0.len() != before
        });
        for source in sources {
            let now = Instant::now();
            if due.get(&source).is_some_and(|due| *due > now) {
                continue;
            }
            let (result, pause) = match &source {
                PasswordSource::File(path) => (file(path.clone()).await, FILES),
                PasswordSource::Secret(key) => {
                    let result = secret(secrets.as_ref(), key).await;
                    let pause = if result.is_ok() { SECRETS } else { SECRETS_AGAIN };
                    (result, pause)
                }
            };
            due.insert(source.clone(), Instant::now() + pause);
            readings.send_if_modified(|readings| {
                let before = readings.0.get(&source).cloned();
                readings.update(source.clone(), result);
                readings.0.get(&source) != before.as_ref()
            });
        }
        let next = due.values().min().copied();
        let changed = tokio::select! {
            changed = wanted.changed() => changed,
            () = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            } => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn file(path: PathBuf) -> Result<Password, String> {
    // A file system may take its time.
    let read = tokio::task::spawn_blocking(move || read_file(&path)).await;
    let bytes = read.map_err(|error| error.to_string())?;
    let bytes = bytes.map_err(|error| format!("{error}; give the path of a readable file"))?;
    password(bytes)
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

async fn secret(
    secrets: Option<&Api<Secret>>,
    SecretKey { name, key }: &SecretKey,
) -> Result<Password, String> {
    let Some(secrets) = secrets else {
        return Err("there is no API server to ask: use passwordFile".into());
    };
    let answer = tokio::time::timeout(LIMIT, secrets.get_opt(name)).await;
    let answer = answer.map_err(|_| format!("no answer from the API server for {LIMIT:?}"))?;
    let secret = answer.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("{}; allow the agent to get this Secret by name", status.message)
        }
        other => other.to_string(),
    })?;
    let mut data = secret.ok_or("there is no such Secret in the agent's namespace: create it")?.data;
    let value = data.as_mut().and_then(|data| data.remove(key));
    password(value.ok_or("the Secret has no such key: add it")?.0)
}

/// One line end is an editor's, and not part of it.
fn password(mut bytes: Vec<u8>) -> Result<Password, String> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Password::new(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password_of(text: &str) -> Result<Password, String> {
        password(text.into())
    }

    #[test]
    fn one_line_end_is_not_part_of_it() {
        let plain = password_of("hunter2").ok();
        assert!(plain.is_some());
        assert_eq!(password_of("hunter2\n").ok(), plain);
        for (text, good) in [("hunter2\n\n", true), (" hunter2", true), ("", false), ("\n", false)] {
            let other = password_of(text).ok();
            assert_eq!(other.is_some(), good, "{text:?}");
            assert_ne!(other, plain, "{text:?}");
        }
        assert_eq!(
            password_of(&"x".repeat(81)).err().as_deref(),
            Some("a password has 1 to 80 bytes, this one has 81")
        );
    }

    #[test]
    fn no_session_without_the_password_that_is_asked_for() {
        let mut peer = Peer::new([192, 0, 2, 1].into(), 65001);
        let mut readings = Readings::default();
        let good = password_of("hunter2").ok();
        assert_eq!(readings.of(&peer), Resolved { password: Ok(None), problem: None });
        peer.password = good.clone();
        assert_eq!(readings.of(&peer).password, Ok(good.clone()));
        peer.password = None;

        let key = SecretKey { name: "sheave-bgp".into(), key: "password".into() };
        peer.password_secret = Some(key.clone());
        let source = PasswordSource::Secret(key);
        assert_eq!(readings.of(&peer), Resolved { password: Err(Missing), problem: None }, "not read yet");

        readings.update(source.clone(), Err("there is none: create it".into()));
        let problem = "peer 192.0.2.1: no session without its password: Secret sheave-bgp (key password): there is none: \
                       create it";
        assert_eq!(readings.of(&peer), Resolved { password: Err(Missing), problem: Some(problem.into()) });

        readings.update(source.clone(), password_of("hunter2"));
        assert_eq!(readings.of(&peer), Resolved { password: Ok(good.clone()), problem: None });

        readings.update(source, Err("no answer".into()));
        let resolved = readings.of(&peer);
        assert_eq!(resolved.password, Ok(good), "the last good one");
        assert!(resolved.problem.is_some_and(|problem| problem.ends_with("stays in force")));
        assert!(!format!("{readings:?}").contains("hunter2"));
    }
}
