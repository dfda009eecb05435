//! What this node announces, kept in a file, so that a start without a source can go on announcing it.
//!
//! ```text
//! {"node":{…}}                         this Node's object: its addresses, and its annotations that name peers
//! {"announce":{"prefix":…,…}}          one line per change: what a change costs does not depend on what there is
//! {"withdraw":"192.0.2.80/32"}
//! ```
//!
//! The last line about a thing counts. A line that was cut off when the agent was killed is the end of the file; one that does not
//! read is left out. The file is rewritten without what is outdated at the start, and when it has grown much longer than it need be. It
//! lies in the state directory and ends with the boot, as the kernel state does that it speaks of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::cluster::Node;
use crate::plan::Announcement;

/// Its name in the state directory.
const FILE: &str = "announced";

/// How many outdated lines are left in before the file is rewritten, beside as many as there are lines in force.
const SLACK: usize = 1000;

/// What was announced when the agent before ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// This node's Node object.
    pub node: Option<Node>,
    /// By prefix.
    pub announcements: BTreeMap<IpNet, Announcement>,
}

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line<N, A> {
    Node(N),
    Announce(A),
    Withdraw(IpNet),
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
                // Cut off, or of another version: the others still count.
                Err(_) => {}
            }
        }
        Ok(saved)
    }

    fn lines(&self) -> impl Iterator<Item = Line<&Node, &Announcement>> {
        let node = self.node.iter().map(Line::Node);
        node.chain(self.announcements.values().map(Line::Announce))
    }
}

/// The file. What cannot be written is warned of once, and costs no more than what the file is for.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Option<File>,
    /// As noted last.
    node: Option<Node>,
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
            node: None,
            left: BTreeSet::new(),
            lines: 0,
            in_force: 0,
        };
        let saved = match Saved::read(&journal.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                journal.warn("read", &error);
                Saved::default()
            }
            read => read.unwrap_or_default(),
        };
        journal.rewrite(&saved);
        journal.node.clone_from(&saved.node);
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

    /// Notes prefixes that are about to be announced, or have been withdrawn (`None`); `in_force` are announced from now on.
    pub fn announce<'a>(
        &mut self,
        changes: impl Iterator<Item = (IpNet, Option<&'a Announcement>)>,
        in_force: usize,
    ) {
        self.in_force = in_force + 1;
        let mut left = std::mem::take(&mut self.left);
        self.append(changes.map(|(prefix, announcement)| {
            left.remove(&prefix);
            match announcement {
                Some(announcement) => Line::Announce(announcement),
                None => Line::Withdraw(prefix),
            }
        }));
        self.left = left;
        if self.file.is_some() && self.lines > 2 * self.in_force + SLACK {
            match Saved::read(&self.path) {
                Ok(saved) => self.rewrite(&saved),
                Err(error) => self.warn("read", &error),
            }
        }
    }

    /// What the agent before announced and this one has not, it will not announce.
    pub fn settle(&mut self) {
        let left = std::mem::take(&mut self.left);
        self.append(left.into_iter().map(Line::Withdraw));
    }

    fn append<'a>(&mut self, lines: impl Iterator<Item = Line<&'a Node, &'a Announcement>>) {
        let Some(file) = &mut self.file else { return };
        match write(file, lines) {
            Ok(count) => self.lines += count,
            Err(error) => self.warn("write", &error),
        }
    }

    fn rewrite(&mut self, saved: &Saved) {
        let draft = self.path.with_extension("draft");
        // Annotations of a Node may hold a password (kube-router's do).
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
                self.lines = lines;
                self.in_force = lines;
            }
            Err(error) => self.warn("write", &error),
        }
    }

    fn warn(&mut self, what: &str, error: &io::Error) {
        self.file = None;
        warn!(
            "{what} {}: {error}; a start without the API server will not know what was announced: mend it and restart the agent",
            self.path.display()
        );
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
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::cluster::Annotations;
    use crate::plan::AnnouncementKind;

    fn node() -> Node {
        Node {
            name: "node-a".into(),
            annotations: Annotations::from([("sheave.io/asn".into(), "64512".into())]),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            pod_cidrs: Vec::new(),
            zone: None,
            deleting: false,
            to_be_deleted: false,
        }
    }

    fn announcement(prefix: IpNet) -> Announcement {
        Announcement {
            prefix,
            kind: AnnouncementKind::LoadBalancerIP,
            service: None,
            communities: BTreeSet::from([1]),
            large_communities: BTreeSet::from([(1, 2, 3)]),
            local_pref: Some(100),
            med: None,
            as_path_prepend: 2,
        }
    }

    fn prefix(number: u8) -> IpNet {
        format!("192.0.2.{number}/32").parse().unwrap()
    }

    fn saved(prefixes: &[u8]) -> Saved {
        let announcements = prefixes.iter().map(|number| (prefix(*number), announcement(prefix(*number))));
        Saved { node: Some(node()), announcements: announcements.collect() }
    }

    fn change(journal: &mut Journal, number: u8, announced: bool, in_force: usize) {
        let wanted = announcement(prefix(number));
        journal.announce([(prefix(number), announced.then_some(&wanted))].into_iter(), in_force);
    }

    #[test]
    fn what_was_noted_is_there_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, before) = Journal::open(directory.path());
        assert_eq!(before, Saved::default());
        journal.node(&node());
        change(&mut journal, 1, true, 1);
        change(&mut journal, 2, true, 2);
        change(&mut journal, 1, false, 1);
        for _ in 0..2 {
            assert_eq!(Journal::open(directory.path()).1, saved(&[2]));
        }
        let mode = fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_not_announced_again_is_dropped_once_that_is_settled() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(directory.path());
        journal.node(&node());
        for number in 1..=3 {
            change(&mut journal, number, true, number.into());
        }
        let (mut journal, before) = Journal::open(directory.path());
        assert_eq!(before, saved(&[1, 2, 3]));
        change(&mut journal, 2, true, 1);
        assert_eq!(Journal::open(directory.path()).1, saved(&[1, 2, 3]));
        let (mut journal, _) = Journal::open(directory.path());
        change(&mut journal, 2, true, 1);
        journal.settle();
        assert_eq!(Journal::open(directory.path()).1, saved(&[2]));
    }

    #[test]
    fn lines_that_do_not_read_are_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(directory.path());
        journal.node(&node());
        change(&mut journal, 1, true, 1);
        let path = directory.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap();
        for end in first + 1..whole.len() - 1 {
            fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(Saved::read(&path).unwrap(), saved(&[]), "cut off after {end} bytes");
        }
        fs::write(&path, [&b"{\"of\":\"tomorrow\"}\n\xff\n"[..], &whole].concat()).unwrap();
        assert_eq!(Saved::read(&path).unwrap(), saved(&[1]));
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(directory.path());
        journal.node(&node());
        change(&mut journal, 1, true, 1);
        for _ in 0..2000 {
            change(&mut journal, 2, true, 2);
            change(&mut journal, 2, false, 1);
        }
        assert!(journal.lines < 2 * SLACK, "{} lines", journal.lines);
        assert_eq!(Journal::open(directory.path()).1, saved(&[1]));
    }

    #[test]
    fn a_directory_that_cannot_be_written_stops_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, before) = Journal::open(&directory.path().join("absent"));
        journal.node(&node());
        change(&mut journal, 1, true, 1);
        assert_eq!(before, Saved::default());
    }
}
