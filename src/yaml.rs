//! YAML (and with it JSON) with errors that have their place: line and field.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::{Deserializer, Track};

/// What is wrong where in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    /// Line, from 1; `None` where the text as a whole is meant.
    pub(crate) line: Option<u64>,
    /// Path of the field, for example `spec.ports[0].port`; empty where the YAML itself is wrong.
    pub(crate) field: String,
    /// What is wrong.
    pub(crate) message: String,
}

/// Reads one document of a file.
///
/// # Errors
/// If it is not YAML, or not what `seed` expects.
pub(crate) fn read<'de, S: DeserializeSeed<'de>>(text: &'de str, seed: S) -> Result<S::Value, Error> {
    // A whole cluster's objects in one document are a lawful input: no limit on their number.
    let options = serde_saphyr::options! { with_snippet: false, budget: serde_saphyr::budget! {
        max_events: usize::MAX,
        max_nodes: usize::MAX,
        max_total_scalar_bytes: usize::MAX,
    } };
    read_with(options, text, seed)
}

/// Reads an annotation: whoever wrote it may not make reading cost more than its length, so there are no aliases.
///
/// # Errors
/// If it is not YAML, has an alias, or is not what `seed` expects.
pub(crate) fn read_annotation<'de, S: DeserializeSeed<'de>>(
    text: &'de str,
    seed: S,
) -> Result<S::Value, Error> {
    let budget = serde_saphyr::budget! { max_aliases: 0, max_anchors: 0 };
    read_with(serde_saphyr::options! { with_snippet: false, budget: budget }, text, seed)
}

fn read_with<'de, S: DeserializeSeed<'de>>(
    options: serde_saphyr::Options,
    text: &'de str,
    seed: S,
) -> Result<S::Value, Error> {
    let mut field = String::new();
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        let mut track = Track::new();
        seed.deserialize(Deserializer::new(deserializer, &mut track)).inspect_err(|_| {
            let path = track.path();
            if path.iter().next().is_some() {
                field = path.to_string();
            }
        })
    })
    .map_err(|error| {
        // Where it is no field that is wrong, the path may end in one that has no name.
        let field = field.strip_suffix('?').map_or(&*field, |known| known.trim_end_matches('.')).to_owned();
        let line = error.location().map(|location| location.line()).or_else(|| line_of(text, &field));
        Error { line, field, message: message(&error) }
    })
}

/// The line where the field of that path begins; of the nearest one around it that is there, if it is not.
pub(crate) fn line_of(text: &str, field: &str) -> Option<u64> {
    let path: Vec<&str> = field.split(['.', '[', ']']).filter(|part| !part.is_empty()).collect();
    (0..=path.len()).rev().find_map(|len| {
        let found = |deserializer: serde_saphyr::Deserializer<'_, '_>| {
            Locate(path.get(..len).unwrap_or_default()).deserialize(deserializer)
        };
        serde_saphyr::with_deserializer_from_str(text, found).err()?.location().map(|at| at.line())
    })
}

/// Walks along a path of keys and indices and fails at its end, with the place in the error.
struct Locate<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        match self.0 {
            [] => d.deserialize_any(Nothing),
            _ => d.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.0 {
                [first, rest @ ..] if *first == key => map.next_value_seed(Locate(rest))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let index = self.0.first().and_then(|first| first.parse::<usize>().ok());
        for _ in 0..index.unwrap_or(0) {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Locate(self.0.get(1..).unwrap_or_default()))?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Takes no value at all.
struct Nothing;

impl Visitor<'_> for Nothing {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }
}

/// The parser's words without the place, which is told apart, and without advice to programmers.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(&*text, |(message, _)| message);
    match text.split_once(", set DuplicateKeyPolicy").map_or(text, |(message, _)| message) {
        "invalid u8" => "expected a number of 0 to 255".into(),
        "invalid u16" => "expected a number of 0 to 65535".into(),
        "invalid u32" => "expected a number of 0 to 4294967295".into(),
        // The first one breaches a limit of none.
        "budget breached: Anchors { anchors: 1 }" | "budget breached: Aliases { aliases: 1 }" => {
            "anchors and aliases are not taken here: write it out".into()
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;
    use std::net::IpAddr;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read into")]
    struct Peers {
        peers: Vec<Peer>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read into")]
    struct Peer {
        address: IpAddr,
        #[serde(default)]
        port: u16,
    }

    #[test]
    fn errors_have_line_and_field() {
        for (text, line, field, message) in [
            ("peers:\n- address: 1.2.3.400\n", 2, "peers[0].address", "invalid IP address syntax"),
            (
                "peers:\n- address: ::1\n  port: 70000\n",
                3,
                "peers[0].port",
                "expected a number of 0 to 65535",
            ),
            ("peers: []\npears: []\n", 2, "pears", "unknown field `pears`, expected one of peers"),
            ("peers:\n- port: 1\n", 2, "peers[0]", "missing field `address`"),
            ("peers: []\npeers: []\n", 2, "", "duplicate mapping key: peers"),
            ("peers:\n- port: 1\n  port: 2\n", 3, "peers[0]", "duplicate mapping key: port"),
            ("{\"peers\":\n[{\"address\": 1}]}", 2, "peers[0].address", "invalid IP address syntax"),
        ] {
            let error = read(text, PhantomData::<Peers>).unwrap_err();
            let expected = Error { line: Some(line), field: field.into(), message: message.into() };
            assert_eq!(error, expected, "{text}");
        }
    }

    /// Each list has ten times what the one before has: 10^8 numbers in a few hundred bytes.
    #[test]
    fn an_annotation_cannot_grow_as_it_is_read() {
        let mut text = "peers:\n- &a0 [0]\n".to_owned();
        for depth in 1..9 {
            let before = vec![format!("*a{}", depth - 1); 10].join(", ");
            text.push_str(&format!("- &a{depth} [{before}]\n"));
        }
        let began = std::time::Instant::now();
        let error = read_annotation(&text, PhantomData::<IgnoredAny>).unwrap_err();
        assert!(began.elapsed() < std::time::Duration::from_millis(100), "{:?}", began.elapsed());
        assert_eq!(error.line, Some(2), "{error:?}");
        assert_eq!(error.message, "anchors and aliases are not taken here: write it out");
    }

    #[test]
    fn a_field_has_a_line() {
        let text = "router:\n  asn: 1\n  peers:\n  - address: 10.0.0.1\n  - address: 10.0.0.2\n    port: 1\n";
        for (field, line) in
            [("router.asn", 2), ("router.peers[1].port", 6), ("router.peers[1].asn", 5), ("router.id", 2)]
        {
            assert_eq!(line_of(text, field), Some(line), "{field}");
        }
    }
}
