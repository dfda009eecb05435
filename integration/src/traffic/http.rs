//! HTTP as load balancers, probes and Prometheus speak it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::NetNs;

/// How long a connection, and then an answer, may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A page.
#[derive(Debug)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// Status line and headers, in small letters.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Asks for a page from a namespace.
pub fn get(from: &NetNs, address: SocketAddr, path: &str) -> Result<Page> {
    from.enter(|| ask(address, path))?.with_context(|| format!("{} → http://{address}{path}", from.name()))
}

fn ask(address: SocketAddr, path: &str) -> io::Result<Page> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let page = text.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Page { status, head: head.to_ascii_lowercase(), body: body.into() })
    });
    page.ok_or_else(|| io::Error::other(format!("not an answer: {text:?}")))
}
