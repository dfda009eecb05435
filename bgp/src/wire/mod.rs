//! Messages and bytes.

mod notification;

pub use notification::{Cease, Notification};
