//! GET, POST and PATCH of one object.

use serde_json::Value;

use crate::api::Shared;
use crate::resource::{Resource, Target};
use crate::status::Status;
use crate::store::key;

/// Answers a GET.
pub(crate) fn get(shared: &Shared, resource: Resource, target: &Target) -> Result<String, Status> {
    let key = key(resource, target.namespace.as_deref(), target.name.as_deref().unwrap_or_default());
    let store = shared.store();
    let object = store.object(resource, &key).ok_or_else(|| Status::no_object(target))?;
    Ok(object.json(resource))
}

/// Answers a POST.
pub(crate) fn create(
    shared: &Shared,
    resource: Resource,
    target: &Target,
    body: &[u8],
) -> Result<String, Status> {
    let mut value = parse(body)?;
    let metadata = value.get_mut("metadata").and_then(Value::as_object_mut);
    let metadata = metadata.ok_or_else(|| Status::bad_request("metadata is missing"))?;
    if let Some(namespace) = &target.namespace {
        let named = metadata.entry("namespace").or_insert_with(|| namespace.as_str().into());
        if named != namespace.as_str() {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    let mut store = shared.store();
    if let Some(prefix) = metadata.get("generateName").and_then(Value::as_str)
        && !metadata.contains_key("name")
    {
        let name = format!("{prefix}{:05}", store.revision());
        metadata.insert("name".into(), name.into());
    }
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(Status::bad_request("metadata.name: Required value: name or generateName is required"));
    }
    if store.object(resource, &key(resource, target.namespace.as_deref(), &name)).is_some() {
        return Err(Status::already_exists(&Target { name: Some(name), ..target.clone() }));
    }
    let object = store.apply(resource, value).map_err(|error| Status::bad_request(format!("{error:#}")))?;
    drop(store);
    shared.announce();
    Ok(object.json(resource))
}

/// Answers a PATCH. Lists are replaced, also by a strategic merge patch: enough for maps such as annotations.
pub(crate) fn patch(
    shared: &Shared,
    resource: Resource,
    target: &Target,
    content_type: &str,
    body: &[u8],
) -> Result<String, Status> {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !matches!(media_type, "application/merge-patch+json" | "application/strategic-merge-patch+json") {
        return Err(Status::unsupported_media_type());
    }
    let patch = parse(body)?;
    let key = key(resource, target.namespace.as_deref(), target.name.as_deref().unwrap_or_default());
    let mut store = shared.store();
    let object = store.object(resource, &key).ok_or_else(|| Status::no_object(target))?;
    let mut value = object.value(resource);
    let based_on = patch["metadata"].get("resourceVersion");
    if based_on.is_some_and(|version| *version != value["metadata"]["resourceVersion"]) {
        return Err(Status::conflict(target));
    }
    merge(&mut value, patch);
    let object = store.apply(resource, value).map_err(|error| Status::bad_request(format!("{error:#}")))?;
    drop(store);
    shared.announce();
    Ok(object.json(resource))
}

fn parse(body: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(body)
        .map_err(|error| Status::bad_request(format!("the body of the request is not JSON: {error}")))
}

/// RFC 7396.
fn merge(value: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *value = patch;
        return;
    };
    if !value.is_object() {
        *value = Value::Object(serde_json::Map::new());
    }
    let Some(object) = value.as_object_mut() else { return };
    for (key, patch) in patch {
        if patch.is_null() {
            object.remove(&key);
        } else {
            merge(object.entry(key).or_insert(Value::Null), patch);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_patches() {
        // The cases of RFC 7396, appendix A.
        for (value, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut merged = value.clone();
            merge(&mut merged, patch.clone());
            assert_eq!(merged, expected, "{value} {patch}");
        }
    }
}
