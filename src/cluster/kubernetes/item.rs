//! One object as it came: who it is, and what it says or why that cannot be told.
//!
//! Reading an object never fails. Its head is read first and apart from the rest, so that an object of a form that
//! nobody expected still has its name: it is a problem of its own then, and of nothing else.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::SystemTime;

use foldhash::HashSet;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::repair;
use super::resource::Resource;
use crate::cluster::wire::{WireEndpointSlice, WireNode, WireService, WireServiceCidr};
use crate::cluster::{EndpointSlice, Object, ObjectKey, Service};

const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Name of an object that has none; the API server lets no such object exist.
const UNNAMED: &str = "(unnamed)";

/// What an object's `metadata` says of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) key: ObjectKey,
    /// `resourceVersion`, where there is one.
    pub(super) version: Option<String>,
    /// Hash of its text: objects of the same text are the same.
    pub(super) text: u64,
    /// When the change began that led to this version, as the endpointslice controller tells.
    pub(super) triggered: Option<SystemTime>,
}

/// An object and what of it is left out, or why it cannot be used.
pub(super) type Content = Result<(Object, Option<Unreadable>), Unreadable>;

/// What of an object cannot be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// Path of the field within the object; empty where none is meant.
    pub(super) field: String,
    pub(super) message: String,
}

#[derive(Deserialize)]
struct WireHead<'a> {
    #[serde(borrow)]
    metadata: WireMetadata<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMetadata<'a> {
    name: Arc<str>,
    #[serde(default)]
    namespace: Option<Arc<str>>,
    #[serde(default, borrow)]
    resource_version: Option<&'a RawValue>,
    #[serde(default, borrow)]
    annotations: Option<&'a RawValue>,
}

impl Head {
    /// Reads the head of an object.
    pub(super) fn read(resource: Resource, json: &RawValue, names: &mut Names) -> Self {
        let text = names.hash(json.get());
        let Ok(WireHead { metadata }) = serde_json::from_str::<WireHead<'_>>(json.get()) else {
            return Self {
                key: resource.key(None, Arc::from(UNNAMED)),
                version: None,
                text,
                triggered: None,
            };
        };
        let WireMetadata { name, mut namespace, resource_version, annotations } = metadata;
        if let Some(namespace) = &mut namespace {
            names.share(namespace);
        }
        let version = resource_version.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        let annotations = annotations
            .filter(|raw| resource == Resource::EndpointSlices && raw.get().contains(TRIGGER_ANNOTATION));
        Self {
            key: resource.key(namespace, name),
            text,
            version: version.filter(|version| !version.is_empty()),
            triggered: annotations.and_then(triggered),
        }
    }
}

/// The trigger time of an EndpointSlice's annotations.
fn triggered(annotations: &RawValue) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Annotations {
        #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
        time: String,
    }
    let Annotations { time } = serde_json::from_str(annotations.get()).ok()?;
    humantime::parse_rfc3339(&time).ok()
}

/// Reads an object, without anything in it that is held twice or for nothing.
pub(super) fn read(resource: Resource, json: &RawValue, names: &mut Names) -> Content {
    Ok(match resource {
        Resource::Services => {
            let (wire, left_out) = repair::read::<WireService>(resource, json)?;
            let mut service: Service = match wire.try_into() {
                Ok(service) => service,
                // It may be that what is missing was left out.
                Err(message) => {
                    let missing =
                        |message: &str| Unreadable { field: String::new(), message: message.to_owned() };
                    return Err(left_out.unwrap_or_else(|| missing(message)));
                }
            };
            names.share(&mut service.name.namespace);
            service.cluster_ips.shrink_to_fit();
            service.external_ips.shrink_to_fit();
            service.load_balancer_ips.shrink_to_fit();
            service.source_ranges.shrink_to_fit();
            service.ports.shrink_to_fit();
            for port in &mut service.ports {
                port.name.iter_mut().for_each(|name| names.share(name));
            }
            (Object::Service(Arc::new(service)), left_out)
        }
        Resource::EndpointSlices => {
            let (wire, left_out) = repair::read::<WireEndpointSlice>(resource, json)?;
            let mut slice = wire.into();
            tidy(&mut slice, names);
            (Object::EndpointSlice(Arc::new(slice)), left_out)
        }
        Resource::Nodes => {
            let (wire, left_out) = repair::read::<WireNode>(resource, json)?;
            (Object::Node(Arc::new(wire.into())), left_out)
        }
        Resource::ServiceCidrs => {
            let (wire, left_out) = repair::read::<WireServiceCidr>(resource, json)?;
            (Object::ServiceCidr(Arc::new(wire.into())), left_out)
        }
    })
}

/// Slices are most of what there is: names that repeat are shared, and no list keeps room that it does not use.
fn tidy(slice: &mut EndpointSlice, names: &mut Names) {
    names.share(&mut slice.name.namespace);
    if let Some(service) = &mut slice.service {
        names.share(&mut service.namespace);
    }
    slice.ports.shrink_to_fit();
    for port in &mut slice.ports {
        port.name.iter_mut().for_each(|name| names.share(name));
    }
    slice.endpoints.shrink_to_fit();
    for endpoint in &mut slice.endpoints {
        endpoint.node.iter_mut().for_each(|name| names.share(name));
        if let Some(hints) = &mut endpoint.hints {
            hints.zones.iter_mut().chain(&mut hints.nodes).for_each(|name| names.share(name));
        }
    }
}

/// Names that many objects mention, each held once.
#[derive(Debug, Default)]
pub(super) struct Names {
    held: HashSet<Arc<str>>,
    /// At this number, those that nobody else holds any more are forgotten.
    limit: usize,
}

impl Names {
    const LEAST: usize = 1024;

    /// Hash of a text, by a secret that others do not know and that stays the same.
    fn hash(&self, text: &str) -> u64 {
        self.held.hasher().hash_one(text)
    }

    /// Replaces a name by the one that is held already.
    fn share(&mut self, name: &mut Arc<str>) {
        if let Some(held) = self.held.get(name) {
            *name = held.clone();
            return;
        }
        if self.held.len() >= self.limit {
            self.held.retain(|name| Arc::strong_count(name) > 1);
            self.limit = Self::LEAST.max(self.held.len() * 2);
        }
        self.held.insert(name.clone());
    }
}
