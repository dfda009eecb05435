//! Bodies of responses.

use std::io;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;

/// A body that may end before its time.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A body at once, with its length told.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body in chunks.
pub(crate) fn chunked(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// The API server tells the length of what is at most this long, and sends the rest in chunks.
const TOLD: usize = 2048;

/// A body of parts that are made when they are sent.
pub(crate) fn of_parts(length: usize, parts: impl Iterator<Item = Bytes> + Send + 'static) -> Body {
    if length <= TOLD {
        let whole: Vec<u8> = parts.flatten().collect();
        return full(whole);
    }
    chunked(stream::iter(parts.map(Ok)))
}

/// What breaks a body off; what was sent before is on its way by then.
pub(crate) async fn broken() -> io::Error {
    // hyper writes out what it has when there is nothing more at once.
    tokio::task::yield_now().await;
    io::ErrorKind::ConnectionAborted.into()
}
