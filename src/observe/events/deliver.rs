//! Sends Events to the API server, one after the other, for as long as it takes.
//!
//! An Event's name is computed from what it says: an agent that says the same after a restart, or two agents that say
//! the same about a Service, find it there and add to its series.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use kube::{Client, Error};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::hash;
use super::ledger::Telling;
use super::notice::{Kind, KnownBy, Notice};
use crate::cluster::ObjectKey;

/// `reportingController` of our Events.
const CONTROLLER: &str = "sheave.io/agent";
/// How long the API server has for one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// What the API server takes of `note`, in bytes.
const LONGEST_NOTE: usize = 1024;
/// What an Event's name has of the object's: names are limited to 253 bytes.
const LONGEST_NAME: usize = 200;

/// Sends what comes until nothing can come any more.
pub(super) async fn deliver(client: Client, node: String, mut tellings: mpsc::Receiver<Telling>) {
    let mut refused = None;
    while let Some(telling) = tellings.recv().await {
        let mut pause = Duration::from_secs(1);
        loop {
            match send(&client, &node, &telling).await {
                Ok(()) => refused = None,
                Err(Failed::ForNow(why)) => {
                    debug!("Event about {}: {why}; trying again", telling.notice.regarding);
                    tokio::time::sleep(pause.mul_f64(0.5 + crate::observe::chance() / 2.0)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
                Err(Failed::ForGood(code, why)) => {
                    if refused.replace(code) == Some(code) {
                        debug!("Event about {}: {why}", telling.notice.regarding);
                    } else {
                        warn!("Event about {} is not taken: {why}", telling.notice.regarding);
                    }
                }
            }
            break;
        }
    }
}

/// Why an Event was not sent.
enum Failed {
    /// The API server is away, busy, or does not know us at the moment.
    ForNow(String),
    /// It does not take this one (HTTP status).
    ForGood(u16, String),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(status) if matches!(status.code, 400 | 403..=428 | 430..=499) => {
                Self::ForGood(status.code, status.message)
            }
            // It was taken, and the answer is not understood.
            Error::SerdeError(error) => Self::ForGood(200, error.to_string()),
            other => Self::ForNow(other.to_string()),
        }
    }
}

async fn send(client: &Client, node: &str, telling: &Telling) -> Result<(), Failed> {
    let late = |_| Failed::ForNow(format!("no answer within {LIMIT:?}"));
    let Some(uid) =
        tokio::time::timeout(LIMIT, uid(client, &telling.notice.regarding)).await.map_err(late)??
    else {
        return Ok(());
    };
    tokio::time::timeout(LIMIT, put(client, &event(node, uid, telling), telling)).await.map_err(late)?
}

/// A new Event, or one more in the series of the one that is there.
async fn put(client: &Client, event: &Event, telling: &Telling) -> Result<(), Failed> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
    let name = event.metadata.name.as_deref().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let is =
        |result: &Result<_, Error>, code| matches!(result, Err(Error::Api(status)) if status.code == code);

    let series = EventSeries {
        // The API server takes 2 for the least that makes a series.
        count: i32::try_from(telling.count.max(2)).unwrap_or(i32::MAX),
        last_observed_time: time(telling),
    };
    let series = Patch::Merge(serde_json::json!({ "series": series }));
    let more = async || events.patch_metadata(name, &PatchParams::default(), &series).await.map(drop);
    let first = async || events.create(&PostParams::default(), event).await.map(drop);

    if telling.again {
        let patched = more().await;
        // It is kept for an hour.
        if is(&patched, 404) { first().await } else { patched }
    } else {
        let created = first().await;
        if is(&created, 409) { more().await } else { created }
    }
    .map_err(Failed::from)
}

/// What an object is told apart by from others of its name before and after it; `None` if it is gone.
///
/// `kubectl describe` asks for it. For a Node it is its name, as it is in kubelet's Events.
async fn uid(client: &Client, regarding: &ObjectKey) -> Result<Option<Option<String>>, Failed> {
    let found = match regarding {
        ObjectKey::Service(name) => Api::<Service>::namespaced(client.clone(), &name.namespace)
            .get_metadata_opt(&name.name)
            .await
            .map(|found| found.map(|object| object.metadata.uid)),
        ObjectKey::EndpointSlice(name) => Api::<EndpointSlice>::namespaced(client.clone(), &name.namespace)
            .get_metadata_opt(&name.name)
            .await
            .map(|found| found.map(|object| object.metadata.uid)),
        ObjectKey::Node(name) => Ok(Some(Some(name.to_string()))),
        ObjectKey::ServiceCidr(_) => Ok(Some(None)),
    };
    match found {
        // Without the permission an Event can be had all the same.
        Err(Error::Api(status)) if status.code == 403 => Ok(Some(None)),
        other => Ok(other?),
    }
}

pub(super) fn event(node: &str, uid: Option<String>, telling: &Telling) -> Event {
    let Notice { regarding, kind, reason, action, message, known_by } = &*telling.notice;
    let (api_version, object_kind, namespace, name) = match regarding {
        ObjectKey::Service(name) => ("v1", "Service", Some(&name.namespace), &name.name),
        ObjectKey::EndpointSlice(name) => {
            ("discovery.k8s.io/v1", "EndpointSlice", Some(&name.namespace), &name.name)
        }
        ObjectKey::Node(name) => ("v1", "Node", None, name),
        ObjectKey::ServiceCidr(name) => ("networking.k8s.io/v1", "ServiceCIDR", None, name),
    };
    let teller = match known_by {
        KnownBy::Everyone => "",
        KnownBy::ThisNode => node,
    };
    let object = regarding.to_string();
    let hash = hash::of([&object, uid.as_deref().unwrap_or_default(), reason, message, teller]);
    Event {
        metadata: ObjectMeta {
            // Of what has no namespace, Events are in this one.
            namespace: Some(namespace.map_or("default", |namespace| &**namespace).to_owned()),
            name: Some(format!("{}.{hash:016x}", start_of(name, LONGEST_NAME).trim_end_matches(['.', '-']))),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some(api_version.into()),
            kind: Some(object_kind.into()),
            namespace: namespace.map(ToString::to_string),
            name: Some(name.to_string()),
            uid,
            ..ObjectReference::default()
        }),
        type_: Some(
            match kind {
                Kind::Normal => "Normal",
                Kind::Warning => "Warning",
            }
            .into(),
        ),
        reason: Some((*reason).into()),
        action: Some((*action).into()),
        note: Some(note(message)),
        event_time: Some(time(telling)),
        reporting_controller: Some(CONTROLLER.into()),
        reporting_instance: Some(start_of(node, 128).into()),
        ..Event::default()
    }
}

fn note(message: &str) -> String {
    const MORE: &str = " …";
    if message.len() <= LONGEST_NOTE {
        return message.into();
    }
    start_of(message, LONGEST_NOTE - MORE.len()).to_owned() + MORE
}

/// The start of a text, of at most that many bytes.
fn start_of(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rfind(|end| text.is_char_boundary(*end)).unwrap_or_default();
    &text[..end]
}

fn time(telling: &Telling) -> MicroTime {
    // A clock beyond the year 9999 is out of what can be told.
    MicroTime(Timestamp::try_from(telling.at).unwrap_or(Timestamp::MAX))
}
