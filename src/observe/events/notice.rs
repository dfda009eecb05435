//! What there is to tell.

use crate::cluster::{ObjectKey, Place, Problem, ServiceName};
use crate::plan::{DRAIN_ASKED, EXCLUDED_FROM_LOAD_BALANCERS, Warning};

/// What an Event says, apart from when and how often.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Notice {
    /// The object it is about.
    pub regarding: ObjectKey,
    /// `type`.
    pub kind: Kind,
    /// `reason`: a word for machines, CamelCase.
    pub reason: &'static str,
    /// `action`: what was done, or tried, when it came up.
    pub action: &'static str,
    /// `note`: what is the matter and what to do about it.
    pub message: String,
    /// Who knows.
    pub known_by: KnownBy,
}

/// `type` of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// As it should be.
    Normal,
    /// Somebody should do something.
    Warning,
}

/// Which agents know a [`Notice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KnownBy {
    /// All of them, since all read the same objects: one tells.
    Everyone,
    /// This node's agent alone.
    ThisNode,
}

impl Notice {
    /// A warning of the plan; `None` for one that is about no object, such as the config: the log and `status` have it.
    pub fn of_warning(warning: Warning) -> Option<Self> {
        let Warning { object, reason, message } = warning;
        Some(Self {
            regarding: regarding(&object)?,
            kind: match reason {
                // That is as its owner wants it.
                DRAIN_ASKED | EXCLUDED_FROM_LOAD_BALANCERS => Kind::Normal,
                _ => Kind::Warning,
            },
            reason,
            action: "Plan",
            message,
            known_by: KnownBy::Everyone,
        })
    }

    /// Something of an object that cannot be used; `None` for a file.
    pub fn of_problem(problem: &Problem) -> Option<Self> {
        let Problem { place, field, message, severity: _ } = problem;
        let Place::Object(regarding) = place else { return None };
        let separator = if field.is_empty() { "" } else { ": " };
        Some(Self {
            regarding: regarding.clone(),
            kind: Kind::Warning,
            reason: "InvalidObject",
            action: "Read",
            message: format!("{field}{separator}{message}"),
            known_by: KnownBy::Everyone,
        })
    }

    /// Something about the node that the agent runs on.
    pub fn of_node(
        node: &str,
        kind: Kind,
        reason: &'static str,
        action: &'static str,
        message: String,
    ) -> Self {
        let regarding = ObjectKey::Node(node.into());
        Self { regarding, kind, reason, action, message, known_by: KnownBy::ThisNode }
    }
}

/// The object that a [`Warning`] names.
fn regarding(object: &str) -> Option<ObjectKey> {
    let (kind, name) = object.split_once(' ')?;
    match kind {
        "Service" => {
            let (namespace, name) = name.split_once('/')?;
            Some(ObjectKey::Service(ServiceName { namespace: namespace.into(), name: name.into() }))
        }
        "Node" => Some(ObjectKey::Node(name.into())),
        _ => None,
    }
}
