//! NLRI: a length in bits and as many bytes as it needs (RFC 4271 §4.3), after a path identifier where that was agreed on
//! (RFC 7911 §3).

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::reader::Reader;

/// A path to a prefix, as UPDATEs name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nlri<P = IpNet> {
    /// The prefix.
    pub prefix: P,
    /// Which of the sender's paths to it (RFC 7911); 0 where the session names none.
    pub path_id: u32,
}

impl<P> From<P> for Nlri<P> {
    fn from(prefix: P) -> Nlri<P> {
        Nlri { prefix, path_id: 0 }
    }
}

impl<P: fmt::Display> fmt::Display for Nlri<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path_id {
            0 => write!(f, "{}", self.prefix),
            path_id => write!(f, "{} path {path_id}", self.prefix),
        }
    }
}

impl<P> Nlri<P>
where
    IpNet: From<P>,
{
    /// As one of either family.
    pub fn any(self) -> Nlri {
        Nlri { prefix: self.prefix.into(), path_id: self.path_id }
    }
}

/// A prefix of one family.
pub(super) trait Prefix: Sized {
    /// Appends the encoding.
    fn write(&self, out: &mut Vec<u8>);
    /// Reads one, bits beyond its length cleared; `None` where it is too long or cut short.
    fn read(reader: &mut Reader<'_>) -> Option<Self>;
}

/// Appends `nlri`; `add_path` says that it has a path identifier.
pub(super) fn write<P: Prefix>(nlri: &Nlri<P>, add_path: bool, out: &mut Vec<u8>) {
    if add_path {
        out.extend_from_slice(&nlri.path_id.to_be_bytes());
    }
    nlri.prefix.write(out);
}

/// Reads until nothing is left.
pub(super) fn read_all<P: Prefix>(mut reader: Reader<'_>, add_path: bool) -> Option<Vec<Nlri<P>>> {
    let mut all = Vec::new();
    while !reader.is_empty() {
        let path_id = if add_path { reader.u32()? } else { 0 };
        all.push(Nlri { prefix: P::read(&mut reader)?, path_id });
    }
    Some(all)
}

fn write_octets(length: u8, octets: &[u8], out: &mut Vec<u8>) {
    out.push(length);
    out.extend_from_slice(&octets[..usize::from(length.div_ceil(8))]);
}

fn read_octets<const N: usize>(reader: &mut Reader<'_>) -> Option<([u8; N], u8)> {
    let length = reader.u8()?;
    let bytes = reader.take(usize::from(length.div_ceil(8)))?;
    let mut octets = [0; N];
    octets.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some((octets, length))
}

impl Prefix for Ipv4Net {
    fn write(&self, out: &mut Vec<u8>) {
        write_octets(self.prefix_len(), &self.addr().octets(), out);
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let (octets, length) = read_octets::<4>(reader)?;
        Some(Ipv4Net::new(octets.into(), length).ok()?.trunc())
    }
}

impl Prefix for Ipv6Net {
    fn write(&self, out: &mut Vec<u8>) {
        write_octets(self.prefix_len(), &self.addr().octets(), out);
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let (octets, length) = read_octets::<16>(reader)?;
        Some(Ipv6Net::new(octets.into(), length).ok()?.trunc())
    }
}

impl Nlri {
    /// How many bytes it takes.
    pub(super) fn wire_length(&self, add_path: bool) -> usize {
        let path_id = if add_path { 4 } else { 0 };
        path_id + 1 + usize::from(self.prefix.prefix_len().div_ceil(8))
    }

    /// Appends one of either family.
    pub(super) fn write_any(&self, add_path: bool, out: &mut Vec<u8>) {
        let path_id = self.path_id;
        match self.prefix {
            IpNet::V4(prefix) => write(&Nlri { prefix, path_id }, add_path, out),
            IpNet::V6(prefix) => write(&Nlri { prefix, path_id }, add_path, out),
        }
    }
}
