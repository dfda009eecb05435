//! What this node tells of itself.

pub mod events;
pub mod status;
