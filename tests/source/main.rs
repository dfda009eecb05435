//! The API server as a source, against the double of one: what goes wrong, and that it harms nothing.

#![allow(missing_docs, reason = "a test")]

mod faults;
mod lab;
mod objects;
mod server;
