//! `services.forwarding`: how directors hand packets to endpoints, by where clients are.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::reader;
use crate::plan::Forwarding;

/// `services.forwarding`: `tunnel` or `nat` for all clients, or a mapping with one for each kind of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardingTo {
    /// For clients outside of the cluster.
    pub external: Forwarding,
    /// For those within: this node itself, its pods, and `services.clusterCIDRs`.
    pub internal: Forwarding,
}

impl From<Forwarding> for ForwardingTo {
    fn from(all: Forwarding) -> Self {
        Self { external: all, internal: all }
    }
}

impl Default for ForwardingTo {
    fn default() -> Self {
        Forwarding::Tunnel.into()
    }
}

impl<'de> Deserialize<'de> for ForwardingTo {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ForAllOrEach)
    }
}

struct ForAllOrEach;

impl<'de> Visitor<'de> for ForAllOrEach {
    type Value = ForwardingTo;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`tunnel`, `nat`, or one of them for each of `external` and `internal`")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ForwardingTo, E> {
        reader::forwarding(text).map(Into::into).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ForwardingTo, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Each {
            #[serde(default = "tunnel", deserialize_with = "forwarding")]
            external: Forwarding,
            #[serde(default = "tunnel", deserialize_with = "forwarding")]
            internal: Forwarding,
        }
        let Each { external, internal } = Each::deserialize(MapAccessDeserializer::new(map))?;
        Ok(ForwardingTo { external, internal })
    }
}

fn tunnel() -> Forwarding {
    Forwarding::Tunnel
}

fn forwarding<'de, D: Deserializer<'de>>(d: D) -> Result<Forwarding, D::Error> {
    let text = String::deserialize(d)?;
    reader::forwarding(&text).map_err(D::Error::custom)
}
