//! What goes wrong on purpose with requests that match.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;

use crate::body::{self, Body};
use crate::connection::Connection;
use crate::request::Request;
use crate::status::Status;

/// What goes wrong with a request.
#[derive(Debug)]
pub enum Fault {
    /// This is the answer.
    Status(Status),
    /// The answer comes so much later.
    Delay(Duration),
    /// The connection is closed after so many bytes of the body.
    Cut {
        /// Bytes of the body that are sent.
        after: usize,
        /// End with a RST.
        reset: bool,
    },
    /// After so many bytes of the body nothing more comes, and nothing is closed.
    Stall {
        /// Bytes of the body that are sent.
        after: usize,
    },
    /// The body comes in small pieces.
    Drip {
        /// Bytes of a piece.
        piece: usize,
        /// Time between them.
        every: Duration,
    },
    /// Something else is the answer.
    Answer(Answer),
}

/// An answer that does not come from the store.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// The body: as it comes, until the sender is dropped.
    pub body: mpsc::UnboundedReceiver<Bytes>,
}

impl Answer {
    /// A whole one.
    pub fn whole(status: u16, body: impl Into<Bytes>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        // Its receiver is here.
        let _ = sender.send(body.into());
        Self { status, headers: Vec::new(), body: receiver }
    }

    pub(crate) fn into_body(self) -> Body {
        body::chunked(stream::unfold(self.body, |mut body| async {
            let bytes = body.recv().await?;
            Some((Ok(bytes), body))
        }))
    }
}

type Choose = Box<dyn FnMut(&Request) -> Option<Fault> + Send>;

/// Those who are asked about each request, in the order in which they were added.
#[derive(Default)]
pub(crate) struct Faults {
    choose: VecDeque<Choose>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("rules", &self.choose.len()).finish()
    }
}

impl Faults {
    pub fn add(&mut self, choose: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        self.choose.push_back(Box::new(choose));
    }

    pub fn clear(&mut self) {
        self.choose.clear();
    }

    /// The fault of a request: the first that someone chooses.
    pub fn of(&mut self, request: &Request) -> Option<Fault> {
        self.choose.iter_mut().find_map(|choose| choose(request))
    }
}

/// What happens to a body on its way.
#[derive(Clone, Copy)]
pub(crate) enum Harm {
    Cut { after: usize, reset: bool },
    Stall { after: usize },
    Drip { piece: usize, every: Duration },
}

struct Harmed {
    body: Body,
    connection: Connection,
    harm: Harm,
    rest: Bytes,
    sent: usize,
}

impl Harmed {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let limit = match self.harm {
            Harm::Cut { after, .. } | Harm::Stall { after } => after.saturating_sub(self.sent),
            Harm::Drip { piece, .. } => piece,
        };
        if limit == 0 {
            match self.harm {
                Harm::Cut { reset, .. } => {
                    if reset {
                        self.connection.reset_when_closed();
                    }
                    return Some(Err(body::broken().await));
                }
                Harm::Stall { .. } | Harm::Drip { .. } => std::future::pending().await,
            }
        }
        while self.rest.is_empty() {
            match self.body.frame().await? {
                Ok(frame) => self.rest = frame.into_data().unwrap_or_default(),
                Err(error) => return Some(Err(error)),
            }
        }
        if let Harm::Drip { every, .. } = self.harm {
            tokio::time::sleep(every).await;
        }
        let bytes = self.rest.split_to(limit.min(self.rest.len()));
        self.sent += bytes.len();
        Some(Ok(bytes))
    }
}

/// A body to which that happens.
pub(crate) fn harm(body: Body, connection: &Connection, harm: Harm) -> Body {
    let harmed = Harmed { body, connection: connection.clone(), harm, rest: Bytes::new(), sent: 0 };
    body::chunked(stream::unfold(harmed, |mut harmed| async {
        let item = harmed.next().await?;
        Some((item, harmed))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sent(harm: Harm, wait: Duration) -> (String, Option<bool>) {
        let body = super::harm(body::full("0123456789"), &Connection::new(|| {}), harm);
        let mut body = std::pin::pin!(body);
        let mut text = String::new();
        loop {
            match tokio::time::timeout(wait, body.frame()).await {
                Err(_) => return (text, None),
                Ok(None) => return (text, Some(true)),
                Ok(Some(Err(_))) => return (text, Some(false)),
                Ok(Some(Ok(frame))) => text += std::str::from_utf8(frame.data_ref().unwrap()).unwrap(),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_are_cut_stalled_and_slowed() {
        let wait = Duration::from_secs(2);
        let cut = Harm::Cut { after: 4, reset: false };
        assert_eq!(sent(cut, wait).await, ("0123".into(), Some(false)));
        assert_eq!(sent(Harm::Stall { after: 4 }, wait).await, ("0123".into(), None));
        let beyond = Harm::Cut { after: 40, reset: false };
        assert_eq!(sent(beyond, wait).await, ("0123456789".into(), Some(true)));
        let start = tokio::time::Instant::now();
        let drip = Harm::Drip { piece: 3, every: Duration::from_secs(1) };
        assert_eq!(sent(drip, wait).await, ("0123456789".into(), Some(true)));
        assert_eq!(start.elapsed(), Duration::from_secs(4));
    }

    #[test]
    fn the_first_who_chooses_decides() {
        let mut faults = Faults::default();
        let mut left = 1;
        faults.add(move |request| {
            (request.verb == "list" && std::mem::take(&mut left) > 0)
                .then(|| Fault::Status(Status::plain(500, None)))
        });
        faults.add(|_| Some(Fault::Delay(Duration::ZERO)));
        let read =
            |uri: &str| Request::read(&hyper::Request::builder().uri(uri).body(()).unwrap().into_parts().0);
        let list = read("/api/v1/services");
        assert!(matches!(faults.of(&read("/api/v1/services?watch=1")), Some(Fault::Delay(_))));
        assert!(matches!(faults.of(&list), Some(Fault::Status(_))));
        assert!(matches!(faults.of(&list), Some(Fault::Delay(_))));
        faults.clear();
        assert!(faults.of(&list).is_none());
    }
}
