//! Objects with something in them that cannot be read, without that.
//!
//! An API server holds what an older one accepted and what a newer one knows: one such value must not cost the whole object.
//! What may be missing is listed here; without it the object asks for less, is reached by fewer, or is as by default. Anything
//! else keeps the object from being used, and so does any such value in a manifest file, where it is a typing error.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use serde_path_to_error::Segment;

use super::item::Unreadable;
use super::resource::Resource;

/// An object with more than that is no object with an exception in it.
const MOST: usize = 16;

/// What may be left out, as paths; `*` is any index, and what comes after `!` is what has to be wrong in it. An unknown `type` of
/// a Service counts as ClusterIP: no node ports, no load balancer. An ingress of an unknown `ipMode` is not ours to bind. A
/// port of an unknown protocol never was ours; without its number, what is served there now would end.
fn dispensable(resource: Resource) -> &'static [&'static [&'static str]] {
    match resource {
        Resource::Services => &[
            &["spec", "externalIPs", "*"],
            &["spec", "externalTrafficPolicy"],
            &["spec", "healthCheckNodePort"],
            &["spec", "internalTrafficPolicy"],
            &["spec", "loadBalancerSourceRanges", "*"],
            &["spec", "ports", "*", "!", "protocol"],
            &["spec", "sessionAffinity"],
            &["spec", "sessionAffinityConfig"],
            &["spec", "type"],
            &["status", "loadBalancer", "ingress", "*"],
        ],
        // Not an endpoint: one that is gone by mistake is worse than what was known before.
        Resource::EndpointSlices => &[&["endpoints", "*", "hints"], &["ports", "*", "!", "protocol"]],
        Resource::Nodes => &[&["status", "addresses", "*"], &["spec", "podCIDR"], &["spec", "podCIDRs", "*"]],
        Resource::ServiceCidrs => &[&["spec", "cidrs", "*"]],
    }
}

/// Reads an object, without what is wrong and dispensable; tells the first such thing.
///
/// # Errors
/// What is wrong and not dispensable.
pub(super) fn read<T: DeserializeOwned>(
    resource: Resource,
    json: &RawValue,
) -> Result<(T, Option<Unreadable>), Unreadable> {
    // The path is wanted only of what is wrong, which is rare: to keep track of it takes time.
    if let Ok(object) = serde_json::from_str(json.get()) {
        return Ok((object, None));
    }
    // It is JSON, or it would not have come here.
    let mut value: Value = serde_json::from_str(json.get()).unwrap_or_default();
    let mut left_out: Option<Unreadable> = None;
    for _ in 0..=MOST {
        let error = match serde_path_to_error::deserialize(&value) {
            Ok(object) => return Ok((object, left_out)),
            Err(error) => error,
        };
        let field = error.path().to_string();
        let wrong = Unreadable {
            field: if field == "." { String::new() } else { field },
            message: error.inner().to_string(),
        };
        let path: Vec<&Segment> = error.path().iter().collect();
        if !dispensable(resource).iter().any(|pattern| remove(&mut value, &path, pattern)) {
            return Err(wrong);
        }
        left_out.get_or_insert(wrong);
    }
    Err(left_out.unwrap_or_default())
}

/// Removes what the pattern means, if the path leads there or into it.
fn remove(value: &mut Value, path: &[&Segment], pattern: &[&str]) -> bool {
    match (value, path, pattern) {
        (Value::Object(map), [Segment::Map { key }, ..], [name]) if key == name => map.remove(key).is_some(),
        // Source ranges none of which is left would let everyone in.
        (Value::Object(map), [Segment::Map { key }, rest @ ..], [name, inner @ ..]) if key == name => {
            let alone = |value: &Value| value.as_array().is_some_and(|items| items.len() == 1);
            match map.get_mut(key) {
                Some(only) if key == "loadBalancerSourceRanges" && alone(only) => false,
                Some(value) => remove(value, rest, inner),
                None => false,
            }
        }
        (Value::Array(items), [Segment::Seq { index }, ..], ["*"]) if *index < items.len() => {
            items.remove(*index);
            true
        }
        (Value::Array(items), [Segment::Seq { index }, Segment::Map { key }, ..], ["*", "!", name])
            if *index < items.len() && key == name =>
        {
            items.remove(*index);
            true
        }
        (Value::Array(items), [Segment::Seq { index }, rest @ ..], ["*", inner @ ..]) => {
            items.get_mut(*index).is_some_and(|value| remove(value, rest, inner))
        }
        _ => false,
    }
}
