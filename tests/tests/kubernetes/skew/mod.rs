//! Agents and control planes that are older or newer than each other, and than the kinds in the cluster. What is not
//! here is played by hand: every byte of it.

mod agents;
mod control_planes;

use prost::encoding::{WireType, encode_key, encode_varint};

/// A field that no version has.
const UNKNOWN_FIELD: u32 = 1_000;
/// A value of enumerations that no version has.
const UNKNOWN_VALUE: i32 = 99;

/// One field of a message.
fn field(number: u32, body: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut encoded);
    encode_varint(body.len() as u64, &mut encoded);
    encoded.extend_from_slice(body);
    encoded
}

/// A message as a later version writes it: with a field that nobody here knows.
fn later(mut message: Vec<u8>) -> Vec<u8> {
    message.extend(field(UNKNOWN_FIELD, b"of a later version"));
    message
}
