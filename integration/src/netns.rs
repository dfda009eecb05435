//! Network namespaces: entered by threads made for that, never by a thread that goes on to do something else.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{self, Daemon};

/// A named network namespace (`/run/netns/NAME`). A clone is another handle on the same one.
#[derive(Clone, Debug)]
pub struct NetNs {
    name: Arc<str>,
    file: Arc<File>,
}

impl NetNs {
    /// Opens a namespace that `ip netns add` has made.
    pub fn open(name: &str) -> Result<Self> {
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).with_context(|| format!("open({path})"))?;
        Ok(Self { name: name.into(), file: Arc::new(file) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn join(&self) -> Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("setns({})", self.name))
    }

    /// Runs `work` on a thread inside the namespace. A socket made there stays there when it is handed out.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| self.join().map(|()| work()))
                .join()
                .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Starts a thread inside the namespace.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let namespace = self.clone();
        thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(move || namespace.join().map(|()| work()))
            .context("cannot start a thread")
    }

    /// Runs a command line (split at white space) inside the namespace and returns what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        self.run_with_input(line, "")
    }

    /// The same with text on its standard input.
    pub fn run_with_input(&self, line: &str, input: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().context("empty command line")?);
        command.args(words);
        self.enter(|| process::run(command, input))?.with_context(|| format!("in namespace {}", self.name))
    }

    /// Starts a long-running program inside the namespace; its output is appended to `log`.
    pub fn daemon(&self, command: Command, log: &Path) -> Result<Daemon> {
        self.enter(|| Daemon::start(&self.name, command, log))?
    }

    /// Runs lines of `ip -batch` inside the namespace.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.run_with_input("ip -batch -", lines).map(drop)
    }

    /// Reads a file of the namespace's own: of `/proc/thread-self/net` or `/proc/sys/net`.
    pub fn read(&self, path: &str) -> Result<String> {
        self.enter(|| std::fs::read_to_string(path))?
            .with_context(|| format!("read({path}) in namespace {}", self.name))
    }

    /// Sets sysctls, by their dotted names below `net`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/net/{}", name.replace('.', "/"));
                std::fs::write(&path, value).with_context(|| format!("write({path}, {value})"))?;
            }
            Ok(())
        })?
    }
}
