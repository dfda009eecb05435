//! The text of one manifest file: documents, lists, objects.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use crate::cluster::Object;
use crate::cluster::wire::{WireEndpointSlice, WireNode, WireService, WireServiceCidr};
use crate::yaml;

/// What an object calls itself; read first, since its kind tells how to read the rest. Whatever has another form
/// than expected belongs to a kind of no interest.
#[derive(Default)]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    /// Of a list.
    items: Option<Vec<Header>>,
}

/// How an object is read.
#[derive(Clone, Debug)]
enum Shape {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
    List(Vec<Shape>),
    /// Of no interest.
    Other,
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
        let known = |api_version: &str, kind: &str| match (api_version, kind) {
            ("v1", "Service") => Shape::Service,
            ("discovery.k8s.io/v1", "EndpointSlice") => Shape::EndpointSlice,
            ("v1", "Node") => Shape::Node,
            ("networking.k8s.io/v1", "ServiceCIDR") => Shape::ServiceCidr,
            _ => Shape::Other,
        };
        let api_version = self.api_version.unwrap_or_default();
        let kind = self.kind.unwrap_or_default();
        match (self.items, kind.strip_suffix("List")) {
            (Some(items), Some(of)) => Shape::List(
                items
                    .into_iter()
                    .map(|item| if item.kind.is_some() { item.shape() } else { known(&api_version, of) })
                    .collect(),
            ),
            _ => known(&api_version, &kind),
        }
    }
}

/// Reads all objects of a file, other kinds left out.
///
/// # Errors
/// At the first thing that is wrong, with its place in the file.
pub(super) fn objects(text: &str) -> Result<Vec<Object>, yaml::Error> {
    let mut objects = Vec::new();
    for (lines_before, document) in documents(text) {
        let in_file = |mut error: yaml::Error| {
            error.line = error.line.map(|line| line + lines_before);
            error
        };
        let header = yaml::read(document, PhantomData::<Header>).map_err(in_file)?;
        if header.kind.is_none() {
            let message = "missing: every document needs apiVersion and kind".into();
            return Err(in_file(yaml::Error { line: Some(1), field: "kind".into(), message }));
        }
        let shape = header.shape();
        if !matches!(shape, Shape::Other) {
            yaml::read(document, Read { shape: &shape, into: &mut objects }).map_err(in_file)?;
        }
    }
    Ok(objects)
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
        self.into.push(match self.shape {
            Shape::Service => {
                let service = WireService::deserialize(d)?.try_into().map_err(D::Error::custom)?;
                Object::Service(Arc::new(service))
            }
            Shape::EndpointSlice => {
                Object::EndpointSlice(Arc::new(WireEndpointSlice::deserialize(d)?.into()))
            }
            Shape::Node => Object::Node(Arc::new(WireNode::deserialize(d)?.into())),
            Shape::ServiceCidr => Object::ServiceCidr(Arc::new(WireServiceCidr::deserialize(d)?.into())),
            Shape::List(items) => return d.deserialize_map(List { items, into: self.into }),
            Shape::Other => return IgnoredAny::deserialize(d).map(|_| ()),
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
