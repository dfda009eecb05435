//! A small BGP-4 speaker: announces routes of its own to any number of peers, and decides which of theirs are used.
//!
//! ```text
//!            set_peers, update, status, shutdown
//!                           │
//!   runtime    ┌────────────▼────────────┐     the only module that knows sockets, tasks and the clock
//!              │ Speaker ── task per peer│
//!              └──┬──────────────────┬───┘
//!   session     events            changes       rib
//!   one peer:  ┌──▼───────┐  ┌───────▼──────────────────┐
//!   FSM, timers│ Session  │  │ Loc-RIB ─► Adj-RIB-Out   │  what each peer has been told, and has yet to be
//!              └──┬───────┘  └───────┬──────────────────┘
//!              OPEN, KEEPALIVE,…   UPDATE
//!   wire       ┌──▼──────────────────▼───┐
//!              │ messages ⇄ bytes        │     RFC 4271 and friends, RFC 7606 for what is malformed
//!              └─────────────────────────┘
//! ```
//!
//! `bmp` makes messages for monitoring stations of what happens above `wire`; `runtime` sends them.
//!
//! `discovery` finds the peers at the other ends of links; `runtime` has the sockets it takes.
//!
//! `wire`, `session`, `rib`, `bmp` and `discovery` are sans-IO: bytes and the time come in as arguments, bytes and actions come
//! out, so whole networks of sessions run in a deterministic simulation. They must not read a clock
//! (`Instant::now`), open sockets or spawn tasks; only `runtime` may.

pub mod bfd;
pub mod bmp;
pub mod discovery;
pub mod rib;
pub mod runtime;
pub mod session;
pub mod wire;

mod attributes;
mod family;

pub use attributes::{Attributes, Community, ExtendedCommunity, LargeCommunity, ParseCommunityError};
pub use family::{Families, Family};
pub use rib::{
    ExportPolicy, FamilyCounts, ImportPolicy, LearntChange, LimitAction, Links, MaxPrefixes, NextHop,
    PrefixFilter, RouteChanges, is_routable,
};
pub use runtime::{
    Bfd, BfdPeer, BfdSession, BfdStatus, BmpCounters, BmpStation, BmpStationStatus, BmpTables, Counters,
    DynamicPeers, DynamicPeersStatus, GracefulRestart, LearntRoutes, LearntStatus, LinkStatus, Password,
    PasswordLength, PeerBfd, PeerConfig, PeerStatus, RouterDiscovery, Shutdown, Speaker, SpeakerConfig,
    SpeakerStatus, StartError,
};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
