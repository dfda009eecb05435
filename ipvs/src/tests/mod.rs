//! Tests of the encoding: byte vectors, then properties.

mod properties;
mod vectors;
