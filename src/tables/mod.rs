//! Kernel routing tables, both ways.
//!
//! ```text
//! tables of others ──notifications, dumps──► [follow] ──► Book ──News──► Planner ──► announcements of kind Kernel
//! what is announced ─────────────────────────────────────────────────► [ExportTable] ──► a table that the node's own BIRD or
//!                                                                                        FRR announces
//! what peers announce ──import policies, decision──► LearntRoutes ──► [Importer] ──► the main table, or another
//! links, main table ──notifications, dumps──► [follow_links] ──► Surroundings: which next hops are reached, where peers are
//! ```
//!
//! In: routes that others (Coil, an operator) put into tables of their own are announced as long as they are there. Nothing is
//! polled: the kernel tells of each change, and what a change costs does not depend on what there is; a table is listed
//! at the start, when the kernel had to leave out notifications, and when one leaves open what it did to a prefix with several routes
//! ([`Book`]).
//!
//! Out: where a node has a routing daemon of its own, it gets what would be announced as routes of our protocol number in a table
//! that nothing is forwarded by.
//!
//! Learnt: what peers announce and their policies let in becomes routes of another protocol number, to several next hops where
//! several are as good.

mod book;
mod export;
mod follow;
mod import;
mod importer;
mod multipath;
mod route;
mod surroundings;

use ipnet::IpNet;

pub use export::ExportTable;
pub use follow::{Following, follow};
pub use import::{ImportCounts, ImportTable, remove_imported};
pub use importer::{ImportState, Importer, Imports};
pub use surroundings::{FollowingLinks, Gateway, Surroundings, follow_links};

/// What became different in the tables that are followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Prefixes that have routes now.
    pub came: Vec<IpNet>,
    /// Prefixes that have none any more.
    pub gone: Vec<IpNet>,
}
