//! A bearer token from a file, as it is at the time of each request.
//!
//! The kubelet replaces a Pod's token long before it ends. kube keeps a token for up to a minute; requests are rare
//! here, and reading a file of a kilobyte each time lets the first attempt after a 401 have the new one.

use std::io;
use std::path::PathBuf;
use std::task::{Context, Poll};

use hyper::Request;
use hyper::header::{AUTHORIZATION, HeaderValue, InvalidHeaderValue};
use tower::Service;

/// Adds the token to each request.
#[derive(Clone, Debug)]
pub(super) struct WithToken<S> {
    inner: S,
    file: Option<PathBuf>,
    /// As read last. Marked as sensitive: neither `Debug` nor compression shows it.
    header: Option<HeaderValue>,
}

impl<S> WithToken<S> {
    /// Without a file, requests stay as they are.
    ///
    /// # Errors
    /// If the file cannot be read now. If it cannot be later, the token stays as it was.
    pub(super) fn new(inner: S, file: Option<PathBuf>) -> io::Result<Self> {
        let header = file.as_ref().map(read).transpose()?;
        Ok(Self { inner, file, header })
    }
}

fn read(file: &PathBuf) -> io::Result<HeaderValue> {
    let token = std::fs::read_to_string(file)?;
    let token = token.trim();
    if token.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "is empty"));
    }
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_: InvalidHeaderValue| {
        io::Error::new(io::ErrorKind::InvalidData, "is no token: it has characters that none has")
    })?;
    header.set_sensitive(true);
    Ok(header)
}

impl<S, B> Service<Request<B>> for WithToken<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if let Some(header) = self.file.as_ref().and_then(|file| read(file).ok()) {
            self.header = Some(header);
        }
        if let Some(header) = &self.header {
            request.headers_mut().insert(AUTHORIZATION, header.clone());
        }
        self.inner.call(request)
    }
}
