//! The objects, and what was changed in them of late.
//!
//! An object is kept as the text that goes over the wire, without `kind` and `apiVersion`: list items have none,
//! everything else gets them put in front. Of each resource a bounded number of changes is kept, with the object
//! before and after: watches read on from there, and a list as of an earlier revision is what there is now with the
//! changes since undone.
//!
//! ```text
//!            horizon                revision
//!    ───forgotten──┤ change change change │ objects
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::resource::Resource;
use crate::selector::Selector;

/// An object.
#[derive(Debug)]
pub(crate) struct Object {
    key: Box<str>,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Its `metadata.resourceVersion`.
    revision: u64,
    /// JSON without `kind` and `apiVersion`.
    text: Box<str>,
}

impl Object {
    fn new(resource: Resource, text: String) -> Result<Self> {
        let value: Value = serde_json::from_str(&text)?;
        let metadata = &value["metadata"];
        let name = metadata["name"].as_str().context("metadata.name is missing")?;
        let key = key(resource, metadata["namespace"].as_str(), name);
        let revision = metadata["resourceVersion"].as_str().and_then(|text| text.parse().ok());
        let labels = metadata["labels"].as_object().into_iter().flatten();
        Ok(Self {
            key: key.into(),
            labels: labels.map(|(key, value)| (key.as_str().into(), text_of(value))).collect(),
            revision: revision.context("metadata.resourceVersion is missing")?,
            text: text.into(),
        })
    }

    /// `NAMESPACE/NAME`, or `NAME` of what is in no namespace: the order of a list.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether a selector means it.
    pub fn matches(&self, selector: &Selector) -> bool {
        let (namespace, name) = self.key.split_once('/').unwrap_or(("", &self.key));
        selector.matches(namespace, name, &self.labels)
    }

    /// As an item of a list.
    pub fn item(&self) -> &str {
        &self.text
    }

    /// As an object of its own.
    pub fn json(&self, resource: Resource) -> String {
        with_kind(resource, &self.text)
    }

    /// As an object of its own, with the revision of a later change: what a watch tells of what is gone.
    pub fn json_at(&self, resource: Resource, revision: u64) -> String {
        let own = format!(r#""resourceVersion":"{}""#, self.revision);
        let text = self.text.replacen(&own, &format!(r#""resourceVersion":"{revision}""#), 1);
        with_kind(resource, &text)
    }

    /// Parsed.
    pub fn value(&self, resource: Resource) -> Value {
        // Only text that was parsed before becomes an object.
        serde_json::from_str(&self.json(resource)).unwrap_or_default()
    }
}

fn text_of(value: &Value) -> Box<str> {
    value.as_str().unwrap_or_default().into()
}

fn with_kind(resource: Resource, text: &str) -> String {
    let (kind, api_version) = (resource.kind(), resource.api_version());
    format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}",{}"#, text.get(1..).unwrap_or_default())
}

/// The key of an object; what names no namespace and needs one is in `default`.
pub(crate) fn key(resource: Resource, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        _ if !resource.is_namespaced() => name.to_owned(),
        Some(namespace) => format!("{namespace}/{name}"),
        None => format!("default/{name}"),
    }
}

/// What was made of an object at a revision.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub revision: u64,
    pub before: Option<Arc<Object>>,
    pub after: Option<Arc<Object>>,
}

/// What was asked for is forgotten; the oldest that is not is this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expired(pub u64);

/// A part of a list.
#[derive(Debug)]
pub(crate) struct Page {
    pub objects: Vec<Arc<Object>>,
    /// How many more there are; 0 at the end.
    pub remaining: usize,
}

#[derive(Debug, Default)]
struct Shelf {
    objects: BTreeMap<Box<str>, Arc<Object>>,
    changes: VecDeque<Change>,
    /// New lists and watches cannot go back beyond it.
    horizon: u64,
    /// Changes up to it are not there any more.
    forgotten: u64,
}

/// All objects.
#[derive(Debug)]
pub(crate) struct Store {
    revision: u64,
    shelves: BTreeMap<Resource, Shelf>,
    history: usize,
    uids: u64,
}

impl Store {
    /// An empty one that keeps `history` changes of each resource.
    pub fn new(history: usize) -> Self {
        let shelves = Resource::ALL.into_iter().map(|resource| (resource, Shelf::default())).collect();
        Self { revision: 1, shelves, history, uids: 0 }
    }

    /// The latest revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What new lists and watches of a resource can go back to.
    pub fn horizon(&self, resource: Resource) -> u64 {
        self.shelf(resource).horizon
    }

    fn shelf(&self, resource: Resource) -> &Shelf {
        &self.shelves[&resource]
    }

    /// One object.
    pub fn object(&self, resource: Resource, key: &str) -> Option<&Arc<Object>> {
        self.shelf(resource).objects.get(key)
    }

    /// All objects of a resource.
    pub fn objects(&self, resource: Resource) -> impl Iterator<Item = &Arc<Object>> {
        self.shelf(resource).objects.values()
    }

    /// Creates or replaces an object. What changes nothing makes no revision, as on the API server.
    pub fn apply(&mut self, resource: Resource, mut value: Value) -> Result<Arc<Object>> {
        let object = value.as_object_mut().context("an object is a JSON object")?;
        object.remove("kind");
        object.remove("apiVersion");
        let metadata =
            object.get_mut("metadata").and_then(Value::as_object_mut).context("metadata is missing")?;
        let name =
            metadata.get("name").and_then(Value::as_str).context("metadata.name is missing")?.to_owned();
        if resource.is_namespaced() {
            metadata.entry("namespace").or_insert_with(|| "default".into());
        }
        let namespace = metadata.get("namespace").and_then(Value::as_str);
        let before = self.object(resource, &key(resource, namespace, &name)).cloned();
        let old = before.as_ref().map(|before| before.value(resource));
        for field in ["uid", "creationTimestamp"] {
            if let Some(value) = old.as_ref().and_then(|old| old["metadata"].get(field)) {
                metadata.insert(field.into(), value.clone());
            }
        }
        metadata.entry("creationTimestamp").or_insert_with(now);
        self.uids += 1;
        metadata.entry("uid").or_insert_with(|| format!("00000000-0000-4000-8000-{:012x}", self.uids).into());
        if let (Some(before), Some(old)) = (&before, old) {
            metadata.insert("resourceVersion".into(), before.revision.to_string().into());
            if old["metadata"] == value["metadata"] && without_kind(old) == value {
                return Ok(before.clone());
            }
        }
        self.revision += 1;
        value["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let object = Arc::new(Object::new(resource, value.to_string())?);
        self.record(resource, before, Some(object.clone()));
        Ok(object)
    }

    /// Deletes an object; whether there was one.
    pub fn delete(&mut self, resource: Resource, key: &str) -> bool {
        let Some(before) = self.object(resource, key).cloned() else { return false };
        self.revision += 1;
        self.record(resource, Some(before), None);
        true
    }

    /// Puts in the items of a list as another server told it; the revision becomes the list's.
    pub fn load_list(&mut self, list: &str) -> Result<()> {
        let parts: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(list).context("not a JSON object")?;
        let text = |field: &str| parts.get(field).map(|raw| raw.get().trim_matches('"')).unwrap_or_default();
        let kind = text("kind").strip_suffix("List").context("not a list")?;
        let resource =
            Resource::of(text("apiVersion"), kind).with_context(|| format!("{kind} is not served"))?;
        let metadata: Value =
            serde_json::from_str(parts.get("metadata").context("metadata is missing")?.get())?;
        let items: Vec<Box<RawValue>> =
            serde_json::from_str(parts.get("items").context("items are missing")?.get())?;
        let shelf = self.shelves.entry(resource).or_default();
        for item in items {
            let object = Object::new(resource, item.get().to_owned())?;
            shelf.objects.insert(object.key.clone(), Arc::new(object));
        }
        let revision = metadata["resourceVersion"].as_str().and_then(|text| text.parse().ok());
        self.revision = self.revision.max(revision.context("metadata.resourceVersion is missing")?);
        for shelf in self.shelves.values_mut() {
            shelf.horizon = self.revision;
            shelf.forgotten = self.revision;
            shelf.changes.clear();
        }
        Ok(())
    }

    /// Makes the change that an event of another server's watch tells, at that server's revision.
    pub fn load_event(&mut self, event: &str) -> Result<()> {
        let parts: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(event).context("not a JSON object")?;
        let text = parts.get("object").context("object is missing")?.get();
        let value: Value = serde_json::from_str(text)?;
        let (kind, version) = (value["kind"].as_str(), value["apiVersion"].as_str());
        let resource = Resource::of(version.unwrap_or_default(), kind.unwrap_or_default())
            .with_context(|| format!("{kind:?} is not served"))?;
        let metadata = &value["metadata"];
        let revision = metadata["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok());
        let revision = revision.context("metadata.resourceVersion is missing")?;
        let last = self.shelf(resource).changes.back().map_or(0, |change| change.revision);
        ensure!(revision > last, "the event of revision {revision} is not the next");
        self.revision = self.revision.max(revision);
        match parts.get("type").map(|raw| raw.get()) {
            Some("\"BOOKMARK\"") => return Ok(()),
            Some("\"DELETED\"") => {
                let name = metadata["name"].as_str().unwrap_or_default();
                let key = key(resource, metadata["namespace"].as_str(), name);
                let before = self.object(resource, &key).cloned();
                self.record_at(resource, revision, before, None);
            }
            _ => {
                let prefix = with_kind(resource, "{");
                let rest = text.strip_prefix(&prefix).context("kind and apiVersion do not come first")?;
                let object = Arc::new(Object::new(resource, format!("{{{rest}"))?);
                let before = self.object(resource, object.key()).cloned();
                self.record_at(resource, revision, before, Some(object));
            }
        }
        Ok(())
    }

    fn record(&mut self, resource: Resource, before: Option<Arc<Object>>, after: Option<Arc<Object>>) {
        self.record_at(resource, self.revision, before, after);
    }

    fn record_at(
        &mut self,
        resource: Resource,
        revision: u64,
        before: Option<Arc<Object>>,
        after: Option<Arc<Object>>,
    ) {
        let limit = self.history;
        let shelf = self.shelves.entry(resource).or_default();
        match (&before, &after) {
            (_, Some(after)) => drop(shelf.objects.insert(after.key.clone(), after.clone())),
            (Some(before), None) => drop(shelf.objects.remove(&before.key)),
            (None, None) => return,
        }
        shelf.changes.push_back(Change { revision, before, after });
        while shelf.changes.len() > limit {
            let oldest = shelf.changes.pop_front().map_or(0, |change| change.revision);
            shelf.forgotten = shelf.forgotten.max(oldest);
            shelf.horizon = shelf.horizon.max(oldest);
        }
    }

    /// Forgets all history for those who come anew. Open watches are not touched, as on the API server.
    pub fn compact(&mut self) {
        for shelf in self.shelves.values_mut() {
            shelf.horizon = self.revision;
        }
    }

    /// Up to `limit` changes after a revision, for a watch that is open.
    pub fn changes_after(
        &self,
        resource: Resource,
        revision: u64,
        limit: usize,
    ) -> Result<Vec<Change>, Expired> {
        let shelf = self.shelf(resource);
        if revision < shelf.forgotten {
            return Err(Expired(shelf.forgotten));
        }
        let start = shelf.changes.partition_point(|change| change.revision <= revision);
        Ok(shelf.changes.range(start..).take(limit).cloned().collect())
    }

    /// What there was at a revision, after the object of that key.
    pub fn page(
        &self,
        resource: Resource,
        revision: u64,
        after: Option<&str>,
        selector: &Selector,
        limit: usize,
    ) -> Result<Page, Expired> {
        let shelf = self.shelf(resource);
        if revision < shelf.horizon {
            return Err(Expired(shelf.horizon));
        }
        let start: (Bound<&str>, Bound<&str>) =
            (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let first = shelf.changes.partition_point(|change| change.revision <= revision);
        let mut page = Page { objects: Vec::new(), remaining: 0 };
        let mut put = |object: &Arc<Object>| {
            if !object.matches(selector) {
            } else if page.objects.len() < limit {
                page.objects.push(object.clone());
            } else {
                page.remaining += 1;
            }
        };
        if first == shelf.changes.len() {
            shelf.objects.range::<str, _>(start).for_each(|(_, object)| put(object));
            return Ok(page);
        }
        let mut then: BTreeMap<&str, &Arc<Object>> =
            shelf.objects.range::<str, _>(start).map(|(key, object)| (&**key, object)).collect();
        for Change { before, after: changed, .. } in shelf.changes.range(first..).rev() {
            let Some(key) = before.as_ref().or(changed.as_ref()).map(|object| object.key()) else { continue };
            if after.is_some_and(|after| key <= after) {
                continue;
            }
            match before {
                Some(before) => then.insert(key, before),
                None => then.remove(key),
            };
        }
        then.into_values().for_each(put);
        Ok(page)
    }
}

fn without_kind(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.remove("kind");
        object.remove("apiVersion");
    }
    value
}

/// `metadata.creationTimestamp` of something made now.
fn now() -> Value {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string().into()
}

#[cfg(test)]
mod tests;
