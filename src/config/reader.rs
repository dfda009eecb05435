//! Reads annotations one by one; what is wrong becomes a warning.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::Annotations;
use crate::plan::{AcceptedIn, Forwarding, Warning};

/// Reason of the warning about an annotation that does not parse.
pub const INVALID_ANNOTATION: &str = "InvalidAnnotation";

/// A parser of one annotation: the value, or what is wrong with it.
type Parse<T> = fn(&str) -> Result<T, String>;

/// The annotations of one object.
pub(super) struct Reader<'a> {
    annotations: &'a Annotations,
    object: String,
    /// What was wrong so far.
    pub(super) warnings: Vec<Warning>,
}

impl<'a> Reader<'a> {
    /// `object` is its kind and name, for warnings.
    pub(super) fn new(object: String, annotations: &'a Annotations) -> Self {
        Self { annotations, object, warnings: Vec::new() }
    }

    /// As written.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.annotations.get(key).map(|text| &**text)
    }

    /// `None` if it is absent, `Err` (and a warning) if it is wrong.
    pub(super) fn value<T>(&mut self, key: &str, parse: Parse<T>) -> Option<Result<T, ()>> {
        let text = self.text(key)?;
        Some(self.checked(key, parse(text.trim())))
    }

    /// Warns of what is wrong with an annotation.
    pub(super) fn checked<T>(&mut self, key: &str, parsed: Result<T, String>) -> Result<T, ()> {
        parsed.map_err(|wrong| {
            self.warn(INVALID_ANNOTATION, format!("{key}: {wrong}; the last good value stays in force"));
        })
    }

    pub(super) fn read<T: Clone>(&mut self, key: &str, parse: Parse<T>, last: &Option<T>) -> Option<T> {
        match self.value(key, parse)? {
            Ok(value) => Some(value),
            Err(()) => last.clone(),
        }
    }

    pub(super) fn either<T: Clone>(
        &mut self,
        ours: (&str, Parse<T>),
        theirs: (&str, Parse<T>),
        last: &Option<T>,
    ) -> Option<T> {
        let (key, parse) = if self.annotations.contains_key(ours.0) { ours } else { theirs };
        self.read(key, parse, last)
    }

    /// Warns of those of ours that are not among `known`.
    pub(super) fn warn_of_unknown(&mut self, known: &[&str]) {
        for key in self.annotations.keys() {
            if key.starts_with("sheave.io/") && !known.contains(&&**key) {
                self.warn("UnknownAnnotation", format!("{key} is not known; known are {}", known.join(", ")));
            }
        }
    }

    pub(super) fn warn(&mut self, reason: &'static str, message: String) {
        self.warnings.push(Warning { object: self.object.clone(), reason, message });
    }
}

/// `tunnel` or `nat`.
pub(super) fn forwarding(text: &str) -> Result<Forwarding, String> {
    match text {
        "tunnel" => Ok(Forwarding::Tunnel),
        "nat" => Ok(Forwarding::Nat),
        _ => Err(format!("`{text}` is neither `tunnel` nor `nat`")),
    }
}

/// `node` or `pod`.
pub(super) fn accepted_in(text: &str) -> Result<AcceptedIn, String> {
    match text {
        "node" => Ok(AcceptedIn::Node),
        "pod" => Ok(AcceptedIn::Pod),
        _ => Err(format!("`{text}` is neither `node` nor `pod`")),
    }
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("`{text}` is neither `true` nor `false`"))
}

/// A number of 32 bits.
pub(super) fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number of 0 to {}", u32::MAX))
}

/// More than ten is a typing error rather than a policy; many routers cut or refuse longer paths.
pub(super) fn prepend(text: &str) -> Result<u8, String> {
    text.parse()
        .ok()
        .filter(|times| *times <= 10)
        .ok_or_else(|| format!("`{text}` is not a number of 0 to 10"))
}

/// An autonomous system's number.
pub(super) fn asn(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|asn| *asn != 0)
        .ok_or_else(|| format!("`{text}` is not an autonomous system's number, of 1 to {}", u32::MAX))
}

/// A CIDR, or an address that stands for itself; host bits cleared.
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map(|net| net.trunc()).map_err(|_| format!("`{text}` is not a CIDR such as 10.96.0.0/16"))
}

/// A list separated by commas or blanks.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' ', '\n']).filter(|word| !word.is_empty())
}
