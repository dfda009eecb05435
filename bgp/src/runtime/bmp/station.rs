//! A station's task: connects, tells everything there is, then what happens; again and again.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, sleep, timeout};

use super::super::shared::{Shared, lock};
use super::{BmpTables, Subscription};
use crate::bmp;
use crate::session::{Backoff, Jitter};

/// How long a connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// How long a connection may be silent before the kernel asks whether the station is there.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long the last messages may take.
const CLOSE_TIME: Duration = Duration::from_secs(1);
/// Pauses between attempts. RFC 7854 §3.2 suggests from 30 s to 12 min, for routers with full tables.
const RETRY: Backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(120) };
/// What the kernel holds of a connection's output: what does not fit there shows in our queue.
const SEND_BUFFER: usize = 256 * 1024;

/// A monitoring station.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BmpStation {
    /// Its address; of two with one address and port the last counts.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// What this speaker is called there (sysName).
    pub name: String,
    /// What this speaker is (sysDescr).
    pub description: String,
    /// Bytes that may wait for it; beyond, it is cut off, and told everything anew when it is back.
    pub queue: usize,
    /// How often numbers are reported; zero is never.
    pub statistics: Duration,
    /// What it is told of.
    pub tables: BmpTables,
}

/// A station at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BmpStationStatus {
    /// Where it is.
    pub address: SocketAddr,
    /// Since when it has been connected, if it is.
    pub connected: Option<SystemTime>,
    /// What ended the last connection or attempt, and when.
    pub last_error: Option<(SystemTime, String)>,
    /// Bytes that wait for it.
    pub queued: usize,
    /// Totals since it was configured.
    pub counters: BmpCounters,
}

/// Totals of a station.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BmpCounters {
    /// How often it was connected.
    pub connections: u64,
    /// How often it was cut off because it did not keep up.
    pub cut_off: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
}

/// The tasks of stations.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Stations(BTreeMap<SocketAddr, Station>);

/// A station's task, seen from outside.
#[derive(Debug)]
struct Station {
    config: BmpStation,
    seen: Arc<Mutex<Seen>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What a station's task lets others see.
#[derive(Debug)]
struct Seen {
    status: BmpStationStatus,
    /// How much waits in the queue of the connection, or waited in that of the last.
    queued: Arc<AtomicUsize>,
}

impl Stations {
    /// Makes `stations` the stations; one whose configuration is the same keeps its connection.
    pub(in crate::runtime) fn set(&mut self, stations: Vec<BmpStation>, shared: &Arc<Shared>, on: &Handle) {
        let mut before = std::mem::take(&mut self.0);
        for config in stations {
            let address = SocketAddr::new(config.address, config.port);
            let station = match before.remove(&address) {
                Some(same) if same.config == config => same,
                // Dropping the old one ends it.
                _ => Station::spawn(config, Arc::clone(shared), on),
            };
            self.0.insert(address, station);
        }
    }

    pub(in crate::runtime) fn status(&self) -> Vec<BmpStationStatus> {
        let status = |station: &Station| {
            let seen = lock(&station.seen);
            BmpStationStatus { queued: seen.queued.load(Ordering::Relaxed), ..seen.status.clone() }
        };
        self.0.values().map(status).collect()
    }

    /// Ends all of them; their tasks say goodbye.
    pub(in crate::runtime) fn stop(&mut self) -> Vec<JoinHandle<()>> {
        let all = std::mem::take(&mut self.0).into_values();
        all.map(|Station { stop, task, .. }| {
            // A task that has ended needs no telling.
            let _ = stop.send(true);
            task
        })
        .collect()
    }
}

impl Station {
    fn spawn(config: BmpStation, shared: Arc<Shared>, on: &Handle) -> Station {
        let (stop, stopped) = watch::channel(false);
        let status = BmpStationStatus {
            address: SocketAddr::new(config.address, config.port),
            connected: None,
            last_error: None,
            queued: 0,
            counters: BmpCounters::default(),
        };
        let seen = Arc::new(Mutex::new(Seen { status, queued: Arc::default() }));
        let task = StationTask { config: config.clone(), shared, seen: Arc::clone(&seen), stopped };
        Station { config, seen, stop, task: on.spawn(task.run()) }
    }
}

/// The task of one station.
struct StationTask {
    config: BmpStation,
    shared: Arc<Shared>,
    seen: Arc<Mutex<Seen>>,
    /// Ends the task; so does dropping the sender.
    stopped: watch::Receiver<bool>,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("stopped")]
    Stopped,
    #[error("did not keep up: {0} bytes were waiting")]
    CutOff(usize),
    #[error("connection closed")]
    Closed,
    #[error("could not connect: {0}")]
    Connect(io::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StationTask {
    async fn run(mut self) {
        let mut jitter = Jitter::seeded(RandomState::new().build_hasher().finish());
        let mut pause = RETRY.initial;
        loop {
            let began = Instant::now();
            let end = match self.connect().await {
                Ok(stream) => self.tell(stream).await,
                Err(end) => end,
            };
            if let End::Stopped = end {
                return;
            }
            self.ended(&end);
            if began.elapsed() >= RETRY.max {
                pause = RETRY.initial;
            }
            tokio::select! {
                () = stop(&mut self.stopped) => return,
                () = sleep(jitter.shorten(pause)) => {}
            }
            pause = (pause * 2).min(RETRY.max);
        }
    }

    fn ended(&self, end: &End) {
        let mut seen = lock(&self.seen);
        seen.queued = Arc::default();
        let status = &mut seen.status;
        let reason = end.to_string();
        let station = status.address;
        if status.connected.is_none()
            && status.last_error.as_ref().is_some_and(|(_, before)| *before == reason)
        {
            tracing::debug!(%station, "monitoring station: {reason}");
        } else {
            tracing::warn!(%station, "monitoring station: {reason}");
        }
        status.counters.cut_off += u64::from(matches!(end, End::CutOff(_)));
        status.connected = None;
        status.last_error = Some((SystemTime::now(), reason));
    }

    async fn connect(&mut self) -> Result<TcpStream, End> {
        let address = SocketAddr::new(self.config.address, self.config.port);
        let stream = tokio::select! {
            () = stop(&mut self.stopped) => return Err(End::Stopped),
            connected = timeout(CONNECT_TIME, TcpStream::connect(address)) => match connected {
                Ok(connected) => connected.map_err(End::Connect)?,
                Err(_) => return Err(End::Connect(io::ErrorKind::TimedOut.into())),
            },
        };
        let socket = SockRef::from(&stream);
        socket.set_send_buffer_size(SEND_BUFFER)?;
        // A station that is gone without a word would not be missed while there is nothing to tell.
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        let status = &mut lock(&self.seen).status;
        tracing::info!(station = %address, "monitoring station connected");
        status.connected = Some(SystemTime::now());
        status.counters.connections += 1;
        Ok(stream)
    }

    /// Tells what there is, then what happens, until something ends that.
    async fn tell(&mut self, stream: TcpStream) -> End {
        let (mut input, mut output) = stream.into_split();
        let (snapshot, Subscription { mut queue, queued, mut cut }) = {
            let mut learnt = self.shared.learnt();
            let rib = self.shared.rib();
            let StationTask { config: BmpStation { tables, queue, .. }, shared, .. } = &*self;
            shared.monitor.subscribe(&rib, &mut learnt, *tables, *queue)
        };
        // Peers may have to be asked for what they announce.
        self.shared.changed.send_replace(());
        lock(&self.seen).queued = Arc::clone(&queued);
        let mut stopped = self.stopped.clone();
        let telling = async {
            let mut first = Vec::new();
            bmp::initiation(&self.config.name, &self.config.description, &mut first);
            self.write(&mut output, &first).await?;
            for messages in self.shared.monitor.messages(&snapshot) {
                self.write(&mut output, &messages).await?;
            }
            drop(snapshot);
            self.follow(&mut output, &mut queue, &queued).await
        };
        tokio::select! {
            ended = telling => ended.unwrap_or_else(End::Io),
            _ = &mut cut => End::CutOff(queued.load(Ordering::Relaxed)),
            () = closed(&mut input) => End::Closed,
            // For a station that does not read: others say goodbye by themselves.
            () = async { stop(&mut stopped).await; sleep(CLOSE_TIME).await } => End::Stopped,
        }
    }

    /// Tells what happens, and in the end that this is the end.
    async fn follow(
        &self,
        output: &mut OwnedWriteHalf,
        queue: &mut mpsc::UnboundedReceiver<Arc<[u8]>>,
        queued: &AtomicUsize,
    ) -> io::Result<End> {
        let mut stopped = self.stopped.clone();
        let reports = !self.config.statistics.is_zero();
        let mut reports_due = tokio::time::interval(self.config.statistics.max(Duration::from_secs(1)));
        reports_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop(&mut stopped) => break,
                Some(messages) = queue.recv() => {
                    self.write(output, &messages).await?;
                    queued.fetch_sub(messages.len(), Ordering::Relaxed);
                }
                _ = reports_due.tick(), if reports => {
                    let mut messages = Vec::new();
                    {
                        let (learnt, rib) = (self.shared.learnt(), self.shared.rib());
                        self.shared.monitor.statistics(&rib, &learnt, self.config.tables, &mut messages);
                    }
                    self.write(output, &messages).await?;
                }
            }
        }
        // What has happened until now: sessions that are over.
        while let Ok(messages) = queue.try_recv() {
            self.write(output, &messages).await?;
        }
        let mut last = Vec::new();
        bmp::termination(&mut last);
        self.write(output, &last).await?;
        output.shutdown().await?;
        Ok(End::Stopped)
    }

    async fn write(&self, output: &mut OwnedWriteHalf, messages: &[u8]) -> io::Result<()> {
        output.write_all(messages).await?;
        lock(&self.seen).status.counters.bytes_sent += messages.len() as u64;
        Ok(())
    }
}

/// Waits until told to stop, or nobody is left who could tell.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Waits until the station closes the connection. It has nothing to say.
async fn closed(input: &mut OwnedReadHalf) {
    let mut ignored = [0; 1024];
    while input.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}
