//! `bfd` of peers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use sheave_bgp::bfd::Algorithm;

use super::peer::{self, PasswordSource, SecretKey};

/// `bfd` of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Bfd {
    /// Desired minimum transmit interval.
    #[serde(deserialize_with = "interval")]
    pub transmit_interval: Duration,
    /// Required minimum receive interval.
    #[serde(deserialize_with = "interval")]
    pub receive_interval: Duration,
    /// How many packets may be lost in a row.
    #[serde(deserialize_with = "multiplier")]
    pub detect_multiplier: u8,
    /// The peer may be several hops away (RFC 5883); `None`: if its session may be.
    pub multihop: Option<bool>,
    /// Says nothing before the peer has spoken.
    pub passive: bool,
    /// What packets are signed with: the first signs, any is taken; none by default.
    #[serde(deserialize_with = "keys")]
    pub keys: Vec<BfdKey>,
}

impl Default for Bfd {
    fn default() -> Self {
        let interval = Duration::from_millis(300);
        Self {
            transmit_interval: interval,
            receive_interval: interval,
            detect_multiplier: 3,
            multihop: None,
            passive: false,
            keys: Vec::new(),
        }
    }
}

/// One of `bfd.keys`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenKey")]
pub struct BfdKey {
    /// By which both sides know it.
    pub id: u8,
    /// How it signs.
    pub algorithm: Algorithm,
    /// Where it is read from.
    pub source: PasswordSource,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenKey {
    id: u8,
    #[serde(default = "strongest", deserialize_with = "algorithm")]
    algorithm: Algorithm,
    #[serde(default)]
    file: Option<PathBuf>,
    #[serde(default)]
    secret: Option<SecretKey>,
}

impl TryFrom<WrittenKey> for BfdKey {
    type Error = &'static str;

    fn try_from(WrittenKey { id, algorithm, file, secret }: WrittenKey) -> Result<Self, Self::Error> {
        let source = match (file, secret) {
            (Some(file), None) => PasswordSource::File(file),
            (None, Some(secret)) => PasswordSource::Secret(secret),
            (None, None) => return Err("a key is read from somewhere: give its `file` or its `secret`"),
            (Some(_), Some(_)) => return Err("there are `file` and `secret`: give one of them"),
        };
        Ok(Self { id, algorithm, source })
    }
}

/// As the names are in configuration files of others.
const ALGORITHMS: [(&str, Algorithm); 5] = [
    ("simple", Algorithm::Simple),
    ("md5", Algorithm::Md5),
    ("meticulous-md5", Algorithm::MeticulousMd5),
    ("sha1", Algorithm::Sha1),
    ("meticulous-sha1", Algorithm::MeticulousSha1),
];

fn strongest() -> Algorithm {
    Algorithm::MeticulousSha1
}

fn algorithm<'de, D: Deserializer<'de>>(d: D) -> Result<Algorithm, D::Error> {
    let text = String::deserialize(d)?;
    let found = ALGORITHMS.iter().find(|(name, _)| *name == text);
    found.map(|(_, algorithm)| *algorithm).ok_or_else(|| {
        let names = ALGORITHMS.map(|(name, _)| name).join(", ");
        D::Error::custom(format_args!("`{text}` is not one of {names}"))
    })
}

fn keys<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<BfdKey>, D::Error> {
    let keys = Vec::<BfdKey>::deserialize(d)?;
    let mut seen = BTreeSet::new();
    match keys.iter().find(|key| !seen.insert(key.id)) {
        Some(BfdKey { id, .. }) => {
            Err(D::Error::custom(format_args!("id {id} is listed twice: both sides tell keys apart by it")))
        }
        None => Ok(keys),
    }
}

/// Packets more often than every 10 ms are more than a busy node can be sure to send; less often than every minute notices nothing.
fn interval<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let interval = peer::duration(d)?;
    if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&interval) {
        return Err(D::Error::custom("an interval of BFD is 10ms to 60s"));
    }
    Ok(interval)
}

/// RFC 5880 section 4.1: not 0.
fn multiplier<'de, D: Deserializer<'de>>(d: D) -> Result<u8, D::Error> {
    match u8::deserialize(d)? {
        0 => Err(D::Error::custom("detectMultiplier is 1 to 255: how many packets may be lost, and one")),
        multiplier => Ok(multiplier),
    }
}

/// `bfd` of a peer in kube-router's annotation. As there, fields that are not known do no harm.
#[derive(Deserialize)]
pub(super) struct KubeRouterBfd {
    #[serde(default)]
    enabled: Option<bool>,
    #[serde(default)]
    port: Option<u32>,
    #[serde(default)]
    detection_multiplier: Option<u32>,
    #[serde(default)]
    required_min_rx_interval: Option<u32>,
    #[serde(default)]
    desired_min_tx_interval: Option<u32>,
}

impl KubeRouterBfd {
    /// The same in our words; `None` where it is off, whatever else it says. Its defaults are kube-router's, which speaks to neighbours
    /// alone.
    pub(super) fn read(self) -> Result<Option<Bfd>, String> {
        let Self { enabled, port, detection_multiplier, required_min_rx_interval, desired_min_tx_interval } =
            self;
        if enabled != Some(true) {
            return Ok(None);
        }
        let multihop = match port {
            None | Some(3784) => false,
            Some(4784) => true,
            Some(port) => {
                return Err(format!(
                    "bfd.port: {port} is not BFD's: 3784, or 4784 to a peer that is several hops away"
                ));
            }
        };
        let detect_multiplier =
            detection_multiplier.map_or(Ok(3), |written| match u8::try_from(written) {
                Ok(multiplier @ 1..) => Ok(multiplier),
                _ => Err(format!("bfd.detection_multiplier: {written} is not within 1 to 255")),
            })?;
        // Its first versions with BFD counted microseconds, all of which that make sense are beyond.
        let interval = |field: &str, written: Option<u32>| match written.unwrap_or(1000) {
            milliseconds @ 10..10_000 => Ok(Duration::from_millis(milliseconds.into())),
            other => Err(format!("bfd.{field}: {other} is not within 10 to 9999 milliseconds: give those")),
        };
        Ok(Some(Bfd {
            transmit_interval: interval("desired_min_tx_interval", desired_min_tx_interval)?,
            receive_interval: interval("required_min_rx_interval", required_min_rx_interval)?,
            detect_multiplier,
            multihop: Some(multihop),
            passive: false,
            keys: Vec::new(),
        }))
    }
}
