//! LIST.

use std::iter;
use std::sync::Arc;

use bytes::Bytes;

use crate::api::Shared;
use crate::body::{self, Body};
use crate::request::Request;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::status::{Status, quoted};
use crate::store::{Object, Page};
use crate::token::Token;

/// What a LIST is to tell: as of when, and from where on.
struct Asked {
    /// `None` is whatever there is now.
    revision: Option<u64>,
    after: Option<String>,
    limit: usize,
}

/// Answers a LIST.
pub(crate) async fn list(shared: &Shared, resource: Resource, request: &Request) -> Result<Body, Status> {
    let selector = request.selector()?;
    let asked = asked(shared, resource, request, &selector).await?;
    let store = shared.store();
    let revision = asked.revision.unwrap_or(store.revision());
    let page =
        store.page(resource, revision, asked.after.as_deref(), &selector, asked.limit).map_err(|_| {
            match &asked.after {
                // The rest of a list that was begun can be had as it is now.
                Some(after) => Status::token_expired(token(None, after, &selector)),
                None => Status::list_expired(),
            }
        })?;
    drop(store);
    Ok(body(resource, revision, page, &selector))
}

async fn asked(
    shared: &Shared,
    resource: Resource,
    request: &Request,
    selector: &Selector,
) -> Result<Asked, Status> {
    let asked = request.revision()?;
    let exact = match request.parameter("resourceVersionMatch") {
        None => None,
        Some("Exact") => Some(true),
        Some("NotOlderThan") => Some(false),
        Some(_) => {
            return Err(Status::invalid_options(
                "resourceVersionMatch",
                "supported values: \"Exact\", \"NotOlderThan\"",
            ));
        }
    };
    if request.flag("sendInitialEvents") {
        return Err(Status::invalid_options("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if exact.is_some() && asked.is_none() {
        let message = "resourceVersionMatch is forbidden unless resourceVersion is provided";
        return Err(Status::invalid_options("resourceVersionMatch", message));
    }
    let limit = request.number("limit")?.filter(|limit| *limit > 0);
    let wanted = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    if let Some(token) = request.parameter("continue") {
        if asked.is_some() {
            let message = "specifying resource version is not allowed when using continue";
            return Err(Status::bad_request(message));
        }
        let Token { revision, after } = Token::decode(token)?;
        let after = match selector.namespace().filter(|_| resource.is_namespaced() && !after.contains('/')) {
            Some(namespace) => format!("{namespace}/{after}"),
            None => after,
        };
        return Ok(Asked { revision, after: Some(after), limit: wanted });
    }
    match asked {
        None => Ok(Asked { revision: None, after: None, limit: wanted }),
        Some(0) if exact == Some(true) => {
            let message = "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
            Err(Status::invalid_options("resourceVersionMatch", message))
        }
        // Any version will do: the API server answers from its cache, which knows no pages.
        Some(0) => Ok(Asked { revision: None, after: None, limit: usize::MAX }),
        Some(asked) => {
            shared.reach(asked).await?;
            // Without a match, a limit alone decides (Kubernetes' "legacy" behaviour).
            let revision = exact.unwrap_or(limit.is_some()).then_some(asked);
            Ok(Asked { revision, after: None, limit: wanted })
        }
    }
}

/// A token to go on after that key; within a namespace it names the object alone.
fn token(revision: Option<u64>, after: &str, selector: &Selector) -> String {
    let after = match selector.namespace().and_then(|_| after.split_once('/')) {
        Some((_, name)) => name,
        None => after,
    };
    Token { revision, after: after.to_owned() }.encode()
}

fn body(resource: Resource, revision: u64, page: Page, selector: &Selector) -> Body {
    let Page { objects, remaining } = page;
    let mut metadata = format!(r#""resourceVersion":"{revision}""#);
    if let Some(last) = objects.last().filter(|_| remaining > 0) {
        let token = token(Some(revision), last.key(), selector);
        metadata += &format!(r#","continue":{}"#, quoted(&token));
        if !selector.is_narrow() {
            metadata += &format!(r#","remainingItemCount":{remaining}"#);
        }
    }
    let (kind, api_version) = (resource.kind(), resource.api_version());
    let head =
        format!(r#"{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{{{metadata}}},"items":["#);
    let length = head.len() + objects.iter().map(|object| object.item().len() + 1).sum::<usize>() + 3;
    let parts = iter::once(Bytes::from(head)).chain(items(objects)).chain(iter::once(Bytes::from("]}\n")));
    body::of_parts(length, parts)
}

/// Items with commas between, some tens of kilobytes at a time.
fn items(objects: Vec<Arc<Object>>) -> impl Iterator<Item = Bytes> + Send {
    const PART: usize = 32 * 1024;
    let mut objects = objects.into_iter().enumerate().peekable();
    iter::from_fn(move || {
        objects.peek()?;
        let mut part = String::new();
        while part.len() < PART
            && let Some((index, object)) = objects.next()
        {
            if index > 0 {
                part.push(',');
            }
            part += object.item();
        }
        Some(Bytes::from(part))
    })
}
