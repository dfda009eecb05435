//! Programs the lab runs: one-off commands with a limit, and long-running ones that end with their handle.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How long a one-off command may take; generous, since emulation is slow.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Runs `command` with `input` on its standard input and returns what it printed; an exit code other than 0 is an error
/// that tells what it said.
pub fn run(mut command: Command, input: &str) -> Result<String> {
    let line = describe(&command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{line}: cannot start"))?;
    let mut stdin = child.stdin.take();
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let (output, errors, status) = thread::scope(|scope| -> Result<(String, String, ExitStatus)> {
        let writer = scope.spawn(move || stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes())));
        let output = scope.spawn(move || read_all(stdout.as_mut()));
        let errors = scope.spawn(move || read_all(stderr.as_mut()));
        let status = wait(&mut child, COMMAND_LIMIT);
        if status.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = writer.join();
        Ok((output.join().unwrap_or_default(), errors.join().unwrap_or_default(), status?))
    })
    .with_context(|| line.clone())?;
    ensure!(status.success(), "{line}: {status}\n{}{}", errors.trim_end(), output.trim_end());
    Ok(output)
}

fn read_all(pipe: Option<&mut impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What could be read is kept: an error ends the output like the end of the stream does.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits until the child has ended, at most `limit`.
fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let pid = pid_of(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("did not end within {limit:?}");
        }
        let timeout = Timespec::try_from(left)?;
        // An interrupted poll is only a reason to look again.
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

/// A program that runs until its handle is dropped; what it prints goes to a file.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, appending its output to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file =
            File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let errors = file.try_clone()?;
        let line = describe(&command);
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("{line}: cannot start"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of its log, if it is no longer running.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}):\n{}", self.name, self.log_tail(30));
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits for that; an error if it does not within `limit`, or ends with a failure.
    pub fn terminate(mut self, limit: Duration) -> Result<()> {
        self.ensure_running()?;
        kill_process(pid_of(&self.child), Signal::TERM)?;
        let status = wait(&mut self.child, limit).with_context(|| format!("{}: SIGTERM", self.name))?;
        ensure!(status.success(), "{}: after SIGTERM: {status}\n{}", self.name, self.log_tail(30));
        Ok(())
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(self) {
        drop(self);
    }

    /// The last lines of what it printed.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already gone is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a file; says so if it cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("{}: {error}", path.display()),
    }
}
