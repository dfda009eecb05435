//! `router.bmp`: who is told by BMP what the speaker does.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::peer::duration;

/// One of `router.bmp`: a monitoring station, which this node connects to (RFC 7854).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BmpStation {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    #[serde(default = "port", deserialize_with = "port_of")]
    pub port: u16,
    /// How often counts of routes are reported; 0s: never.
    #[serde(default = "statistics", deserialize_with = "statistics_of")]
    pub statistics_interval: Duration,
    /// KiB that may wait for it before it is cut off.
    #[serde(default = "queue_kib", rename = "queueKiB", deserialize_with = "queue_kib_of")]
    pub queue_kib: u32,
    /// What it is told of; what is to be announced, and what each peer is sent, by default.
    #[serde(default = "tables")]
    pub tables: BTreeSet<BmpTable>,
}

/// One of `tables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BmpTable {
    /// What each peer sends, before its import policy.
    AdjRibIn,
    /// What each peer sends, as far as its import policy lets it in.
    AdjRibInPostPolicy,
    /// What is to be announced, and the best of what is imported.
    LocRib,
    /// What each peer is sent.
    AdjRibOut,
}

fn tables() -> BTreeSet<BmpTable> {
    [BmpTable::LocRib, BmpTable::AdjRibOut].into()
}

/// No port is assigned; this is what stations listen on by custom.
fn port() -> u16 {
    11019
}

fn statistics() -> Duration {
    Duration::from_secs(60)
}

fn queue_kib() -> u32 {
    8 * 1024
}

fn port_of<'de, D: Deserializer<'de>>(d: D) -> Result<u16, D::Error> {
    match u16::deserialize(d)? {
        0 => {
            Err(D::Error::custom("no station listens on port 0: give the one that it does, 11019 by custom"))
        }
        port => Ok(port),
    }
}

fn statistics_of<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let time = duration(d)?;
    if !time.is_zero() && !(Duration::from_secs(1)..=Duration::from_secs(86400)).contains(&time) {
        return Err(D::Error::custom("an interval of reports is 0s (never) or 1s to 24h"));
    }
    Ok(time)
}

/// Less would cut off a station for a single full message; more than a GiB would be the node's memory.
fn queue_kib_of<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    let kib = u32::deserialize(d)?;
    if !(64..=1024 * 1024).contains(&kib) {
        return Err(D::Error::custom("a queue is 64 to 1048576 KiB"));
    }
    Ok(kib)
}

/// What no field can tell alone: the field that is wrong, from the list on, and what is wrong with it.
pub(super) fn check(stations: &[BmpStation]) -> Result<(), (String, String)> {
    let mut seen = HashSet::new();
    for (index, BmpStation { address, port, .. }) in stations.iter().enumerate() {
        if !seen.insert((address, port)) {
            let message = format!("{address} port {port} is listed twice: a station has one connection");
            return Err((format!("[{index}].address"), message));
        }
    }
    Ok(())
}
