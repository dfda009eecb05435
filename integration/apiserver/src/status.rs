//! `Status`: how the API server says no.

use std::fmt::Write as _;

use crate::resource::Target;

/// A failure as the API server tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// HTTP status.
    pub code: u16,
    /// `reason`, such as `Expired`; empty where the API server says none.
    pub reason: &'static str,
    /// `message`.
    pub message: String,
    /// `metadata.continue`: where an inconsistent rest of a list can be had.
    pub token: Option<String>,
    /// `details` as JSON.
    pub details: Option<String>,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u32>,
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), ..Self::default() }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: `user` may not `verb` that.
    pub fn forbidden(target: &Target, verb: &str, user: &str) -> Self {
        let Target { group, resource, .. } = target;
        let name = target.name.as_deref().map(|name| format!(" {}", quoted(name))).unwrap_or_default();
        let scope = match &target.namespace {
            Some(namespace) => format!("in the namespace {}", quoted(namespace)),
            None => "at the cluster scope".to_owned(),
        };
        let message = format!(
            "{}{name} is forbidden: User {} cannot {verb} resource {} in API group {} {scope}",
            qualified(target),
            quoted(user),
            quoted(resource),
            quoted(group),
        );
        Self { details: Some(details(target)), ..Self::new(403, "Forbidden", message) }
    }

    /// 404: no such path.
    pub fn no_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self { details: Some("{}".into()), ..Self::new(404, "NotFound", message) }
    }

    /// 404: no such object.
    pub fn no_object(target: &Target) -> Self {
        let name = target.name.as_deref().unwrap_or_default();
        let message = format!("{} {} not found", qualified(target), quoted(name));
        Self { details: Some(details(target)), ..Self::new(404, "NotFound", message) }
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self { details: Some("{}".into()), ..Self::new(405, "MethodNotAllowed", message) }
    }

    /// 409: there is such an object already.
    pub fn already_exists(target: &Target) -> Self {
        let name = target.name.as_deref().unwrap_or_default();
        let message = format!("{} {} already exists", qualified(target), quoted(name));
        Self { details: Some(details(target)), ..Self::new(409, "AlreadyExists", message) }
    }

    /// 409: what the change was made from is not what there is.
    pub fn conflict(target: &Target) -> Self {
        let name = target.name.as_deref().unwrap_or_default();
        let message = format!(
            "Operation cannot be fulfilled on {} {}: the object has been modified; please apply your changes to \
             the latest version and try again",
            qualified(target),
            quoted(name)
        );
        Self { details: Some(details(target)), ..Self::new(409, "Conflict", message) }
    }

    /// 410: a list's resourceVersion is too old.
    pub fn list_expired() -> Self {
        Self::new(410, "Expired", "The resourceVersion for the provided list is too old.")
    }

    /// 410: a continue token is too old; `token` gives the rest of what there is now.
    pub fn token_expired(token: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can \
                       start a new list without the continue parameter, or use the continue token in this \
                       response to retrieve the remainder of the results. Continuing with the provided token \
                       results in an inconsistent list - objects that were created, modified, or deleted between \
                       the time the first chunk was returned and now may show up in the list.";
        Self { token: Some(token), ..Self::new(410, "Expired", message) }
    }

    /// 410: a watch's resourceVersion is too old.
    pub fn watch_expired(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// 415.
    pub fn unsupported_media_type() -> Self {
        let message = "the body of the request was in an unknown format - accepted media types include: \
                       application/merge-patch+json, application/strategic-merge-patch+json";
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422: of the options of a list or watch.
    pub fn invalid_options(field: &str, message: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {message}");
        let details = r#"{"group":"meta.k8s.io","kind":"ListOptions"}"#;
        Self { details: Some(details.into()), ..Self::new(422, "Invalid", message) }
    }

    /// 504: a resourceVersion that does not exist yet.
    pub fn too_large_version(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let details = concat!(
            r#"{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}],"#,
            r#""retryAfterSeconds":1}"#
        );
        Self { details: Some(details.into()), retry_after: Some(1), ..Self::new(504, "Timeout", message) }
    }

    /// Any other: what the API server says of a status of which it knows no more.
    pub fn plain(code: u16, retry_after: Option<u32>) -> Self {
        let (reason, message) = match code {
            429 => ("TooManyRequests", "Too many requests, please try again later."),
            500 => ("InternalError", "Internal error occurred: injected"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "the server was unable to return a response in the time allotted"),
            _ => ("", "injected"),
        };
        let details = retry_after.map(|seconds| format!(r#"{{"retryAfterSeconds":{seconds}}}"#));
        Self { details, retry_after, ..Self::new(code, reason, message) }
    }

    /// The object, in the API server's order of fields, without the newline at the end.
    pub fn json(&self) -> String {
        let metadata = match &self.token {
            Some(token) => format!(r#"{{"continue":{}}}"#, quoted(token)),
            None => "{}".to_owned(),
        };
        let mut json = format!(
            r#"{{"kind":"Status","apiVersion":"v1","metadata":{metadata},"status":"Failure","message":{}"#,
            quoted(&self.message)
        );
        if !self.reason.is_empty() {
            let _ = write!(json, r#","reason":"{}""#, self.reason);
        }
        if let Some(details) = &self.details {
            let _ = write!(json, r#","details":{details}"#);
        }
        let _ = write!(json, r#","code":{}}}"#, self.code);
        json
    }
}

fn qualified(target: &Target) -> String {
    match target.group.as_str() {
        "" => target.resource.clone(),
        group => format!("{}.{group}", target.resource),
    }
}

fn details(target: &Target) -> String {
    let name = target.name.as_deref().map(|name| format!(r#""name":{},"#, quoted(name))).unwrap_or_default();
    let group = match target.group.as_str() {
        "" => String::new(),
        group => format!(r#""group":{},"#, quoted(group)),
    };
    format!(r#"{{{name}{group}"kind":{}}}"#, quoted(&target.resource))
}

/// A JSON string.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_json_with_its_code() {
        let target = Target::parse("/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/b").unwrap();
        for status in [
            Status::bad_request("a \"b\""),
            Status::unauthorized(),
            Status::forbidden(&target, "get", "someone"),
            Status::no_resource(),
            Status::no_object(&target),
            Status::method_not_allowed(),
            Status::already_exists(&target),
            Status::conflict(&target),
            Status::list_expired(),
            Status::token_expired("abc".into()),
            Status::watch_expired(1, 2),
            Status::unsupported_media_type(),
            Status::invalid_options("a", "b"),
            Status::too_large_version(2, 1),
            Status::plain(429, Some(3)),
            Status::plain(418, None),
        ] {
            let json: serde_json::Value = serde_json::from_str(&status.json()).unwrap();
            assert_eq!(json["code"], status.code);
            assert_eq!(json["status"], "Failure");
            assert_eq!(json["message"], status.message);
        }
    }

    #[test]
    fn objects_of_other_groups_are_named_with_their_group() {
        let target = Target::parse("/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/b").unwrap();
        let status = Status::no_object(&target);
        assert_eq!(status.message, "endpointslices.discovery.k8s.io \"b\" not found");
        assert_eq!(
            status.details.unwrap(),
            r#"{"name":"b","group":"discovery.k8s.io","kind":"endpointslices"}"#
        );
    }
}
