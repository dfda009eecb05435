//! Monitoring stations (BMP): what happens to sessions and tables, handed to a queue for each station.
//!
//! ```text
//!   Speaker, PeerTask ── under the RIB's lock ──► Monitor ──► queue, bounded ──► station task ──► TCP
//!                                                    │ full: the station is cut off
//!                                    on connection:  └─ Snapshot of it all, of the same moment
//! ```
//!
//! Nothing here waits: a station that does not keep up is cut off, comes back after a pause, and is told everything
//! anew. What is told is told in the order in which it happened, since all of it is handed over under the lock of the
//! RIB (taken first), and so is a snapshot taken; but for what is only passed on (`learnt`), which is in no snapshot.

mod learnt;
mod opens;
mod snapshot;
mod station;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::shared::lock;
use crate::bmp::{self, Peer, PeerDown, PeerUp, View};
use crate::rib::{Learnt, Rib, Route};
use crate::session::{Down, Negotiated};
use crate::wire::pack::Announcement;
use crate::wire::{
    AsPath, Capability, Context, HEADER_LENGTH, Message, Nlri, Open, Origin, PathAttributes, frame,
};
use crate::{Families, Family};
pub(super) use opens::Opens;
pub(super) use station::Stations;
pub use station::{BmpCounters, BmpStation, BmpStationStatus};

/// How tables are encoded that no session has: Loc-RIB.
const LOC_RIB: Context =
    Context { four_octet_asn: true, ibgp: true, extended_messages: false, add_path: Families::NONE };

/// Type of an UPDATE, in its header.
const UPDATE: u8 = 2;

/// What stations are told, and the queues of those that are connected.
#[derive(Debug)]
pub(super) struct Monitor {
    asn: u32,
    router_id: Ipv4Addr,
    state: Mutex<State>,
    /// See [`Monitor::asks`].
    asks: AtomicU64,
}

/// Tables that a station is told of; by default Loc-RIB and what each peer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BmpTables {
    /// What each peer sends (Adj-RIB-In), before policy.
    pub adj_rib_in: bool,
    /// What each peer sends, as far as its import policy lets it in.
    pub adj_rib_in_post_policy: bool,
    /// What is to be announced, and the best routes of peers.
    pub loc_rib: bool,
    /// What each peer is sent (Adj-RIB-Out), after policy.
    pub adj_rib_out: bool,
}

impl Default for BmpTables {
    fn default() -> Self {
        BmpTables { adj_rib_in: false, adj_rib_in_post_policy: false, loc_rib: true, adj_rib_out: true }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Sessions that are Established: what a station that connects must be told of them.
    up: BTreeMap<IpAddr, Up>,
    subscribers: Vec<Subscriber>,
}

/// An Established session.
#[derive(Clone, Debug)]
struct Up {
    peer: Peer,
    up: PeerUp,
    since: Duration,
    /// How what it sends is encoded.
    received: Context,
}

/// A station that is connected. Dropping it cuts the station off.
#[derive(Debug)]
struct Subscriber {
    tables: BmpTables,
    queue: mpsc::UnboundedSender<Arc<[u8]>>,
    queued: Arc<AtomicUsize>,
    limit: usize,
    _cut: oneshot::Sender<()>,
}

/// What a station reads from.
struct Subscription {
    queue: mpsc::UnboundedReceiver<Arc<[u8]>>,
    /// How many bytes are in the queue.
    queued: Arc<AtomicUsize>,
    /// Ends when the station is cut off.
    cut: oneshot::Receiver<()>,
}

/// Now, as BMP counts.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

impl Subscriber {
    /// False if the queue is full.
    fn push(&self, messages: &Arc<[u8]>) -> bool {
        let queued = self.queued.fetch_add(messages.len(), Ordering::Relaxed) + messages.len();
        queued <= self.limit && self.queue.send(Arc::clone(messages)).is_ok()
    }
}

impl Monitor {
    pub(super) fn new(asn: u32, router_id: Ipv4Addr) -> Monitor {
        Monitor { asn, router_id, state: Mutex::default(), asks: AtomicU64::new(0) }
    }

    fn loc_rib(&self) -> View {
        View::LocRib { asn: self.asn, router_id: self.router_id }
    }

    /// The OPEN that says how Loc-RIB's UPDATEs are encoded, as if one had been sent.
    fn loc_rib_open(&self) -> Vec<u8> {
        let mut capabilities: Vec<Capability> =
            Family::ALL.into_iter().map(Capability::multiprotocol).collect();
        capabilities.push(Capability::FourOctetAsn(self.asn));
        let my_as = Open::my_as(self.asn);
        let open = Open { my_as, hold_time: 0, router_id: self.router_id, capabilities };
        let mut bytes = Vec::new();
        let written = Message::Open(open).encode(LOC_RIB, &mut bytes);
        debug_assert_eq!(written, Ok(()), "it is short");
        bytes
    }

    /// Hands what `write` writes to every station that is connected and `wants` it.
    fn publish(
        &self,
        state: &mut State,
        wants: impl Fn(&BmpTables) -> bool,
        write: impl FnOnce(Duration, &mut Vec<u8>),
    ) {
        if !state.subscribers.iter().any(|subscriber| wants(&subscriber.tables)) {
            return;
        }
        let mut messages = Vec::new();
        write(now(), &mut messages);
        if !messages.is_empty() {
            let messages = messages.into();
            state.subscribers.retain(|subscriber| !wants(&subscriber.tables) || subscriber.push(&messages));
        }
    }

    /// A session is Established, on which what comes is encoded as `received` says. To be called with the RIB locked, as all of
    /// these.
    pub(super) fn peer_up(&self, peer: IpAddr, negotiated: &Negotiated, up: PeerUp, received: Context) {
        let peer_of = Peer {
            address: peer,
            asn: negotiated.asn,
            router_id: negotiated.router_id,
            four_octet_asn: negotiated.four_octet_asn,
        };
        let mut state = lock(&self.state);
        self.publish(&mut state, |_| true, |at, out| bmp::peer_up(peer_of, &up, at, out));
        state.up.insert(peer, Up { peer: peer_of, up, since: now(), received });
    }

    /// A session, or an attempt at one, is over. `notification` is the one that this side sent last.
    pub(super) fn peer_down(&self, peer: IpAddr, reason: &Down, notification: Option<Vec<u8>>) {
        /// ManualStop (RFC 4271 §8.1.2).
        const MANUAL_STOP: u16 = 2;
        let mut state = lock(&self.state);
        let Some(up) = state.up.remove(&peer) else { return };
        let down = match (reason, notification) {
            (Down::NotificationReceived(notification), _) => {
                let mut bytes = Vec::new();
                // It was in a message before, of a length that was not ours to choose.
                let context = Context { extended_messages: true, ..Context::default() };
                let written = Message::Notification(notification.clone()).encode(context, &mut bytes);
                debug_assert_eq!(written, Ok(()), "it came in a message");
                PeerDown::RemoteNotification(bytes)
            }
            (Down::ConnectionClosed | Down::ConnectFailed(_), _) => PeerDown::Remote,
            (_, Some(notification)) => PeerDown::LocalNotification(notification),
            (_, None) => PeerDown::Local { event: MANUAL_STOP },
        };
        self.publish(&mut state, |_| true, |at, out| bmp::peer_down(up.peer, &down, at, out));
    }

    /// `messages` were written to a peer: the UPDATEs among them changed its Adj-RIB-Out.
    pub(super) fn sent(&self, peer: IpAddr, messages: &[u8]) {
        let mut state = lock(&self.state);
        let Some(view) = state.up.get(&peer).map(|up| View::AdjRibOut(up.peer)) else { return };
        self.publish(
            &mut state,
            |tables| tables.adj_rib_out,
            |at, out| {
                let mut rest = messages;
                while let Ok(Some(length)) = frame(rest) {
                    let (message, after) = rest.split_at(length);
                    if message[HEADER_LENGTH - 1] == UPDATE {
                        bmp::route_monitoring(view, message, at, out);
                    }
                    rest = after;
                }
            },
        );
    }

    /// Loc-RIB has changed: these prefixes may have other routes, or none. A route of our own comes first, then the best that import
    /// policies let in, then what is only passed on.
    pub(super) fn loc_rib_changed<'a>(
        &self,
        rib: &Rib,
        learnt: &Learnt,
        prefixes: impl Iterator<Item = &'a IpNet>,
    ) {
        let mut state = lock(&self.state);
        self.publish(
            &mut state,
            |tables| tables.loc_rib,
            |at, out| {
                let mut groups: BTreeMap<(&Route, Family), Vec<Nlri>> = BTreeMap::new();
                let mut others = Vec::new();
                for prefix in prefixes {
                    match (rib.route(prefix), learnt.best(*prefix)) {
                        (Some(route), best) if route.is_own() || best.is_none() => {
                            groups.entry((route, Family::of(prefix))).or_default().push((*prefix).into());
                        }
                        (_, best) => others.push(((*prefix).into(), best)),
                    }
                }
                for ((route, family), prefixes) in groups {
                    loc_rib_routes(self.loc_rib(), route, family, prefixes, at, out);
                }
                learnt::routes(self.loc_rib(), LOC_RIB, others, at, out);
            },
        );
    }

    /// All routes of the earlier life are in.
    pub(super) fn loc_rib_complete(&self) {
        let mut state = lock(&self.state);
        self.publish(
            &mut state,
            |tables| tables.loc_rib,
            |at, out| {
                for family in Family::ALL {
                    bmp::end_of_rib(self.loc_rib(), family, at, out);
                }
            },
        );
    }
}

/// Appends routes of Loc-RIB. The next hop of ours is this speaker, whatever its address to a peer.
fn loc_rib_routes(
    view: View,
    route: &Route,
    family: Family,
    prefixes: impl IntoIterator<Item = Nlri>,
    at: Duration,
    out: &mut Vec<u8>,
) {
    let (attributes, next_hop) = match route {
        Route::Own(attributes) => {
            let next_hop = match family {
                Family::Ipv4Unicast => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                Family::Ipv6Unicast => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let attributes = PathAttributes {
                origin: Some(Origin::Igp),
                as_path: Some(AsPath::default()),
                med: attributes.med,
                local_pref: attributes.local_pref,
                communities: attributes.communities.to_vec(),
                large_communities: attributes.large_communities.to_vec(),
                ..PathAttributes::default()
            };
            (attributes, next_hop)
        }
        Route::Reflected(route) => (route.attributes.clone(), route.next_hop),
    };
    // What leaves no room for a prefix is sent to no peer either, which says so.
    if let Ok(announcement) = Announcement::of_family(family, attributes, next_hop, None, LOC_RIB) {
        bmp::announcements(view, &announcement, prefixes, at, out);
    }
}
