//! The text of one manifest file: documents, lists, objects.
//!
//! Each document is read twice: first what its objects call themselves, then what they say. One that says something wrong is
//! named, and the document read again without it.

use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::cluster::wire::{DEFAULT_NAMESPACE, WireEndpointSlice, WireNode, WireService, WireServiceCidr};
use crate::cluster::{Object, ObjectKey, ServiceName, SliceName};
use crate::yaml;

/// So many wrong objects of one document are left out one by one: each costs another reading of it.
const MOST: usize = 32;

/// What a file says, kinds of no interest left out.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) objects: Vec<Object>,
    pub(super) wrong: Vec<Wrong>,
    /// The last of `wrong` is an object at the end of the file, as where a writer was stopped half-way.
    pub(super) cut_short: bool,
}

/// What of a file cannot be used.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Whom it costs; `None` where that cannot be told: any number of objects.
    pub(super) object: Option<ObjectKey>,
    pub(super) error: yaml::Error,
}

impl From<yaml::Error> for Wrong {
    fn from(error: yaml::Error) -> Self {
        Self { object: None, error }
    }
}

/// What an object calls itself; read first, since its kind tells how to read the rest. Whatever has another form
/// than expected belongs to a kind of no interest.
#[derive(Default)]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<Box<Header>>,
    /// Of `metadata`.
    namespace: Option<String>,
    /// Of `metadata`.
    name: Option<String>,
    /// Of a list.
    items: Option<Vec<Header>>,
}

/// How an object is read.
#[derive(Debug)]
enum Shape {
    Object {
        kind: Kind,
        /// `None` where it does not say.
        key: Option<ObjectKey>,
    },
    List(Vec<Shape>),
    /// Of no interest.
    Other,
}

/// The kinds that matter.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(match d.deserialize_any(Outline)? {
            Value::Map(header) => header,
            Value::Text(_) | Value::List(_) | Value::Other => Self::default(),
        })
    }
}

/// As much of a value as a header needs.
enum Value {
    Text(String),
    List(Vec<Header>),
    Map(Header),
    Other,
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Outline)
    }
}

struct Outline;

impl<'de> Visitor<'de> for Outline {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut header = Header::default();
        while let Some(key) = map.next_key::<String>()? {
            match &*key {
                "apiVersion" => header.api_version = map.next_value::<Value>()?.text(),
                "kind" => header.kind = map.next_value::<Value>()?.text(),
                "namespace" => header.namespace = map.next_value::<Value>()?.text(),
                "name" => header.name = map.next_value::<Value>()?.text(),
                "metadata" => {
                    if let Value::Map(metadata) = map.next_value()? {
                        header.metadata = Some(Box::new(metadata));
                    }
                }
                "items" => {
                    if let Value::List(items) = map.next_value()? {
                        header.items = Some(items);
                    }
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Map(header))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other)
    }
}

impl Value {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::List(_) | Self::Map(_) | Self::Other => None,
        }
    }
}

impl Header {
    /// Items of a typed list (`ServiceList`) need not repeat their kind.
    fn shape(self) -> Shape {
        let api_version = self.api_version.unwrap_or_default();
        let kind = self.kind.unwrap_or_default();
        match (self.items, kind.strip_suffix("List")) {
            (Some(items), Some(of)) => {
                let item = |mut item: Self| {
                    if item.kind.is_none() {
                        item.api_version = Some(api_version.clone());
                        item.kind = Some(of.to_owned());
                    }
                    item.shape()
                };
                Shape::List(items.into_iter().map(item).collect())
            }
            _ => Kind::of(&api_version, &kind).map_or(Shape::Other, |kind| Shape::Object {
                kind,
                key: self.metadata.and_then(|metadata| kind.key(*metadata)),
            }),
        }
    }
}

impl Kind {
    fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            ("v1", "Node") => Some(Self::Node),
            ("networking.k8s.io/v1", "ServiceCIDR") => Some(Self::ServiceCidr),
            _ => None,
        }
    }

    fn key(self, metadata: Header) -> Option<ObjectKey> {
        let name = metadata.name?.into();
        let namespace = metadata.namespace.map_or_else(|| DEFAULT_NAMESPACE.into(), Into::into);
        Some(match self {
            Self::Service => ObjectKey::Service(ServiceName { namespace, name }),
            Self::EndpointSlice => ObjectKey::EndpointSlice(SliceName { namespace, name }),
            Self::Node => ObjectKey::Node(name),
            Self::ServiceCidr => ObjectKey::ServiceCidr(name),
        })
    }
}

impl Shape {
    /// The object in which a field is, by the path to it; and whether it is the last.
    fn object_at(&mut self, field: &str) -> Option<(&mut Self, bool)> {
        match self {
            Self::Object { .. } => Some((self, true)),
            Self::List(items) => {
                let (index, rest) = field.strip_prefix("items[")?.split_once(']')?;
                let index: usize = index.parse().ok()?;
                let ends_here = index + 1 == items.len();
                let (object, last) =
                    items.get_mut(index)?.object_at(rest.strip_prefix('.').unwrap_or(rest))?;
                Some((object, last && ends_here))
            }
            Self::Other => None,
        }
    }
}

/// Reads a file.
pub(super) fn read(text: &str) -> Reading {
    let mut reading = Reading::default();
    for (lines_before, document) in documents(text) {
        let wrong_before = reading.wrong.len();
        reading.add(document);
        for Wrong { error, .. } in reading.wrong.iter_mut().skip(wrong_before) {
            error.line = error.line.map(|line| line + lines_before);
        }
    }
    reading
}

impl Reading {
    fn add(&mut self, document: &str) {
        self.cut_short = false;
        let header = match yaml::read(document, PhantomData::<Header>) {
            Ok(header) => header,
            Err(error) => return self.wrong.push(error.into()),
        };
        if header.kind.is_none() {
            let message = "missing: every document needs apiVersion and kind".into();
            return self.wrong.push(yaml::Error { line: Some(1), field: "kind".into(), message }.into());
        }
        let mut shape = header.shape();
        let before = self.objects.len();
        for _ in 0..=MOST {
            if matches!(shape, Shape::Other) {
                return;
            }
            let Err(error) = yaml::read(document, Read { shape: &shape, into: &mut self.objects }) else {
                return;
            };
            self.objects.truncate(before);
            let Some((object, last)) = shape.object_at(&error.field) else {
                return self.wrong.push(error.into());
            };
            // From now on of no interest.
            let Shape::Object { key, .. } = mem::replace(object, Shape::Other) else { return };
            self.cut_short |= last && key.is_some();
            self.wrong.push(Wrong { object: key, error });
        }
        let message = format!("more than {MOST} objects are wrong: nothing of this document is used");
        self.wrong.push(yaml::Error { line: Some(1), field: "items".into(), message }.into());
    }
}

/// Splits a file at its `---` lines, and tells how many lines are before each document. A line that starts with
/// `---` is a marker wherever it is (YAML 1.2.2 section 9.1.2), even in a block of text.
fn documents(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut starts = vec![(0, 0)];
    let mut offset = 0;
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        if line
            .strip_prefix("---")
            .is_some_and(|rest| rest.trim_start().len() != rest.len() || rest.is_empty())
        {
            starts.push((number, offset));
        }
        offset += line.len();
    }
    let ends: Vec<usize> = starts.iter().skip(1).map(|(_, offset)| *offset).chain([text.len()]).collect();
    starts
        .into_iter()
        .zip(ends)
        .filter_map(move |((number, start), end)| Some((number, text.get(start..end)?)))
        .filter(|(_, document)| !document.lines().all(says_nothing))
}

fn says_nothing(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    line.is_empty() || line == "..." || line.starts_with('#') || line.starts_with('%')
}

/// Reads an object of a known shape.
struct Read<'a> {
    shape: &'a Shape,
    into: &'a mut Vec<Object>,
}

impl<'de> DeserializeSeed<'de> for Read<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        let kind = match self.shape {
            Shape::Object { kind, .. } => kind,
            Shape::List(items) => return d.deserialize_map(List { items, into: self.into }),
            Shape::Other => return IgnoredAny::deserialize(d).map(|_| ()),
        };
        self.into.push(match kind {
            Kind::Service => {
                let service = WireService::deserialize(d)?.try_into().map_err(D::Error::custom)?;
                Object::Service(Arc::new(service))
            }
            Kind::EndpointSlice => Object::EndpointSlice(Arc::new(WireEndpointSlice::deserialize(d)?.into())),
            Kind::Node => Object::Node(Arc::new(WireNode::deserialize(d)?.into())),
            Kind::ServiceCidr => Object::ServiceCidr(Arc::new(WireServiceCidr::deserialize(d)?.into())),
        });
        Ok(())
    }
}

/// Reads a list's `items`.
struct List<'a> {
    items: &'a [Shape],
    into: &'a mut Vec<Object>,
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                map.next_value_seed(Items { items: self.items, into: self.into })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Items<'a> {
    items: &'a [Shape],
    into: &'a mut Vec<Object>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for shape in self.items {
            if seq.next_element_seed(Read { shape, into: self.into })?.is_none() {
                break;
            }
        }
        // The header counted the same items, so that only the end is left.
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}
