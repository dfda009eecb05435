//! What this node announces, kept in a file, so that a start without a source can go on announcing it.
//!
//! ```text
//! {"node":{…}}                         this Node's object: its addresses, and its annotations that name peers
//! {"announce":{"prefix":…,…}}          one line per change: what a change costs does not depend on what there is
//! {"withdraw":"192.0.2.80/32"}
//! {"password":{"name":…,"key":…,…}}    as read last from a Secret that a peer asks for
//! ```
//!
//! The last line about a thing counts. A line that was cut off when the agent was killed is the end of the file; one that does not
//! read is left out. The file is rewritten without what is outdated at the start, when it has grown much longer than it need be,
//! and when a password is to be forgotten. It lies in the state directory and ends with the boot, as the kernel state does that it
//! speaks of.
//!
//! What the file says is true or there is no file: if a change cannot be noted, it is removed, and written anew as soon as that
//! works.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sheave_bgp::Password;
use tracing::{info, warn};

use crate::cluster::Node;
use crate::config::SecretKey;
use crate::plan::Announcement;

/// Its name in the state directory.
const FILE: &str = "announced";

/// How many outdated lines are left in before the file is rewritten, beside as many as there are lines in force.
const SLACK: usize = 1000;

/// How soon a file that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(15);

/// What was announced when the agent before ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// This node's Node object.
    pub node: Option<Node>,
    /// By prefix.
    pub announcements: BTreeMap<IpNet, Announcement>,
    /// Of the Secrets that peers ask for.
    pub passwords: BTreeMap<SecretKey, Password>,
}

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line<N, A> {
    Node(N),
    Announce(A),
    Withdraw(IpNet),
    Password(WrittenPassword),
}

/// `name` and `key` of the Secret. Without `Debug`, since it is readable.
#[derive(Serialize, Deserialize)]
struct WrittenPassword {
    name: String,
    key: String,
    base64: String,
}

impl WrittenPassword {
    fn new(SecretKey { name, key }: &SecretKey, password: &Password) -> Self {
        Self { name: name.clone(), key: key.clone(), base64: STANDARD.encode(password.as_bytes()) }
    }

    fn read(self) -> Option<(SecretKey, Password)> {
        let Self { name, key, base64 } = self;
        let password = Password::new(STANDARD.decode(base64).ok()?).ok()?;
        Some((SecretKey { name, key }, password))
    }
}

impl Saved {
    fn read(path: &Path) -> io::Result<Self> {
        let mut saved = Self::default();
        for line in BufReader::new(File::open(path)?).split(b'\n') {
            match serde_json::from_slice(&line?) {
                Ok(Line::Node(node)) => saved.node = Some(node),
                Ok(Line::Announce(announcement)) => {
                    let announcement: Announcement = announcement;
                    saved.announcements.insert(announcement.prefix, announcement);
                }
                Ok(Line::Withdraw(prefix)) => drop(saved.announcements.remove(&prefix)),
                Ok(Line::Password(written)) => saved.passwords.extend(written.read()),
                // Cut off, or of another version: the others still count.
                Err(_) => {}
            }
        }
        Ok(saved)
    }

    fn lines(&self) -> impl Iterator<Item = Line<&Node, &Announcement>> {
        let node = self.node.iter().map(Line::Node);
        let passwords = self.passwords.iter();
        let passwords = passwords.map(|(key, password)| Line::Password(WrittenPassword::new(key, password)));
        node.chain(passwords).chain(self.announcements.values().map(Line::Announce))
    }
}

/// The file. What cannot be written is warned of, and costs no more than what the file is for.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// `None`: it could not be written.
    file: Option<File>,
    /// It does not say, or no more, what is announced.
    outdated: bool,
    /// When it was tried to be written last, while that does not work.
    tried: Instant,
    /// As noted last.
    node: Option<Node>,
    /// As noted last.
    passwords: BTreeMap<SecretKey, Password>,
    /// What the agent before announced, and this one has not said anything of yet.
    left: BTreeSet<IpNet>,
    /// In the file.
    lines: usize,
    /// The lines there would be if it was rewritten.
    in_force: usize,
}

impl Journal {
    /// Opens the file in `directory`, and gives what it says.
    pub fn open(directory: &Path) -> (Self, Saved) {
        let mut journal = Self {
            path: directory.join(FILE),
            file: None,
            outdated: false,
            tried: Instant::now(),
            node: None,
            passwords: BTreeMap::new(),
            left: BTreeSet::new(),
            lines: 0,
            in_force: 0,
        };
        let saved = match Saved::read(&journal.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!("read {}: {error}; what was announced before is not known", journal.path.display());
                Saved::default()
            }
            read => read.unwrap_or_default(),
        };
        if let Err(error) = journal.rewrite(&saved) {
            journal.fail(&error);
        }
        journal.node.clone_from(&saved.node);
        journal.passwords.clone_from(&saved.passwords);
        journal.left = saved.announcements.keys().copied().collect();
        (journal, saved)
    }

    /// Notes this node's Node object.
    pub fn node(&mut self, node: &Node) {
        if self.node.as_ref() != Some(node) {
            self.node = Some(node.clone());
            self.append([Line::Node(node)].into_iter());
        }
    }

    /// The passwords of Secrets as noted last.
    pub(super) fn passwords(&self) -> &BTreeMap<SecretKey, Password> {
        &self.passwords
    }

    /// Notes the passwords of the Secrets that peers ask for; others are forgotten.
    pub(super) fn passwords_are(&mut self, passwords: BTreeMap<SecretKey, Password>) {
        if self.passwords == passwords {
            return;
        }
        let before = std::mem::replace(&mut self.passwords, passwords.clone());
        let stays = |(key, password)| passwords.get(key) == Some(password);
        if before.iter().all(stays) {
            let new = passwords.iter().filter(|(key, _)| !before.contains_key(*key));
            return self
                .append(new.map(|(key, password)| Line::Password(WrittenPassword::new(key, password))));
        }
        // An old password lies about no longer than it need.
        let rewritten = match &self.file {
            Some(_) => Saved::read(&self.path).and_then(|saved| self.rewrite(&Saved { passwords, ..saved })),
            None => return self.remove(),
        };
        if let Err(error) = rewritten {
            self.fail(&error);
            self.remove();
        }
    }

    /// Notes prefixes that are about to be announced, or have been withdrawn (`None`); `in_force` are announced from now on.
    pub fn announce<'a>(
        &mut self,
        changes: impl Iterator<Item = (IpNet, Option<&'a Announcement>)>,
        in_force: usize,
    ) {
        self.in_force = in_force + 1;
        let changes: Vec<_> = changes.collect();
        for (prefix, _) in &changes {
            self.left.remove(prefix);
        }
        self.append(changes.into_iter().map(|(prefix, announcement)| match announcement {
            Some(announcement) => Line::Announce(announcement),
            None => Line::Withdraw(prefix),
        }));
        if self.file.is_some() && self.lines > 2 * self.in_force + SLACK {
            let rewritten = Saved::read(&self.path).and_then(|saved| self.rewrite(&saved));
            if let Err(error) = rewritten {
                self.fail(&error);
            }
        }
    }

    /// Tries again to write what could not be written; `announced` is all that is announced now.
    pub(super) fn mend<'a>(&mut self, now: Instant, announced: impl Iterator<Item = &'a Announcement>) {
        if self.file.is_some() || now < self.tried + AGAIN {
            return;
        }
        self.tried = now;
        let saved = if self.outdated {
            Saved {
                node: self.node.clone(),
                announcements: announced.map(|announced| (announced.prefix, announced.clone())).collect(),
                passwords: self.passwords.clone(),
            }
        } else {
            // Nothing was to be noted since: it is as it was.
            Saved::read(&self.path).unwrap_or_default()
        };
        // Why it does not work has been told.
        if self.rewrite(&saved).is_ok() {
            info!("{} is written again", self.path.display());
        }
    }

    /// What the agent before announced and this one has not, it will not announce.
    pub fn settle(&mut self) {
        let left = std::mem::take(&mut self.left);
        self.append(left.into_iter().map(Line::Withdraw));
    }

    fn append<'a>(&mut self, lines: impl Iterator<Item = Line<&'a Node, &'a Announcement>>) {
        let mut lines = lines.peekable();
        if lines.peek().is_none() {
            return;
        }
        match self.file.as_mut().map(|file| write(file, lines)) {
            Some(Ok(count)) => self.lines += count,
            Some(Err(error)) => {
                self.fail(&error);
                self.remove();
            }
            None => self.remove(),
        }
    }

    fn rewrite(&mut self, saved: &Saved) -> io::Result<()> {
        let draft = self.path.with_extension("draft");
        // It may hold passwords, and so may annotations of a Node (kube-router's do).
        let rewritten =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft).and_then(
                |mut file| {
                    let lines = write(&mut file, saved.lines())?;
                    fs::rename(&draft, &self.path)?;
                    Ok((file, lines))
                },
            );
        match rewritten {
            Ok((file, lines)) => {
                self.file = Some(file);
                self.outdated = false;
                self.lines = lines;
                self.in_force = lines;
                Ok(())
            }
            Err(error) => {
                // It takes space, where that may be what lacks. That it was never made is as good.
                let _ = fs::remove_file(draft);
                Err(error)
            }
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.file = None;
        self.tried = Instant::now();
        warn!(
            "write {}: {error}; tried again every {AGAIN:?}: until then a start without the API server will not know of \
             changes",
            self.path.display()
        );
    }

    /// Has the file say nothing rather than what is no longer so: takes no space.
    fn remove(&mut self) {
        if std::mem::replace(&mut self.outdated, true) {
            return;
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => warn!(
                "{} cannot be removed either: {error}; a start without the API server would announce what it says: \
                 remove it",
                self.path.display()
            ),
            _ => warn!(
                "{} is removed: a start without the API server would announce nothing",
                self.path.display()
            ),
        }
    }
}

fn write<'a>(
    file: &mut File,
    lines: impl Iterator<Item = Line<&'a Node, &'a Announcement>>,
) -> io::Result<usize> {
    let mut out = BufWriter::new(file);
    let mut count = 0;
    for line in lines {
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
        count += 1;
    }
    out.flush()?;
    Ok(count)
}

/// Removes the file.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(directory: &Path) -> io::Result<bool> {
    match fs::remove_file(directory.join(FILE)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
