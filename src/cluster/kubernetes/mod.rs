//! The API server of a cluster as a source.
//!
//! ```text
//!                 ┌ services ───────┐
//! API server ◄────┼ endpointslices ─┼── Follower: ask ► answer ► Head + Object ► Ledger ──► Outlet ──► events
//!                 ├ nodes ──────────┤       ▲                                │
//!                 └ servicecidrs ───┘       └──── Reflector: what next? ◄────┘
//! ```
//!
//! Each resource is listed, as a stream where the server can do that and in pages otherwise, and then watched. Objects
//! are read straight into their slim form and told; only names are kept here. What a list has is told when it is
//! complete, in one batch with what has vanished: until then, and as long as the server is away, what was told before
//! stays in force.
//!
//! # Why not kube's `watcher`
//! The client is kube's, its `runtime::watcher` is not used: it begins a streaming list at version 0, whereupon a server
//! that lags behind takes the state back in time; an event that is not JSON is skipped and its change lost; a
//! `Retry-After` header does not reach the caller; a list on a connection that died without a word is waited for without
//! end; and what does not parse is logged in full.
//!
//! # What it costs
//! A server that is gone without closing the connection is noticed by TCP within [`connect`]'s keep-alive times, which
//! costs it nothing; one that keeps the connection but is silent, at the end of the watch's time ([`Pace::watch`]).
//! Four watches of 90 to 120 s per node are 38 short requests per second with 1,000 nodes.

mod chance;
mod connect;
mod follower;
mod item;
mod ledger;
mod lines;
mod message;
mod outlet;
mod pauses;
mod reflector;
mod repair;
mod resource;
mod token;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use self::follower::Follower;
use self::outlet::Outlet;
use self::resource::Resource;
use super::Event;

pub use connect::{ConnectError, connect};

/// How long things may take, and how often they are tried. The default suits a cluster.
#[derive(Clone, Debug)]
pub struct Pace {
    /// How long a watch is asked to last, in whole seconds; lengthened by chance by up to a third.
    pub watch: Duration,
    /// How much longer than asked a watch may last before its connection counts as dead.
    pub grace: Duration,
    /// How long an answer may take to begin, and the pauses within the answer to a list.
    pub answer: Duration,
    /// How long a streaming list may pause before it counts as none.
    pub quiet: Duration,
    /// For how long lists come in pages after a server did not know streaming ones.
    pub streaming_again: Duration,
    /// The pause after a failure, doubled with each in a row.
    pub first_pause: Duration,
    /// The longest such pause.
    pub longest_pause: Duration,
    /// A server that was away for that long may be another one, of a restored cluster, where the version that is known
    /// means something else: everything is listed anew.
    pub relist_after: Duration,
    /// How often is looked whether a resource is served now that was not.
    pub not_served: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            watch: Duration::from_secs(90),
            grace: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            quiet: Duration::from_secs(10),
            streaming_again: Duration::from_secs(3600),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            relist_after: Duration::from_secs(60),
            not_served: Duration::from_secs(600),
        }
    }
}

/// Starts to follow Services, EndpointSlices, Nodes and ServiceCIDRs, on the runtime that this is called on. Tells all
/// there is, resource by resource, then [`Event::Synced`], then every change. Ends when the receiver is gone.
pub fn follow(client: &kube::Client, pace: &Pace, events: UnboundedSender<Vec<Event>>) -> JoinHandle<()> {
    let outlet = Arc::new(Outlet::new(events));
    let [services, slices, nodes, cidrs] = Resource::ALL
        .map(|resource| Follower::new(client.clone(), resource, pace.clone(), outlet.clone()).run());
    tokio::spawn(async move {
        tokio::join!(services, slices, nodes, cidrs);
    })
}
