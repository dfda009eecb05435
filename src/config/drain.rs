//! `drain`: what makes this node drain, and how long each step of it takes.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::peer::duration;
use super::reader;
use crate::cluster::{Node, Taint};

/// Annotation of a Node that asks its agent to drain.
pub(super) const DRAIN: &str = "sheave.io/drain";

/// The effects of a taint (core/v1).
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// `drain`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Drain {
    /// By the Node's annotation `sheave.io/drain`.
    pub annotation: bool,
    /// By one of these taints.
    pub taints: Vec<TaintPattern>,
    /// How long VIPs are a last resort before they are withdrawn, and how long nothing may have come for a connection before it counts
    /// as one that goes elsewhere.
    #[serde(deserialize_with = "wait")]
    pub wait: Duration,
    /// How long after the withdrawal connections through this node are waited for.
    #[serde(deserialize_with = "limit")]
    pub limit: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            annotation: true,
            taints: Vec::new(),
            wait: Duration::from_secs(5),
            limit: Duration::from_secs(60),
        }
    }
}

impl Drain {
    /// What on a Node asks for a drain, `annotation` being what its annotation says.
    pub fn reasons(&self, annotation: Option<bool>, taints: &[Taint]) -> BTreeSet<DrainReason> {
        let annotation = (self.annotation && annotation == Some(true)).then_some(DrainReason::Annotation);
        let taints = taints.iter().filter(|taint| self.taints.iter().any(|pattern| pattern.matches(taint)));
        annotation.into_iter().chain(taints.map(|taint| DrainReason::Taint(taint.to_string()))).collect()
    }

    /// Whether another node drains, as far as its Node tells; one whose annotation is wrong may do so.
    pub fn is_asked_of(&self, other: &Node) -> bool {
        let annotation =
            other.annotations.get(DRAIN).map(|text| reader::boolean(text.trim()).unwrap_or(true));
        !self.reasons(annotation, &other.taints).is_empty()
    }

    /// What no field can tell alone: what is wrong with which of them.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.limit < self.wait {
            let [limit, wait] = [self.limit, self.wait].map(humantime::format_duration);
            let message = format!(
                "{limit} is shorter than drain.wait, {wait}, after which it is first looked what is left"
            );
            return Err(("limit", message));
        }
        Ok(())
    }
}

/// Who asks this node to drain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainReason {
    /// `sheave drain`.
    Command,
    /// The Node's annotation.
    Annotation,
    /// A taint of the Node, as `kubectl` writes it.
    Taint(String),
}

impl fmt::Display for DrainReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command => f.write_str("command `sheave drain`"),
            Self::Annotation => write!(f, "annotation {DRAIN}"),
            Self::Taint(taint) => write!(f, "taint {taint}"),
        }
    }
}

/// One of `drain.taints`, as `kubectl taint` writes them: `KEY`, `KEY=VALUE`, each also with `:EFFECT`. What is left out matches all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaintPattern {
    key: String,
    value: Option<String>,
    effect: Option<String>,
}

impl TaintPattern {
    fn matches(&self, taint: &Taint) -> bool {
        let Self { key, value, effect } = self;
        *key == *taint.key
            && value.as_ref().is_none_or(|value| **value == *taint.value)
            && effect.as_ref().is_none_or(|effect| **effect == *taint.effect)
    }
}

impl FromStr for TaintPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (taint, effect) = match text.split_once(':') {
            Some((taint, effect)) => (taint, Some(effect)),
            None => (text, None),
        };
        let (key, value) = match taint.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (taint, None),
        };
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(format!("`{text}` is not a taint: KEY, KEY=VALUE, KEY:EFFECT or KEY=VALUE:EFFECT"));
        }
        if let Some(effect) = effect.filter(|effect| !EFFECTS.contains(effect)) {
            return Err(format!("`{effect}` is not an effect of a taint: {}", EFFECTS.join(", ")));
        }
        Ok(Self { key: key.into(), value: value.map(Into::into), effect: effect.map(Into::into) })
    }
}

impl<'de> Deserialize<'de> for TaintPattern {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

fn wait<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    at_most(d, Duration::from_secs(600), "peers need seconds to take another way: 0s to 10m")
}

fn limit<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    at_most(d, Duration::from_secs(86400), "a limit is 0s to 24h")
}

fn at_most<'de, D: Deserializer<'de>>(d: D, most: Duration, wrong: &str) -> Result<Duration, D::Error> {
    let time = duration(d)?;
    if time <= most { Ok(time) } else { Err(D::Error::custom(wrong)) }
}
