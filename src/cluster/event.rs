//! What a source tells the owner of the [`Index`](super::Index).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::{EndpointSlice, Node, Service, ServiceCidr, ServiceName, SliceName};

/// An object of one of the kinds that matter. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A Node.
    Node(Arc<Node>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<ServiceCidr>),
}

impl Object {
    /// Its kind and name.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Service(service) => ObjectKey::Service(service.name.clone()),
            Self::EndpointSlice(slice) => ObjectKey::EndpointSlice(slice.name.clone()),
            Self::Node(node) => ObjectKey::Node(node.name.clone()),
            Self::ServiceCidr(cidr) => ObjectKey::ServiceCidr(cidr.name.clone()),
        }
    }
}

/// Kind and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// A Service.
    Service(ServiceName),
    /// An EndpointSlice.
    EndpointSlice(SliceName),
    /// A Node.
    Node(Arc<str>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<str>),
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::EndpointSlice(SliceName { namespace, name }) => {
                write!(f, "EndpointSlice {namespace}/{name}")
            }
            Self::Node(name) => write!(f, "Node {name}"),
            Self::ServiceCidr(name) => write!(f, "ServiceCIDR {name}"),
        }
    }
}

/// Something of the source that cannot be used; prints as `FILE:LINE: field: message` or `Service a/b: field: message`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// Path of the field, for example `items[3].spec.ports[0].port`; empty where none is meant.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What it keeps from being used is an error; a warning tells which of two things is used.
    pub severity: Severity,
}

/// Where a [`Problem`] is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file, or with a directory.
    File {
        /// Its path.
        path: PathBuf,
        /// The line, from 1, where known.
        line: Option<u64>,
    },
    /// In an object of the API server.
    Object(ObjectKey),
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something is not used, or only as it was before.
    Error,
    /// Everything is used that can be.
    Warning,
}

impl Problem {
    /// Whether objects may be missing because of it that someone will mend: what is wrong in a file hides what it is meant to
    /// say until then, while an API server's object is a problem of itself alone, for as long as its owner likes.
    pub fn may_hide_objects(&self) -> bool {
        self.severity == Severity::Error && matches!(self.place, Place::File { .. })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { path, line: None } => write!(f, "{}", path.display())?,
            Place::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display())?,
            Place::Object(key) => write!(f, "{key}")?,
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// How a source stands with one of the resources it follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The resource's name as in API paths: `services`, `endpointslices`, `nodes`, `servicecidrs`.
    pub resource: &'static str,
    /// How it stands.
    pub state: WatchState,
}

/// State of a [`Watch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchState {
    /// Everything there is is being read; what was told before stays in force until that is complete.
    Listing,
    /// Changes are told as they happen.
    Watching,
    /// The server does not have this resource: there is nothing to tell.
    NotServed,
    /// Nothing is heard; what was told before stays in force.
    Down {
        /// Since when.
        since: SystemTime,
        /// Why, as of the last attempt; never holds a credential.
        error: String,
    },
}

/// One thing that a source tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An object is new or changed.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectKey),
    /// Everything that there is at the start has been told: from now on, absent means absent.
    Synced,
    /// These are the problems now, in place of all told before.
    Problems(Vec<Problem>),
    /// How it stands with a resource now, in place of what was told of that resource before. Told when it changes.
    Watch(Watch),
    /// What is told beside this was set off then (`endpoints.kubernetes.io/last-change-trigger-time` of an
    /// EndpointSlice that changed while it was watched; never of one that was listed).
    TriggeredAt(SystemTime),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wrong_in_files_may_hide_objects() {
        let file = || Place::File { path: "web.yaml".into(), line: None };
        let object = || Place::Object(ObjectKey::Node("a".into()));
        for (place, severity, hides) in [
            (file(), Severity::Error, true),
            (file(), Severity::Warning, false),
            (object(), Severity::Error, false),
            (object(), Severity::Warning, false),
        ] {
            let problem = Problem { place, field: String::new(), message: String::new(), severity };
            assert_eq!(problem.may_hide_objects(), hides, "{problem:?}");
        }
    }
}
