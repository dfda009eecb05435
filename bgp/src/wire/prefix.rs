//! NLRI: a length in bits and as many bytes as it needs (RFC 4271 §4.3).

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::reader::Reader;

/// A prefix of one family.
pub(super) trait Nlri: Sized {
    /// Appends the encoding.
    fn write(&self, out: &mut Vec<u8>);
    /// Reads one, bits beyond its length cleared; `None` where it is too long or cut short.
    fn read(reader: &mut Reader<'_>) -> Option<Self>;

    /// Reads until nothing is left.
    fn read_all(mut reader: Reader<'_>) -> Option<Vec<Self>> {
        let mut all = Vec::new();
        while !reader.is_empty() {
            all.push(Self::read(&mut reader)?);
        }
        Some(all)
    }
}

fn write(length: u8, octets: &[u8], out: &mut Vec<u8>) {
    out.push(length);
    out.extend_from_slice(&octets[..usize::from(length.div_ceil(8))]);
}

fn read<const N: usize>(reader: &mut Reader<'_>) -> Option<([u8; N], u8)> {
    let length = reader.u8()?;
    let bytes = reader.take(usize::from(length.div_ceil(8)))?;
    let mut octets = [0; N];
    octets.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some((octets, length))
}

impl Nlri for Ipv4Net {
    fn write(&self, out: &mut Vec<u8>) {
        write(self.prefix_len(), &self.addr().octets(), out);
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let (octets, length) = read::<4>(reader)?;
        Some(Ipv4Net::new(octets.into(), length).ok()?.trunc())
    }
}

impl Nlri for Ipv6Net {
    fn write(&self, out: &mut Vec<u8>) {
        write(self.prefix_len(), &self.addr().octets(), out);
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let (octets, length) = read::<16>(reader)?;
        Some(Ipv6Net::new(octets.into(), length).ok()?.trunc())
    }
}

/// How many bytes `prefix` takes.
pub(super) fn wire_length(prefix: &IpNet) -> usize {
    1 + usize::from(prefix.prefix_len().div_ceil(8))
}

/// Appends a prefix of either family.
pub(super) fn write_any(prefix: &IpNet, out: &mut Vec<u8>) {
    match prefix {
        IpNet::V4(prefix) => prefix.write(out),
        IpNet::V6(prefix) => prefix.write(out),
    }
}
