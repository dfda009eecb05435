//! Passwords of sessions and keys of BFD, read where the config says, and again, so that a change takes effect by itself.
//!
//! ```text
//! Announcer ──sources──► a task each: files every FILES, Secrets every SECRETS ──Readings──► Announcer
//! ```
//!
//! A password that cannot be read any more stays in force as it was read last, also by the agent before (of Secrets: files
//! are there at a start), and so does the one of a peer whose source has changed. One that never could be read keeps its
//! peer's session from being set up: never is a session made without the password that was asked for. So it is with keys: there is no BFD
//! without that which signs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use rustix::fs::{Mode, OFlags};
use sheave_bgp::Password;
use sheave_bgp::bfd::Key;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::config::{Bfd, DynamicPeer, PasswordSource, Peer, Router, SecretKey};

/// How often files are looked at.
const FILES: Duration = Duration::from_secs(2);
/// How often Secrets are asked for: nobody watches them, since that takes the permission to list.
const SECRETS: Duration = Duration::from_secs(60);
/// How soon one that could not be had is asked for again.
const SECRETS_AGAIN: Duration = Duration::from_secs(5);
/// How long the API server, or a file system, has for one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// More than any password has.
const LONGEST_FILE: u64 = 1024;

/// What has been read so far of each source that is wanted.
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
    /// Whether it is another than before. What comes of a source that is not wanted any more is dropped.
    fn update(&mut self, source: &PasswordSource, result: Result<Password, String>) -> bool {
        let Some(reading) = self.0.get_mut(source) else { return false };
        let new = match result {
            Ok(password) => Reading { password: Some(password), problem: None },
            Err(problem) => Reading { password: reading.password.clone(), problem: Some(problem) },
        };
        let changed = *reading != new;
        *reading = new;
        changed
    }

    fn of(&self, who: &str, peer: &Peer, before: Option<&Password>) -> Resolved {
        let Some(source) = peer.password_source() else {
            return Resolved { password: Ok(peer.password.clone()), problem: None };
        };
        let reading = self.0.get(&source);
        let read = reading.and_then(|reading| reading.password.as_ref());
        let password = read.or(before).cloned().ok_or(Missing);
        let problem = reading.and_then(|reading| reading.problem.as_ref()).map(|problem| match password {
            Ok(_) => {
                let which = if read.is_some() { "the one read last" } else { "the one before" };
                format!("{who}: password of {source}: {problem}; {which} stays in force")
            }
            Err(Missing) => format!("{who}: no session without its password: {source}: {problem}"),
        });
        Resolved { password: password.map(Some), problem }
    }

    fn keys_of(&self, who: &str, bfd: &Bfd, before: &[Key]) -> ResolvedKeys {
        let mut found = Vec::new();
        let mut wrong = Vec::new();
        for key in &bfd.keys {
            let reading = self.0.get(&key.source);
            let problem = reading.and_then(|reading| reading.problem.clone());
            let read = reading.and_then(|reading| reading.password.as_ref());
            let usable = read.map(|password| {
                Key::new(key.algorithm, key.id, password.as_bytes()).map_err(|e| e.to_string())
            });
            let (usable, problem) = match usable {
                Some(Ok(usable)) => (
                    Some(usable),
                    problem.map(|problem| format!("{problem}; as read last it stays in force")),
                ),
                Some(Err(unusable)) => (None, Some(format!("{unusable}: take another"))),
                None => (None, problem),
            };
            let (id, source) = (key.id, &key.source);
            wrong.extend(problem.map(|problem| format!("{who}: BFD key {id} of {source}: {problem}")));
            found.push(usable);
        }
        // Without the first nothing can be signed; those that are only taken may come later.
        let (keys, consequence) = match found.first() {
            Some(None) if before.is_empty() => (Err(Missing), "; no BFD without it"),
            Some(None) => (Ok(before.to_vec()), "; the keys before stay in force"),
            _ => (Ok(found.into_iter().flatten().collect()), ""),
        };
        wrong.iter_mut().for_each(|problem| problem.push_str(consequence));
        ResolvedKeys { keys, problems: wrong }
    }
}

/// There is no password yet, or no key.
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

/// What BFD with a peer is to sign with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResolvedKeys {
    /// Empty: nothing is signed, as none is asked for.
    pub(super) keys: Result<Vec<Key>, Missing>,
    /// What the user should know: peer, source and remedy.
    pub(super) problems: Vec<String>,
}

/// The passwords of all peers.
#[derive(Debug)]
pub(super) struct Passwords {
    runtime: Handle,
    secrets: Option<Api<Secret>>,
    /// Of Secrets, as the agent before read them; until it is known which are wanted.
    saved: BTreeMap<SecretKey, Password>,
    /// One for each source that is wanted.
    tasks: BTreeMap<PasswordSource, Task>,
    readings: watch::Sender<Readings>,
    /// As far as they have been heard of.
    heard: watch::Receiver<Readings>,
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Passwords {
    /// Reads on `runtime`; `client` is who is asked for Secrets, of which `saved` holds until they have been read.
    pub(super) fn new(
        runtime: Handle,
        client: Option<kube::Client>,
        saved: BTreeMap<SecretKey, Password>,
    ) -> Self {
        let (readings, heard) = watch::channel(Readings::default());
        let secrets = client.map(Api::default_namespaced);
        Self { runtime, secrets, saved, tasks: BTreeMap::new(), readings, heard }
    }

    /// Has those that its peers ask for read from now on, and the others forgotten.
    pub(super) fn want(&mut self, router: &Router) {
        let peers = router.peers.iter().flat_map(Peer::sources);
        let dynamic = router.dynamic_peers.iter().map(DynamicPeer::template);
        let dynamic = dynamic.flat_map(|template| template.sources().collect::<Vec<_>>());
        let sources: BTreeSet<_> = peers.chain(dynamic).collect();
        let mut saved = std::mem::take(&mut self.saved);
        self.tasks.retain(|source, _| sources.contains(source));
        self.readings.send_modify(|Readings(readings)| {
            readings.retain(|source, _| sources.contains(source));
            for source in &sources {
                readings.entry(source.clone()).or_insert_with(|| Reading {
                    password: match source {
                        PasswordSource::File(_) => None,
                        PasswordSource::Secret(key) => saved.remove(key),
                    },
                    problem: None,
                });
            }
        });
        for source in sources {
            self.tasks.entry(source).or_insert_with_key(|source| {
                let (readings, source) = (self.readings.clone(), source.clone());
                let task = self.runtime.spawn(follow(source, self.secrets.clone(), readings));
                Task(task.abort_handle())
            });
        }
    }

    /// Whether something has been read that [`Passwords::of`] was not asked for since.
    pub(super) fn changed(&mut self) -> bool {
        let changed = self.heard.has_changed().unwrap_or(false);
        if changed {
            self.heard.mark_unchanged();
        }
        changed
    }

    /// The password of a peer, which problems call `who`; `before` is what its session has now.
    pub(super) fn of(&self, who: &str, peer: &Peer, before: Option<&Password>) -> Resolved {
        self.readings.borrow().of(who, peer, before)
    }

    /// The keys of BFD with a peer; `before` are those it has now.
    pub(super) fn keys(&self, who: &str, bfd: &Bfd, before: &[Key]) -> ResolvedKeys {
        self.readings.borrow().keys_of(who, bfd, before)
    }

    /// What was read last of a source.
    pub(super) fn read(&self, source: &PasswordSource) -> Option<Password> {
        self.readings.borrow().0.get(source)?.password.clone()
    }
}

/// Reads one source again and again. None waits for another: a file system or the API server may take its time.
async fn follow(source: PasswordSource, secrets: Option<Api<Secret>>, readings: watch::Sender<Readings>) {
    let tell = |result| {
        readings.send_if_modified(|readings| readings.update(&source, result));
    };
    loop {
        let pause = match &source {
            PasswordSource::File(path) => {
                tell(file(path.clone(), &tell).await);
                FILES
            }
            PasswordSource::Secret(key) => {
                let result = secret(secrets.as_ref(), key).await;
                let pause = if result.is_ok() { SECRETS } else { SECRETS_AGAIN };
                tell(result);
                pause
            }
        };
        sleep(pause).await;
    }
}

/// However long that takes, but not without telling.
async fn file(path: PathBuf, tell: impl Fn(Result<Password, String>)) -> Result<Password, String> {
    let mut reading = tokio::task::spawn_blocking(move || read_file(&path));
    let read = match timeout(LIMIT, &mut reading).await {
        Ok(read) => read,
        Err(_) => {
            tell(Err(format!("no answer from its file system for {LIMIT:?}")));
            reading.await
        }
    };
    let bytes = read.map_err(|error| error.to_string())?;
    let bytes = bytes.map_err(|error| format!("{error}; give the path of a readable file"))?;
    password(bytes)
}

/// Does not wait for a writer, as opening or reading a FIFO would.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

async fn secret(
    secrets: Option<&Api<Secret>>,
    SecretKey { name, key }: &SecretKey,
) -> Result<Password, String> {
    let Some(secrets) = secrets else {
        return Err("there is no API server to ask: use passwordFile".into());
    };
    let answer = timeout(LIMIT, secrets.get_opt(name)).await;
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
        let before = password_of("correct horse").ok();
        assert_eq!(
            readings.of("peer 192.0.2.1", &peer, before.as_ref()),
            Resolved { password: Ok(None), problem: None }
        );
        peer.password = good.clone();
        assert_eq!(readings.of("peer 192.0.2.1", &peer, before.as_ref()).password, Ok(good.clone()));
        peer.password = None;

        let key = SecretKey { name: "sheave-bgp".into(), key: "password".into() };
        peer.password_secret = Some(key.clone());
        let source = PasswordSource::Secret(key);
        assert!(!readings.update(&source, password_of("hunter2")), "not wanted");
        readings.0.insert(source.clone(), Reading::default());
        assert_eq!(
            readings.of("peer 192.0.2.1", &peer, None),
            Resolved { password: Err(Missing), problem: None },
            "not read yet"
        );
        assert_eq!(
            readings.of("peer 192.0.2.1", &peer, before.as_ref()),
            Resolved { password: Ok(before.clone()), problem: None }
        );

        assert!(readings.update(&source, Err("there is none: create it".into())));
        assert!(!readings.update(&source, Err("there is none: create it".into())), "as before");
        let problem = "peer 192.0.2.1: no session without its password: Secret sheave-bgp (key password): there is none: \
                       create it";
        assert_eq!(
            readings.of("peer 192.0.2.1", &peer, None),
            Resolved { password: Err(Missing), problem: Some(problem.into()) }
        );
        let problem = "peer 192.0.2.1: password of Secret sheave-bgp (key password): there is none: create it; the one \
                       before stays in force";
        assert_eq!(
            readings.of("peer 192.0.2.1", &peer, before.as_ref()),
            Resolved { password: Ok(before.clone()), problem: Some(problem.into()) }
        );

        readings.update(&source, password_of("hunter2"));
        let resolved = Resolved { password: Ok(good.clone()), problem: None };
        assert_eq!(readings.of("peer 192.0.2.1", &peer, before.as_ref()), resolved);

        readings.update(&source, Err("no answer".into()));
        let resolved = readings.of("peer 192.0.2.1", &peer, before.as_ref());
        assert_eq!(resolved.password, Ok(good), "the last good one");
        assert!(
            resolved.problem.is_some_and(|problem| problem.ends_with("the one read last stays in force"))
        );
        assert!(!format!("{readings:?}").contains("hunter2"));
    }

    #[test]
    fn no_bfd_without_the_key_that_signs() {
        use sheave_bgp::bfd::Algorithm;

        use crate::config::BfdKey;

        let source = |name: &str| PasswordSource::File(format!("/keys/{name}").into());
        let key = |id, name| BfdKey { id, algorithm: Algorithm::MeticulousSha1, source: source(name) };
        let of = |id, secret: &str| Key::new(Algorithm::MeticulousSha1, id, secret.as_bytes()).unwrap();
        let mut readings = Readings::default();
        for (name, result) in [
            ("good", password_of("hunter2")),
            ("other", password_of("correct horse")),
            ("long", password_of("a key of more than twenty bytes")),
            ("gone", Err("there is none: create it".into())),
        ] {
            readings.0.insert(source(name), Reading::default());
            readings.update(&source(name), result);
        }
        readings.0.insert(source("unread"), Reading::default());
        let gone = "peer 192.0.2.1: BFD key 2 of file /keys/gone: there is none: create it";
        let long = "peer 192.0.2.1: BFD key 2 of file /keys/long: a key for MeticulousSha1 has 1 to 20 bytes, this one has 31: take \
                    another";
        let before = [of(9, "before")];
        for (keys, before, expected, problem) in [
            (vec![], &before[..], Some(vec![]), None),
            (vec![key(1, "good")], &[], Some(vec![of(1, "hunter2")]), None),
            (
                vec![key(2, "other"), key(1, "good")],
                &[],
                Some(vec![of(2, "correct horse"), of(1, "hunter2")]),
                None,
            ),
            (vec![key(1, "unread")], &[], None, None),
            (vec![key(1, "unread")], &before, Some(before.to_vec()), None),
            (vec![key(2, "gone")], &[], None, Some(format!("{gone}; no BFD without it"))),
            (
                vec![key(2, "gone")],
                &before,
                Some(before.to_vec()),
                Some(format!("{gone}; the keys before stay in force")),
            ),
            (vec![key(1, "good"), key(2, "gone")], &before, Some(vec![of(1, "hunter2")]), Some(gone.into())),
            (vec![key(2, "long")], &[], None, Some(format!("{long}; no BFD without it"))),
            (vec![key(1, "good"), key(2, "long")], &[], Some(vec![of(1, "hunter2")]), Some(long.into())),
        ] {
            let bfd = Bfd { keys, ..Bfd::default() };
            let resolved = readings.keys_of("peer 192.0.2.1", &bfd, before);
            assert_eq!(resolved.keys.ok(), expected, "{:?}", bfd.keys);
            assert_eq!(resolved.problems, Vec::from_iter(problem), "{:?}", bfd.keys);
        }
        readings.update(&source("good"), Err("no answer".into()));
        let bfd = Bfd { keys: vec![key(1, "good")], ..Bfd::default() };
        let resolved = readings.keys_of("peer 192.0.2.1", &bfd, &[]);
        assert_eq!(resolved.keys, Ok(vec![of(1, "hunter2")]), "the last good one");
        assert!(resolved.problems[0].ends_with("no answer; as read last it stays in force"));
        assert!(!format!("{resolved:?}").contains("hunter2"));
    }

    /// With a writer that says nothing, opening and reading it would wait for ever.
    #[test]
    fn a_file_that_is_none_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let pipe = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader)));
        let directory = directory.path().to_owned();
        for path in [fifo, pipe, directory, "/dev/zero".into()] {
            let (done, result) = std::sync::mpsc::channel();
            let of = path.clone();
            std::thread::spawn(move || done.send(read_file(&of).unwrap_err().to_string()));
            let error = result.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!(error, "it is not a regular file", "{}", path.display());
        }
    }
}
