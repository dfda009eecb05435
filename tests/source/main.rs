//! The API server as a source, against the double of one: what goes wrong, and that it harms nothing.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]
#![expect(clippy::panic, reason = "a condition that does not come is one too")]

mod faults;
mod lab;
mod objects;
mod server;
