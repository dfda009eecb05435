//! What a source tells the owner of the [`Index`](super::Index).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::{EndpointSlice, Node, Service, ServiceName, SliceName};

/// An object of one of the kinds that matter. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A Node.
    Node(Arc<Node>),
}

impl Object {
    /// Its kind and name.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Service(service) => ObjectKey::Service(service.name.clone()),
            Self::EndpointSlice(slice) => ObjectKey::EndpointSlice(slice.name.clone()),
            Self::Node(node) => ObjectKey::Node(node.name.clone()),
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
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::EndpointSlice(SliceName { namespace, name }) => {
                write!(f, "EndpointSlice {namespace}/{name}")
            }
            Self::Node(name) => write!(f, "Node {name}"),
        }
    }
}

/// Something of the source that cannot be used; prints as `FILE:LINE: field: message`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file (or directory).
    pub file: PathBuf,
    /// The line, from 1, where known.
    pub line: Option<u64>,
    /// Path of the field, for example `items[3].spec.ports[0].port`; empty where none is meant.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What it keeps from being used is an error; a warning tells which of two things is used.
    pub severity: Severity,
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something is not used, or only as it was before.
    Error,
    /// Everything is used that can be.
    Warning,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
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
}
