//! What an API server answers: pages of a list, lines of a watch, and errors.

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Longest text of an error that is passed on: proxies answer with whole web pages.
const LONGEST_TEXT: usize = 300;

/// A request that did not work out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    /// For people; never holds a credential.
    pub(super) message: String,
    /// How long the server wants to be left alone.
    pub(super) retry_after: Option<Duration>,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server refused with that HTTP status code, in the answer or in an ERROR event.
    Status(u16),
    /// The connection could not be made or broke, or the server is silent.
    Connection,
    /// The answer is not what this API answers.
    Garbage,
}

impl Failure {
    /// A connection that does not work.
    pub(super) fn connection(message: impl Into<String>) -> Self {
        Self { fault: Fault::Connection, message: message.into(), retry_after: None }
    }

    /// An answer that is none.
    pub(super) fn garbage(message: impl Into<String>) -> Self {
        Self { fault: Fault::Garbage, message: message.into(), retry_after: None }
    }

    /// An HTTP status code with the body that came with it, normally a `Status` object.
    pub(super) fn refusal(code: u16, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let status = serde_json::from_slice::<Status>(body).unwrap_or_else(|_| Status {
            message: Some(String::from_utf8_lossy(body).trim().to_owned()),
            ..Status::default()
        });
        status.failure(Some(code), retry_after)
    }
}

/// A `Status` object (meta/v1).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    #[serde(default)]
    code: Option<u16>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    #[serde(default)]
    retry_after_seconds: Option<u64>,
}

impl Status {
    fn failure(self, code: Option<u16>, retry_after: Option<Duration>) -> Failure {
        let Self { code: own, reason, message, details } = self;
        let code = code.or(own).unwrap_or(500);
        let text = message.filter(|text| !text.is_empty()).or(reason).unwrap_or_default();
        let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text: String = text.chars().take(LONGEST_TEXT).collect();
        let remedy = match code {
            401 => ": is the token or certificate of this agent still valid, and of this cluster?",
            403 => ": does its ClusterRole allow list and watch?",
            _ => "",
        };
        let asked = details.and_then(|details| details.retry_after_seconds).map(Duration::from_secs);
        let separator = if text.is_empty() { "" } else { ": " };
        Failure {
            fault: Fault::Status(code),
            message: format!("the API server answers {code}{separator}{text}{remedy}"),
            retry_after: retry_after.or(asked),
        }
    }
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) items: Vec<&'a RawValue>,
    /// The list's `resourceVersion`.
    pub(super) version: String,
    /// Token of the next page; `None` on the last.
    pub(super) next: Option<String>,
}

impl<'a> Page<'a> {
    /// Reads the answer to a list.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct WirePage<'a> {
            metadata: Metadata,
            #[serde(default, borrow)]
            items: Option<Vec<&'a RawValue>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            #[serde(default)]
            resource_version: Option<String>,
            #[serde(default, rename = "continue")]
            next: Option<String>,
        }
        let WirePage { metadata: Metadata { resource_version, next }, items } = serde_json::from_slice(body)
            .map_err(|error| Failure::garbage(format!("the answer to a list is not understood: {error}")))?;
        let version = resource_version
            .filter(|version| !version.is_empty())
            .ok_or_else(|| Failure::garbage("the answer to a list has no metadata.resourceVersion"))?;
        Ok(Self { items: items.unwrap_or_default(), version, next: next.filter(|token| !token.is_empty()) })
    }
}

/// One line of a watch.
#[derive(Debug)]
pub(super) enum Message<'a> {
    /// ADDED or MODIFIED.
    Applied(&'a RawValue),
    /// DELETED.
    Deleted(&'a RawValue),
    /// BOOKMARK.
    Bookmark {
        /// What is told is complete up to there.
        version: Option<String>,
        /// All initial events of a streaming list have been told.
        initial_events_end: bool,
    },
    /// ERROR: the watch ends.
    Error(Failure),
}

impl<'a> Message<'a> {
    /// Reads a line.
    pub(super) fn read(line: &'a [u8]) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
            #[serde(borrow)]
            object: &'a RawValue,
        }
        let garbage = |error| Failure::garbage(format!("a line of a watch is not understood: {error}"));
        let Line { kind, object } = serde_json::from_slice(line).map_err(garbage)?;
        Ok(match &*kind {
            "ADDED" | "MODIFIED" => Self::Applied(object),
            "DELETED" => Self::Deleted(object),
            "BOOKMARK" => Self::bookmark(object).map_err(garbage)?,
            "ERROR" => {
                // One of these can come as the text of a proxy too: then there is no code.
                let status: Status = serde_json::from_str(object.get()).unwrap_or_default();
                Self::Error(status.failure(None, None))
            }
            other => {
                return Err(Failure::garbage(format!("a watch has an event of unknown type `{other}`")));
            }
        })
    }

    fn bookmark(object: &RawValue) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Bookmark {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            #[serde(default)]
            resource_version: Option<String>,
            #[serde(default)]
            annotations: Option<Annotations>,
        }
        #[derive(Deserialize)]
        struct Annotations {
            #[serde(default, rename = "k8s.io/initial-events-end")]
            initial_events_end: Option<String>,
        }
        let Bookmark { metadata: Metadata { resource_version, annotations } } =
            serde_json::from_str(object.get())?;
        Ok(Self::Bookmark {
            version: resource_version.filter(|version| !version.is_empty()),
            initial_events_end: annotations
                .and_then(|annotations| annotations.initial_events_end)
                .is_some_and(|value| value == "true"),
        })
    }
}
