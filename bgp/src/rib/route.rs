//! A route as the Loc-RIB has it: one of ours, or one that is passed on from peer to peer (RFC 4456).

use std::net::IpAddr;
use std::sync::Arc;

use super::interned::Interned;
use crate::Attributes;
use crate::wire::PathAttributes;

/// What a prefix is announced with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// Of this speaker, which is its next hop. Its [kind](Attributes::kind) is kept apart, so that what peers are told in the same words
    /// is one route.
    Own(Attributes),
    /// Of one internal peer, for others.
    Reflected(Reflected),
}

/// A route that is passed on within the AS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reflected {
    /// The peer that it came from.
    pub from: IpAddr,
    /// That peer is a client of this reflector.
    pub of_client: bool,
    /// Where packets go: as it came.
    pub next_hop: IpAddr,
    /// All else as it is to be sent, with ORIGINATOR_ID and CLUSTER_LIST; but for NEXT_HOP.
    pub attributes: PathAttributes,
}

impl Route {
    /// Whether this speaker is its origin.
    pub fn is_own(&self) -> bool {
        matches!(self, Route::Own(_))
    }
}

/// What the Loc-RIB has for a prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    /// The kind of a route of our own; others have none.
    pub(super) kind: u8,
    pub(super) route: &'a Arc<Route>,
}

/// Every route in use, once.
pub(super) type Routes = Interned<Route>;
