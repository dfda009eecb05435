//! Watches a directory of manifests.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, iter};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::sync::mpsc::UnboundedSender;

use super::Manifests;
use crate::cluster::{Event, Place, Problem, Severity};

/// Files are changed in several steps: quiet for this long means it is done.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Someone who writes without pause must not put off the scan for ever.
const MAX_DEBOUNCES: usize = 5;
/// How soon a watch that nobody listens to any more ends, and a directory that was gone is looked for again.
const IDLE: Duration = Duration::from_secs(1);

/// Starts a thread that tells what the directory says, first all of it, then every change. It ends when the
/// receiver is gone.
///
/// # Errors
/// If the directory cannot be read or watched at the start, or no thread can be started. Later failures are told
/// as [`Event::Problems`] and retried.
pub fn watch(mut manifests: Manifests, events: UnboundedSender<Vec<Event>>) -> io::Result<JoinHandle<()>> {
    // Watched before it is read: a change in between is seen twice rather than never.
    let watched = Watch::new(manifests.directory())?;
    let first = manifests.scan()?;
    thread::Builder::new().name("manifests".into()).spawn(move || {
        if events.send(first).is_ok() {
            follow(&mut manifests, watched, &events);
        }
    })
}

fn follow(manifests: &mut Manifests, watched: Watch, events: &UnboundedSender<Vec<Event>>) {
    let mut watched = Some(watched);
    let mut failed = false;
    while !events.is_closed() {
        let changed = match &mut watched {
            Some(watch) => watch.changed(),
            None => {
                thread::sleep(IDLE);
                Watch::new(manifests.directory()).map(|watch| {
                    watched = Some(watch);
                    true
                })
            }
        };
        let result = match changed {
            Ok(false) => continue,
            Ok(true) => match &watched {
                Some(watch) => manifests.scan_except(&watch.in_writing),
                None => manifests.scan(),
            },
            Err(error) => Err(error),
        };
        let told = match result {
            Ok(told) => {
                // A scan tells problems only if they changed; those of the directory are not among them.
                let standing =
                    iter::repeat_n(Event::Problems(manifests.problems.clone()), usize::from(failed));
                failed = false;
                standing.chain(told).collect()
            }
            Err(error) => {
                watched = None;
                if failed {
                    continue;
                }
                failed = true;
                let problem = Problem {
                    place: Place::File { path: manifests.directory().into(), line: None },
                    field: String::new(),
                    message: format!("{error}; what was read before stays in force"),
                    severity: Severity::Error,
                };
                vec![Event::Problems(vec![problem])]
            }
        };
        if !told.is_empty() && events.send(told).is_err() {
            return;
        }
    }
}

/// An inotify instance on one directory.
struct Watch {
    fd: OwnedFd,
    /// Files that were written to and not closed yet: half of a file may look like a whole one.
    in_writing: HashSet<OsString>,
}

impl Watch {
    fn new(directory: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::CLOSE_WRITE
            | WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, directory, changes)?;
        Ok(Self { fd, in_writing: HashSet::new() })
    }

    /// Waits for a change and then until it is quiet, or for [`IDLE`]. Returns whether anything changed.
    fn changed(&mut self) -> io::Result<bool> {
        if !self.wait(IDLE)? {
            return Ok(false);
        }
        for _ in 0..MAX_DEBOUNCES {
            self.drain()?;
            if !self.wait(DEBOUNCE)? {
                break;
            }
        }
        Ok(true)
    }

    fn wait(&self, time: Duration) -> io::Result<bool> {
        // Both waits are far below what a Timespec holds.
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&time)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what is there; what exactly changed, the scan finds out.
    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.fd.as_fd(), &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let what = event.events();
            if what.intersects(ReadFlags::IGNORED | ReadFlags::MOVE_SELF) {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the directory is gone"));
            }
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                self.in_writing.clear();
            }
            if let Some(name) = event.file_name() {
                let name = OsStr::from_bytes(name.to_bytes());
                if what.contains(ReadFlags::MODIFY) {
                    self.in_writing.insert(name.to_owned());
                } else if !what.contains(ReadFlags::ATTRIB) {
                    self.in_writing.remove(name);
                }
            }
        }
    }
}
