//! What the tests need of a daemon, whichever it is.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use sheave_bgp::{
    Community, LargeCommunity, Password, PeerConfig, PeerStatus, RouteChanges, Speaker, SpeakerConfig,
};

use crate::lab::Lab;
use crate::{OUR_ASN, announce, only_peer, peer_config, speaker_config, start};

/// A daemon. What it knows of a run is in the [`Lab`].
pub(crate) trait Daemon: Sync {
    /// The programs that it takes.
    fn programs(&self) -> &'static [&'static str];

    /// Writes the configuration and starts it.
    fn start(&self, lab: &mut Lab, setup: &Setup);

    /// Whether its session with us is Established.
    fn is_established(&self, lab: &Lab, setup: &Setup) -> bool;

    /// The route that it has from us.
    fn route(&self, lab: &Lab, setup: &Setup, prefix: IpNet) -> Option<Route>;

    /// Has it ask for all our routes again.
    fn ask_refresh(&self, lab: &Lab, setup: &Setup);

    /// Has it end the session for good, with `message` (RFC 9003); returns how we then give the reason.
    fn shut_down(&self, lab: &Lab, setup: &Setup, message: &str) -> String;

    /// Whether it says that we told it of `event`.
    fn was_told(&self, lab: &Lab, setup: &Setup, event: Told) -> bool;

    /// What it tells of its session and our routes.
    fn describe(&self, lab: &Lab, setup: &Setup) -> String;

    /// Whether it says where the answer to its ROUTE-REFRESH begins and ends (RFC 7313).
    fn has_enhanced_refresh(&self) -> bool;

    /// Whether what it passes on keeps its next hop; otherwise there is one for the session's family alone.
    fn keeps_next_hops(&self, _: &Setup) -> bool {
        true
    }
}

/// A NOTIFICATION of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    /// Cease/Administrative Shutdown.
    Shutdown,
    /// OPEN Message Error/Bad Peer AS.
    WrongAsn,
}

/// A route of ours at the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) next_hop: IpAddr,
    pub(crate) as_path: Vec<u32>,
    /// Of iBGP only: others show a default of their own.
    pub(crate) local_pref: Option<u32>,
    pub(crate) med: Option<u32>,
    pub(crate) communities: Vec<Community>,
    pub(crate) large_communities: Vec<LargeCommunity>,
}

/// How the daemon is configured.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Our address.
    pub(crate) ours: IpAddr,
    /// The daemon's.
    pub(crate) theirs: IpAddr,
    /// Its ASN; ours makes it iBGP.
    pub(crate) asn: u32,
    /// Whether it connects.
    pub(crate) connects: bool,
    /// What it proposes.
    pub(crate) hold_time: u16,
    /// TCP MD5.
    pub(crate) password: Option<&'static str>,
    /// GTSM.
    pub(crate) ttl_security: bool,
    /// All that it has of graceful restart, where the feature is about that.
    pub(crate) restart: Option<Restart>,
    /// It tells several paths to a prefix, and takes them: those of [`FEEDERS`] that are its peers then, or its own.
    pub(crate) add_paths: bool,
}

/// Who announces the same to a daemon that is to tell several paths: address, next hop of IPv6 prefixes, ASN.
pub(crate) const FEEDERS: [(&str, &str, u32); 2] =
    [("10.0.0.11", "fd00::11", 65011), ("10.0.0.12", "fd00::12", 65012)];
/// What they announce.
pub(crate) const FED: [&str; 2] = ["198.18.7.0/24", "2001:db8:7::/48"];

/// Graceful restart as the daemon offers it, its forwarding kept and NOTIFICATIONs included as far as it can.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restart {
    /// Seconds that it may be away.
    pub(crate) time: u16,
    /// Seconds that its routes are then kept as a last resort (RFC 9494); 0 does not offer it.
    pub(crate) stale_time: u16,
}

impl Setup {
    /// What it announces, in the family of the session.
    pub(crate) fn announced(&self) -> [&'static str; 2] {
        match self.theirs {
            IpAddr::V4(_) => ["198.51.100.0/24", "203.0.113.0/24"],
            IpAddr::V6(_) => ["2001:db8:1::/48", "2001:db8:2::/48"],
        }
    }

    /// Whether both sides are in one AS.
    pub(crate) fn is_ibgp(&self) -> bool {
        self.asn == OUR_ASN
    }
}

/// One test's daemon with one kind of session.
pub(crate) struct Cell {
    pub(crate) lab: Lab,
    pub(crate) daemon: &'static dyn Daemon,
    pub(crate) setup: Setup,
}

impl Cell {
    /// `kind` as in `ebgp_v4_active`: who connects is seen from our side.
    pub(crate) fn new(lab: Lab, daemon: &'static dyn Daemon, kind: &str) -> Cell {
        let words: Vec<&str> = kind.split('_').collect();
        let &[session, family, way] = words.as_slice() else { panic!("{kind}: no kind of session") };
        let [ours, theirs] = if family == "v4" { Lab::V4 } else { Lab::V6 };
        let setup = Setup {
            ours,
            theirs,
            asn: if session == "ibgp" { OUR_ASN } else { 65001 },
            connects: way == "passive",
            hold_time: 9,
            password: None,
            ttl_security: false,
            restart: None,
            add_paths: false,
        };
        Cell { lab, daemon, setup }
    }

    pub(crate) fn start(&mut self) {
        self.daemon.start(&mut self.lab, &self.setup);
    }

    /// What fits the daemon: we listen if it connects.
    pub(crate) fn speaker_config(&self) -> SpeakerConfig {
        speaker_config(self.setup.connects.then_some(self.setup.ours))
    }

    /// Likewise.
    pub(crate) fn peer_config(&self) -> PeerConfig {
        PeerConfig {
            passive: self.setup.connects,
            hold_time: Duration::from_secs(self.setup.hold_time.into()),
            password: self.setup.password.map(|text| Password::new(text.as_bytes()).unwrap()),
            ttl_security: self.setup.ttl_security.then_some(1),
            ..peer_config(self.setup.theirs, self.setup.asn)
        }
    }

    /// A speaker with this peer.
    pub(crate) async fn speaker(&self) -> Speaker {
        let speaker = start(self.speaker_config()).await;
        speaker.set_peers(vec![self.peer_config()]);
        speaker
    }

    pub(crate) fn route(&self, prefix: &str) -> Option<Route> {
        self.daemon.route(&self.lab, &self.setup, prefix.parse().unwrap())
    }

    pub(crate) fn has(&self, prefixes: &[&str]) -> bool {
        prefixes.iter().all(|prefix| self.route(prefix).is_some())
    }

    pub(crate) fn describe(&self) -> String {
        self.daemon.describe(&self.lab, &self.setup)
    }

    pub(crate) async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        self.lab.until(what, condition, || self.describe()).await;
    }

    /// Waits until the daemon has routes to these, and not to those.
    pub(crate) async fn until_routes(&self, there: &[&str], gone: &[&str]) {
        let settled = || self.has(there) && gone.iter().all(|prefix| self.route(prefix).is_none());
        self.until(&format!("routes to {there:?}, none to {gone:?}"), settled).await;
    }

    /// Waits until both sides have a session.
    pub(crate) async fn until_established(&self, speaker: &Speaker) {
        let established =
            || only_peer(speaker).session.is_some() && self.daemon.is_established(&self.lab, &self.setup);
        self.until("a session", established).await;
    }

    /// Waits until the daemon has understood why the session ended.
    pub(crate) async fn until_told(&self, event: Told) {
        let told = || self.daemon.was_told(&self.lab, &self.setup, event);
        self.until(&format!("{event:?} to be understood"), told).await;
    }

    /// Waits until our status is as `wanted` says.
    pub(crate) async fn until_status(
        &self,
        what: &str,
        speaker: &Speaker,
        wanted: impl Fn(&PeerStatus) -> bool,
    ) {
        let state = || format!("{:#?}\n{}", only_peer(speaker), self.describe());
        self.lab.until(what, || wanted(&only_peer(speaker)), state).await;
    }

    /// Waits until our status gives `reason` as the last error.
    pub(crate) async fn until_reason(&self, speaker: &Speaker, reason: &str) {
        let told = |status: &PeerStatus| {
            status.last_error.as_ref().is_some_and(|error| error.reason.to_string().contains(reason))
        };
        self.until_status(reason, speaker, told).await;
    }
}

/// Routes of no attributes of their own.
pub(crate) fn plain(prefixes: &[&str]) -> RouteChanges {
    announce(prefixes, &sheave_bgp::Attributes::default())
}

/// A JSON list of numbers; nothing else is one.
pub(crate) fn numbers(list: &serde_json::Value) -> Vec<u32> {
    let numbers = list.as_array().into_iter().flatten().filter_map(serde_json::Value::as_u64);
    numbers.map(|number| number.try_into().unwrap()).collect()
}
