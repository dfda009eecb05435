//! The `continue` token of a list that is read in pages.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::status::{Status, quoted};

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// As of which revision; `None` is whatever there is now.
    pub revision: Option<u64>,
    /// Key of the last object that was told: `NAMESPACE/NAME`, or `NAME` within a namespace or without one.
    pub after: String,
}

impl Token {
    /// As it is written into `metadata.continue`.
    pub fn encode(&self) -> String {
        // The inconsistent ones come from another place in the API server and have no slash in front.
        let (revision, slash) = match self.revision {
            Some(revision) => (revision.to_string(), "/"),
            None => ("-1".to_owned(), ""),
        };
        let start = quoted(&format!("{slash}{}\0", self.after));
        URL_SAFE_NO_PAD.encode(format!(r#"{{"v":"meta.k8s.io/v1","rv":{revision},"start":{start}}}"#))
    }

    /// Reads one.
    pub fn decode(text: &str) -> Result<Self, Status> {
        let wrong = |why: String| Status::bad_request(format!("invalid continue token: {why}"));
        let bytes = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|_| wrong("continue key is not valid: illegal base64 data at input byte 0".into()))?;
        let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| {
            let first = bytes.first().map_or('\u{fffd}', |byte| char::from(*byte));
            wrong(format!(
                "continue key is not valid: invalid character '{first}' looking for beginning of value"
            ))
        })?;
        if json["v"] != "meta.k8s.io/v1" {
            return Err(wrong(
                "continue key is not valid: server does not recognize this encoded version".into(),
            ));
        }
        let (Some(revision), Some(start)) = (json["rv"].as_i64(), json["start"].as_str()) else {
            return Err(wrong("continue key is not valid: incorrect encoded start resourceVersion".into()));
        };
        let after = start.strip_prefix('/').unwrap_or(start).trim_end_matches('\0').to_owned();
        Ok(Self { revision: u64::try_from(revision).ok(), after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_those_of_the_api_server() {
        for (token, revision, after) in [
            (
                "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NTQzLCJzdGFydCI6Ii9zaG9wL2RiXHUwMDAwIn0",
                Some(543),
                "shop/db",
            ),
            ("eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTEsInN0YXJ0Ijoic2hvcC9kYlx1MDAwMCJ9", None, "shop/db"),
        ] {
            let expected = Token { revision, after: after.into() };
            assert_eq!(Token::decode(token).unwrap(), expected);
            assert_eq!(expected.encode(), token);
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["abc", "%%%", "", "e30", "eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ"] {
            assert_eq!(Token::decode(text).unwrap_err().code, 400, "{text}");
        }
    }
}
