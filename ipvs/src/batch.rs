//! Operations encoded ahead of time.

use crate::{Operation, encode};

/// Longest datagram. The default send buffer of 208 KiB takes it, and the replies to it fit the receive buffer.
pub(crate) const SEND_LIMIT: usize = 192 << 10;

/// What goes into one send.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    messages: usize,
}

impl Chunk {
    /// Appends an operation's message; `false`, and nothing appended, where it does not fit.
    pub(crate) fn push(&mut self, family: u16, operation: &Operation) -> bool {
        let start = self.bytes.len();
        encode::operation(&mut self.bytes, family, operation);
        if self.bytes.len() > SEND_LIMIT && start > 0 {
            self.bytes.truncate(start);
            return false;
        }
        self.messages += 1;
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.messages = 0;
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// Operations as netlink messages, for [`Ipvs::apply_batch`](crate::Ipvs::apply_batch), as often as wanted.
///
/// [`Ipvs::apply`](crate::Ipvs::apply) needs less memory: it never holds more than one send.
#[derive(Clone, Debug)]
pub struct Batch {
    family: u16,
    chunks: Vec<Chunk>,
}

impl Batch {
    pub(crate) fn new(family: u16) -> Self {
        Self { family, chunks: Vec::new() }
    }

    /// Appends an operation.
    pub fn push(&mut self, operation: &Operation) {
        if !self.chunks.last_mut().is_some_and(|chunk| chunk.push(self.family, operation)) {
            let mut chunk = Chunk::default();
            chunk.push(self.family, operation);
            self.chunks.push(chunk);
        }
    }

    /// Operations so far.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.messages).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn chunks_mut(&mut self) -> impl Iterator<Item = &mut Chunk> {
        self.chunks.iter_mut()
    }
}
