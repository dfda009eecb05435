//! A request as the API server understands it.

use std::collections::BTreeMap;

use hyper::Method;
use hyper::http::request::Parts;

use crate::resource::{Resource, Target};
use crate::selector::Selector;
use crate::status::Status;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `get`, `list`, `watch`, `create`, `patch`, or the HTTP method in small letters.
    pub verb: String,
    /// Its path.
    pub path: String,
    /// What the path names; `None` for `/version` and the like.
    pub target: Option<Target>,
    /// The query's parameters, decoded; of a repeated one the last.
    pub query: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn read(parts: &Parts) -> Self {
        let query = parts.uri.query().unwrap_or_default();
        let query: BTreeMap<_, _> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let path = parts.uri.path().to_owned();
        let target = Target::parse(&path);
        let named = target.as_ref().is_some_and(|target| target.name.is_some());
        let watches = query.get("watch").is_some_and(|value| matches!(value.as_str(), "true" | "1"));
        let verb = match parts.method {
            Method::GET if target.is_none() || named => "get".to_owned(),
            Method::GET if watches => "watch".to_owned(),
            Method::GET => "list".to_owned(),
            Method::POST => "create".to_owned(),
            Method::PUT => "update".to_owned(),
            _ => parts.method.as_str().to_ascii_lowercase(),
        };
        Self { verb, path, target, query }
    }

    /// The resource, where it is one that can be served.
    pub fn resource(&self) -> Option<Resource> {
        self.target.as_ref().and_then(Target::resource)
    }

    /// A parameter of the query; empty counts as absent.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.parameter(name).is_some_and(|value| matches!(value, "true" | "1"))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        let parse = |text: &str| {
            text.parse().map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing \"{text}\": invalid syntax: converting ({name})"
                ))
            })
        };
        self.parameter(name).map(parse).transpose()
    }

    /// `resourceVersion`.
    pub(crate) fn revision(&self) -> Result<Option<u64>, Status> {
        let parse = |text: &str| {
            text.parse().map_err(|_| {
                Status::bad_request(format!(
                    "invalid resource version: resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: \
                     parsing \"{text}\": invalid syntax"
                ))
            })
        };
        self.parameter("resourceVersion").map(parse).transpose()
    }

    pub(crate) fn selector(&self) -> Result<Selector, Status> {
        let namespace = self.target.as_ref().and_then(|target| target.namespace.as_deref());
        Selector::parse(namespace, self.parameter("labelSelector"), self.parameter("fieldSelector"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs() {
        for (method, uri, expected) in [
            ("GET", "/api/v1/services", "list"),
            ("GET", "/api/v1/services?watch=true", "watch"),
            ("GET", "/api/v1/services?watch=1&timeoutSeconds=5", "watch"),
            ("GET", "/api/v1/services?watch=false", "list"),
            ("GET", "/api/v1/nodes/a", "get"),
            ("GET", "/version", "get"),
            ("POST", "/api/v1/namespaces/a/events", "create"),
            ("PATCH", "/api/v1/nodes/a", "patch"),
            ("DELETE", "/api/v1/nodes/a", "delete"),
        ] {
            let request = hyper::Request::builder().method(method).uri(uri).body(()).unwrap();
            assert_eq!(Request::read(&request.into_parts().0).verb, expected, "{method} {uri}");
        }
    }

    #[test]
    fn the_query_is_decoded() {
        let uri = "/api/v1/services?labelSelector=%21a%2Cb%3Dc&limit=x&resourceVersion=";
        let request = hyper::Request::builder().uri(uri).body(()).unwrap();
        let request = Request::read(&request.into_parts().0);
        assert_eq!(request.parameter("labelSelector"), Some("!a,b=c"));
        assert_eq!(request.number("limit").unwrap_err().code, 400);
        assert_eq!(request.revision(), Ok(None));
    }
}
