//! Who may do what: bearer tokens, and what is forbidden.

use std::collections::{BTreeMap, BTreeSet};

use hyper::header::{AUTHORIZATION, HeaderMap};

use crate::request::Request;
use crate::status::Status;

const ANONYMOUS: &str = "system:anonymous";

/// Tokens and what is forbidden to those who have one. Anonymous users may read what needs no rights.
#[derive(Debug, Default)]
pub(crate) struct Access {
    /// Token to user.
    pub tokens: BTreeMap<String, String>,
    /// Verb and resource.
    pub forbidden: BTreeSet<(String, String)>,
}

impl Access {
    /// Whether the request may go on.
    pub fn check(&self, request: &Request, headers: &HeaderMap) -> Result<(), Status> {
        let user = match headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap_or_default()) {
            None => ANONYMOUS,
            Some(value) => value
                .strip_prefix("Bearer ")
                .and_then(|token| self.tokens.get(token))
                .ok_or_else(Status::unauthorized)?,
        };
        let Some(target) = &request.target else { return Ok(()) };
        let pair = (request.verb.clone(), target.resource.clone());
        if user == ANONYMOUS || self.forbidden.contains(&pair) {
            return Err(Status::forbidden(target, &request.verb, user));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_rights() {
        let access = Access {
            tokens: [("secret".to_owned(), "agent".to_owned())].into(),
            forbidden: [("list".to_owned(), "secrets".to_owned())].into(),
        };
        for (uri, authorization, expected) in [
            ("/api/v1/services", Some("Bearer secret"), None),
            ("/api/v1/secrets", Some("Bearer secret"), Some(403)),
            ("/api/v1/namespaces/a/secrets/b", Some("Bearer secret"), None),
            ("/api/v1/services", Some("Bearer other"), Some(401)),
            ("/api/v1/services", Some("Basic secret"), Some(401)),
            ("/api/v1/services", None, Some(403)),
            ("/version", None, None),
            ("/version", Some("Bearer other"), Some(401)),
        ] {
            let mut builder = hyper::Request::builder().uri(uri);
            if let Some(value) = authorization {
                builder = builder.header(AUTHORIZATION, value);
            }
            let parts = builder.body(()).unwrap().into_parts().0;
            let code = access.check(&Request::read(&parts), &parts.headers).err().map(|status| status.code);
            assert_eq!(code, expected, "{uri} {authorization:?}");
        }
    }
}
