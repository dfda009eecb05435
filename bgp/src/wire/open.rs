//! OPEN (RFC 4271 §4.2).

use std::net::Ipv4Addr;

use super::AS_TRANS;
use super::capability::Capability;
use super::error::{OpenError, TooLong};
use super::reader::Reader;

/// An OPEN message of version 4.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Open {
    /// My Autonomous System: the speaker's ASN, [`AS_TRANS`] where that takes 4 octets. See [`Open::asn`].
    pub my_as: u16,
    /// Proposed hold time, in seconds.
    pub hold_time: u16,
    /// BGP Identifier.
    pub router_id: Ipv4Addr,
    /// Capabilities in the order given.
    pub capabilities: Vec<Capability>,
}

const VERSION: u8 = 4;
/// Optional parameter type: capabilities (RFC 5492).
const CAPABILITIES: u8 = 2;
/// Length and first parameter type that say: lengths are extended (RFC 9072 §2).
const EXTENDED: u8 = 255;

impl Open {
    /// The value of My Autonomous System for `asn`.
    pub fn my_as(asn: u32) -> u16 {
        u16::try_from(asn).unwrap_or(AS_TRANS)
    }

    /// The speaker's ASN: the capability's where it has one, My Autonomous System otherwise.
    pub fn asn(&self) -> u32 {
        self.four_octet_asn().unwrap_or(u32::from(self.my_as))
    }

    /// The ASN in the 4-octet capability.
    pub fn four_octet_asn(&self) -> Option<u32> {
        self.capabilities.iter().find_map(|c| match c {
            Capability::FourOctetAsn(asn) => Some(*asn),
            _ => None,
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        out.push(VERSION);
        out.extend_from_slice(&self.my_as.to_be_bytes());
        out.extend_from_slice(&self.hold_time.to_be_bytes());
        out.extend_from_slice(&self.router_id.octets());

        // One parameter for each capability: every speaker reads that, and none outgrows its length field.
        let capabilities =
            self.capabilities.iter().map(Capability::to_code_and_value).map(|(code, value)| {
                let length = u8::try_from(value.len()).map_err(|_| TooLong)?;
                Ok([&[code, length], value.as_slice()].concat())
            });
        let capabilities: Vec<Vec<u8>> = capabilities.collect::<Result<_, _>>()?;

        let short: Option<Vec<u8>> = capabilities.iter().try_fold(Vec::new(), |mut all, capability| {
            all.extend_from_slice(&[CAPABILITIES, u8::try_from(capability.len()).ok()?]);
            all.extend_from_slice(capability);
            Some(all)
        });
        match short.and_then(|all| u8::try_from(all.len()).ok().filter(|&n| n != EXTENDED).zip(Some(all))) {
            Some((length, all)) => {
                out.push(length);
                out.extend_from_slice(&all);
            }
            None => {
                let mut all = Vec::new();
                for capability in &capabilities {
                    let length = u16::try_from(capability.len()).map_err(|_| TooLong)?;
                    all.push(CAPABILITIES);
                    all.extend_from_slice(&length.to_be_bytes());
                    all.extend_from_slice(capability);
                }
                let length = u16::try_from(all.len()).map_err(|_| TooLong)?;
                out.extend_from_slice(&[EXTENDED, EXTENDED]);
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(&all);
            }
        }
        Ok(())
    }

    pub(super) fn decode(body: &[u8]) -> Result<Open, OpenError> {
        let mut reader = Reader::new(body);
        let version = reader.u8().ok_or(OpenError::Malformed)?;
        if version != VERSION {
            return Err(OpenError::UnsupportedVersion(version));
        }
        Open::decode_fields(&mut reader).ok_or(OpenError::Malformed)?
    }

    /// `None` is a malformed message; the inner result is for what is well-formed and not supported.
    fn decode_fields(reader: &mut Reader<'_>) -> Option<Result<Open, OpenError>> {
        let my_as = reader.u16()?;
        let hold_time = reader.u16()?;
        let router_id = Ipv4Addr::from(reader.u32()?);

        let length = reader.u8()?;
        let mut ahead = *reader;
        let extended = length == EXTENDED && ahead.u8() == Some(EXTENDED);
        let mut parameters = if extended {
            let length = ahead.u16()?;
            *reader = ahead;
            reader.sub(usize::from(length))?
        } else {
            reader.sub(usize::from(length))?
        };
        if !reader.is_empty() {
            return None;
        }

        let mut capabilities = Vec::new();
        while !parameters.is_empty() {
            let kind = parameters.u8()?;
            let length = if extended { parameters.u16()? } else { u16::from(parameters.u8()?) };
            let mut parameter = parameters.sub(usize::from(length))?;
            if kind != CAPABILITIES {
                return Some(Err(OpenError::UnsupportedParameter(kind)));
            }
            while !parameter.is_empty() {
                let code = parameter.u8()?;
                let length = parameter.u8()?;
                capabilities
                    .push(Capability::from_code_and_value(code, parameter.take(usize::from(length))?)?);
            }
        }
        Some(Ok(Open { my_as, hold_time, router_id, capabilities }))
    }
}
