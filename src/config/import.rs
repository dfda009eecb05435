//! `import`: which routes of a peer are taken over, and where they go.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use sheave_bgp::{ImportPolicy, LimitAction, MaxPrefixes, PrefixFilter};

use super::peer::within;
use super::reader;

/// `RT_TABLE_MAIN` (linux/rtnetlink.h).
const MAIN_TABLE: u32 = 254;
/// From how many percent of the limit on there is a warning.
const WARN_AT: u8 = 75;
/// How long a peer that announces too much stays away.
const IDLE_HOLD: Duration = Duration::from_secs(300);

/// `router.import`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ImportTo {
    /// The kernel table, the main one by default.
    pub table: u32,
    /// What becomes of the routes when the agent ends.
    pub on_exit: OnExit,
}

impl Default for ImportTo {
    fn default() -> Self {
        Self { table: MAIN_TABLE, on_exit: OnExit::Keep }
    }
}

/// `router.import.onExit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExit {
    /// They stay, for the next agent to take over.
    Keep,
    /// They go, as long as the agent is not killed.
    Remove,
}

/// `import` of a peer: `none`, or what is taken over.
pub(super) fn policy<'de, D: Deserializer<'de>>(d: D) -> Result<Option<ImportPolicy>, D::Error> {
    let Wanted(written) = short_or_map(d, "`none`, or a map with `prefixes`", |text| match text {
        "none" | "" => Ok(Wanted(None)),
        _ => Err(format!("`{text}` is neither `none` nor a map such as {{prefixes: [10.0.0.0/8]}}")),
    })?;
    let Some(Written { prefixes, max_prefixes }) = written else { return Ok(None) };
    if prefixes.is_empty() {
        return Err(D::Error::custom(
            "`prefixes` lists none, so nothing would be imported: list some, or write `import: none`",
        ));
    }
    let prefixes = prefixes.into_iter().map(|Filter(filter)| filter).collect();
    Ok(Some(ImportPolicy { prefixes, max_prefixes: max_prefixes.map(|Limit(limit)| limit) }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    prefixes: Vec<Filter>,
    #[serde(default)]
    max_prefixes: Option<Limit>,
}

struct Wanted(Option<Written>);

impl<'de> Deserialize<'de> for Wanted {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Written::deserialize(d).map(|written| Self(Some(written)))
    }
}

/// One of `prefixes`: a CIDR, or `{prefix, ge, le}`.
#[derive(PartialEq)]
pub(super) struct Filter(pub(super) PrefixFilter);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFilter {
    #[serde(deserialize_with = "cidr")]
    prefix: IpNet,
    ge: Option<u8>,
    le: Option<u8>,
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let alone = |prefix| WrittenFilter { prefix, ge: None, le: None };
        let WrittenFilter { prefix, ge, le } =
            short_or_map(d, "a CIDR, or a map with `prefix`", |text| reader::cidr(text).map(alone))?;
        let (own, most) = (prefix.prefix_len(), prefix.max_prefix_len());
        // As routers have it: alone, one of them leaves the other end open.
        let (min_length, max_length) = match (ge, le) {
            (None, None) => (own, own),
            (ge, le) => (ge.unwrap_or(own), le.unwrap_or(most)),
        };
        if !(own <= min_length && min_length <= max_length && max_length <= most) {
            return Err(D::Error::custom(format_args!(
                "lengths of {min_length} to {max_length} within {prefix}: it takes {own} <= ge <= le <= {most}"
            )));
        }
        Ok(Self(PrefixFilter { within: prefix, min_length, max_length }))
    }
}

/// `maxPrefixes`: a number, or `{limit, warnAt, action, idleHold}`.
struct Limit(MaxPrefixes);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenLimit {
    limit: u32,
    warn_at: Option<u8>,
    #[serde(default)]
    action: Action,
    #[serde(default, deserialize_with = "idle_hold_of")]
    idle_hold: Option<Duration>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Action {
    Warn,
    #[default]
    Restart,
    TearDown,
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let alone = |text: &str| {
            let limit = text.parse().map_err(|_| format!("`{text}` is not a number of prefixes"))?;
            Ok(WrittenLimit { limit, warn_at: None, action: Action::Restart, idle_hold: None })
        };
        let written = short_or_map(d, "a number, or a map with `limit`", alone)?;
        let WrittenLimit { limit, warn_at, action, idle_hold } = written;
        if limit == 0 {
            return Err(D::Error::custom("a limit of 0 lets no session stand: use `import: none`"));
        }
        let warn_at = warn_at.unwrap_or(WARN_AT);
        if !(1..=100).contains(&warn_at) {
            return Err(D::Error::custom("`warnAt` is percent of the limit: 1 to 100"));
        }
        if idle_hold.is_some() && action != Action::Restart {
            return Err(D::Error::custom("`idleHold` goes with `action: restart` alone"));
        }
        let limit = limit as usize;
        Ok(Self(MaxPrefixes {
            limit,
            warn_at: (limit * usize::from(warn_at)).div_ceil(100),
            action: match action {
                Action::Warn => LimitAction::Warn,
                Action::Restart => LimitAction::Restart(idle_hold.unwrap_or(IDLE_HOLD)),
                Action::TearDown => LimitAction::TearDown,
            },
        }))
    }
}

fn cidr<'de, D: Deserializer<'de>>(d: D) -> Result<IpNet, D::Error> {
    reader::cidr(&String::deserialize(d)?).map_err(D::Error::custom)
}

/// Long enough that a peer with too many routes is no steady load, and still a time.
fn idle_hold_of<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    within(d, 1, 86400, "a peer is held down for 1s to 24h: for longer than that, write `action: tearDown`")
}

/// What has a short form, read by `short`, beside its map.
pub(super) fn short_or_map<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    d: D,
    expected: &'static str,
    short: impl Fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct ShortOrMap<T, F>(&'static str, F, PhantomData<T>);

    impl<'de, T: Deserialize<'de>, F: Fn(&str) -> Result<T, String>> Visitor<'de> for ShortOrMap<T, F> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).map_err(E::custom)
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
            self.visit_str(&number.to_string())
        }

        fn visit_bool<E: Error>(self, value: bool) -> Result<T, E> {
            self.visit_str(if value { "true" } else { "false" })
        }

        fn visit_unit<E: Error>(self) -> Result<T, E> {
            self.visit_str("")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }

    d.deserialize_any(ShortOrMap(expected, short, PhantomData))
}
