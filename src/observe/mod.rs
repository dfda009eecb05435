//! What this node tells of itself.

pub mod status;
