//! Lines out of pieces of a body.

/// A buffer that gives back what it grew by an exceptionally long line.
const KEPT: usize = 64 * 1024;

/// What is left of a body whose last line has not ended yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Hands over every line that ends within the next piece. What is left when a body ends was cut off.
    ///
    /// # Errors
    /// The first one of `each`; what follows is dropped.
    pub(super) fn push<E>(
        &mut self,
        mut piece: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            let (line, after) = piece.split_at(end);
            piece = after.get(1..).unwrap_or_default();
            if self.rest.is_empty() {
                if !line.is_empty() {
                    each(line)?;
                }
            } else {
                self.rest.extend_from_slice(line);
                each(&self.rest)?;
                self.rest.clear();
                self.rest.shrink_to(KEPT);
            }
        }
        self.rest.extend_from_slice(piece);
        Ok(())
    }
}
