//! Routes as Route Monitoring messages (RFC 7854 §4.6): UPDATEs as full as they get.

use std::time::Duration;

use super::{View, route_monitoring};
use crate::Family;
use crate::wire::pack::{Announcement, write_end_of_rib, write_withdrawal};
use crate::wire::{Context, Nlri};

/// Appends that `prefixes` are announced so, in the words of the session that the table belongs to.
pub fn announcements<P: Into<Nlri> + Copy>(
    view: View,
    announcement: &Announcement,
    prefixes: impl IntoIterator<Item = P>,
    at: Duration,
    out: &mut Vec<u8>,
) {
    let mut prefixes = prefixes.into_iter().peekable();
    let mut update = Vec::new();
    while announcement.write(&mut prefixes, &mut update) > 0 {
        route_monitoring(view, &update, at, out);
        update.clear();
    }
}

/// Appends that `prefixes` of `family` are in the table no more.
pub fn withdrawals<P: Into<Nlri> + Copy>(
    view: View,
    family: Family,
    prefixes: impl IntoIterator<Item = P>,
    context: Context,
    at: Duration,
    out: &mut Vec<u8>,
) {
    let mut prefixes = prefixes.into_iter().peekable();
    let mut update = Vec::new();
    while write_withdrawal(family, context, &mut prefixes, &mut update) > 0 {
        route_monitoring(view, &update, at, out);
        update.clear();
    }
}

/// Appends that all routes of `family` have been told (RFC 7854 §5).
pub fn end_of_rib(view: View, family: Family, at: Duration, out: &mut Vec<u8>) {
    let mut update = Vec::new();
    write_end_of_rib(family, &mut update);
    route_monitoring(view, &update, at, out);
}
