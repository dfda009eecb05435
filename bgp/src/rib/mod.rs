//! Routes: what is to be announced and what each peer has been told.

use ipnet::IpNet;

use crate::Attributes;

/// A change to what is announced. A prefix in both lists ends up withdrawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteChanges {
    /// Routes that are new or whose attributes changed.
    pub announce: Vec<(IpNet, Attributes)>,
    /// Routes that are no more.
    pub withdraw: Vec<IpNet>,
}
