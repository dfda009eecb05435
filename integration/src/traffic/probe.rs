//! How long the network is silent: datagrams at a steady pace, which nobody repeats.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use sheave::cluster::Protocol;

use super::Request;
use crate::netns::NetNs;

/// Flows, each over a way of its own.
const FLOWS: usize = 8;
/// Between two datagrams of a flow.
const PACE: Duration = Duration::from_millis(25);
/// Between two looks for answers.
const LOOK: Duration = Duration::from_millis(5);

/// Flows of datagrams to a virtual server that run until it is stopped.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<io::Result<Duration>>>>,
}

impl Probe {
    /// Starts them.
    pub fn start(from: &NetNs, address: IpAddr, port: u16) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let request = Request::new(Protocol::Udp, address, port);
        let stopped = Arc::clone(&stop);
        Ok(Self { stop, thread: Some(from.thread(move || run(&request, &stopped))?) })
    }

    /// Ends them; the longest time that one of the flows went without an answer.
    pub fn stop(mut self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a probe without a thread")?;
        thread.join().map_err(|_| anyhow!("a probe panicked"))??.context("probe")
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(request: &Request, stop: &AtomicBool) -> io::Result<Duration> {
    let mut flows = Vec::new();
    for _ in 0..FLOWS {
        let socket: UdpSocket = request.connect()?.into();
        socket.set_nonblocking(true)?;
        flows.push((socket, Instant::now()));
    }
    let mut longest = Duration::ZERO;
    let mut next = Instant::now();
    let mut buffer = [0; 256];
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() >= next {
            next = Instant::now() + PACE;
            for (socket, _) in &flows {
                // A refusal tells of an outage, and so does the silence that it is counted as.
                let _ = socket.send(b"who\n");
            }
        }
        std::thread::sleep(LOOK);
        for (socket, heard) in &mut flows {
            while socket.recv(&mut buffer).is_ok() {
                longest = longest.max(heard.elapsed());
                *heard = Instant::now();
            }
        }
    }
    Ok(flows.iter().map(|(_, heard)| heard.elapsed()).fold(longest, Duration::max))
}
