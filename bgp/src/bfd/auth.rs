//! Signatures of control packets (RFC 5880 §4.2 to §4.4, §6.7).

use std::fmt;

use md5::Md5;
use sha1::{Digest as _, Sha1};

use super::packet::{LENGTH, PacketError};

/// The A bit, in the octet of flags.
const AUTHENTICATED: u8 = 1 << 2;
/// Type, length, key number, a reserved octet and the sequence number stand before a hash.
const HEAD: usize = 8;

/// How packets are signed. MD5 and SHA-1 are what the RFC has and routers speak; neither hides anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Algorithm {
    /// The password itself, for all to read.
    Simple = 1,
    /// Keyed MD5.
    Md5 = 2,
    /// Keyed MD5, each packet with another number, so that none can be sent again.
    MeticulousMd5 = 3,
    /// Keyed SHA-1.
    Sha1 = 4,
    /// Keyed SHA-1, each packet with another number.
    MeticulousSha1 = 5,
}

impl Algorithm {
    /// The longest key, which is that of the hash; shorter ones are filled up with zeros.
    pub fn longest_key(self) -> usize {
        match self {
            Algorithm::Simple | Algorithm::Md5 | Algorithm::MeticulousMd5 => 16,
            Algorithm::Sha1 | Algorithm::MeticulousSha1 => 20,
        }
    }

    fn is_meticulous(self) -> bool {
        matches!(self, Algorithm::MeticulousMd5 | Algorithm::MeticulousSha1)
    }
}

/// What packets are signed with. `Debug` tells nothing of the key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    algorithm: Algorithm,
    number: u8,
    secret: Box<[u8]>,
}

/// A key that packets cannot be signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key for {algorithm:?} has 1 to {} bytes, this one has {length}", algorithm.longest_key())]
pub struct KeyLength {
    algorithm: Algorithm,
    length: usize,
}

impl Key {
    /// A key, and the number by which both sides know it.
    ///
    /// # Errors
    /// It is empty or too long.
    pub fn new(algorithm: Algorithm, number: u8, secret: impl Into<Box<[u8]>>) -> Result<Key, KeyLength> {
        let secret = secret.into();
        match secret.len() {
            length if (1..=algorithm.longest_key()).contains(&length) => {
                Ok(Key { algorithm, number, secret })
            }
            length => Err(KeyLength { algorithm, length }),
        }
    }

    /// The hash of a packet, whose place for it is at its end.
    fn hash(&self, packet: &[u8]) -> Vec<u8> {
        let mut signed = packet[..packet.len() - self.algorithm.longest_key()].to_vec();
        signed.extend(&self.secret);
        signed.resize(packet.len(), 0);
        match self.algorithm {
            Algorithm::Sha1 | Algorithm::MeticulousSha1 => Sha1::digest(&signed).to_vec(),
            Algorithm::Simple | Algorithm::Md5 | Algorithm::MeticulousMd5 => Md5::digest(&signed).to_vec(),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?} {})", self.algorithm, self.number)
    }
}

/// Signs the packets of a session, and tells those of the other side from others'.
#[derive(Clone, Debug)]
pub struct Signer {
    key: Key,
    /// Of the next packet.
    sequence: u32,
    /// Of the last that was taken.
    received: Option<u32>,
}

impl Signer {
    /// `sequence` is where packets are counted from: not to be guessed, so that those of an earlier life are of no use.
    pub fn new(key: Key, sequence: u32) -> Signer {
        Signer { key, sequence, received: None }
    }

    /// What it signs with.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The packet with its signature.
    pub fn sign(&mut self, packet: [u8; LENGTH as usize]) -> Vec<u8> {
        let Key { algorithm, number, secret } = &self.key;
        let mut bytes = packet.to_vec();
        bytes[1] |= AUTHENTICATED;
        let length = match algorithm {
            Algorithm::Simple => 3 + secret.len(),
            _ => HEAD + algorithm.longest_key(),
        };
        // At most 28 octets.
        let length = u8::try_from(length).unwrap_or(u8::MAX);
        bytes[3] = LENGTH + length;
        bytes.extend([*algorithm as u8, length, *number]);
        if *algorithm == Algorithm::Simple {
            bytes.extend(secret);
            return bytes;
        }
        bytes.push(0);
        bytes.extend(self.sequence.to_be_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        let place = bytes.len();
        bytes.resize(place + algorithm.longest_key(), 0);
        let hash = self.key.hash(&bytes);
        bytes[place..].copy_from_slice(&hash);
        bytes
    }

    /// Whether a packet is the other side's, and none that was sent before; `multiplier` is its own.
    ///
    /// # Errors
    /// It is not to be taken.
    pub fn verify(&mut self, bytes: &[u8], multiplier: u8) -> Result<(), PacketError> {
        let wrong = Err(PacketError::Authentication);
        let Key { algorithm, number, secret } = &self.key;
        let told = bytes.get(3).copied().unwrap_or(0).into();
        let Some(packet) = bytes.get(..told).filter(|packet| packet.len() > usize::from(LENGTH) + 3) else {
            return wrong;
        };
        let section = &packet[LENGTH.into()..];
        if packet[1] & AUTHENTICATED == 0
            || section[0] != *algorithm as u8
            || usize::from(section[1]) != section.len()
            || section[2] != *number
        {
            return wrong;
        }
        if *algorithm == Algorithm::Simple {
            return if same(&section[3..], secret) { Ok(()) } else { wrong };
        }
        if section.len() != HEAD + algorithm.longest_key() {
            return wrong;
        }
        let sequence = section[4..HEAD].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        if let Some(received) = self.received {
            // RFC 5880 §6.7.3: as far ahead as packets may be lost, in a circle.
            let ahead = sequence.wrapping_sub(received);
            let least = u32::from(algorithm.is_meticulous());
            if !(least..=3 * u32::from(multiplier)).contains(&ahead) {
                return wrong;
            }
        }
        if !same(&section[HEAD..], &self.key.hash(packet)) {
            return wrong;
        }
        self.received = Some(sequence);
        Ok(())
    }

    /// Nothing has come for so long that the other side may count from elsewhere (RFC 5880 §6.8.1).
    pub fn forget(&mut self) {
        self.received = None;
    }
}

/// Equality that takes as long whatever differs.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).fold(0, |differ, (one, other)| differ | (one ^ other)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Algorithm; 5] = [
        Algorithm::Simple,
        Algorithm::Md5,
        Algorithm::MeticulousMd5,
        Algorithm::Sha1,
        Algorithm::MeticulousSha1,
    ];

    fn packet() -> [u8; LENGTH as usize] {
        let mut bytes = [7; LENGTH as usize];
        bytes[1] = 0xc0;
        bytes
    }

    fn signer(algorithm: Algorithm, number: u8, secret: &[u8]) -> Signer {
        Signer::new(Key::new(algorithm, number, secret).unwrap(), u32::MAX - 1)
    }

    #[test]
    fn what_is_signed_is_taken_and_nothing_else() {
        for algorithm in ALL {
            let mut ours = signer(algorithm, 9, b"secret");
            let mut theirs = signer(algorithm, 9, b"secret");
            // Across the end of the numbers.
            for _ in 0..5 {
                let bytes = ours.sign(packet());
                for at in 0..bytes.len() {
                    let mut forged = bytes.clone();
                    forged[at] ^= 1;
                    let header = algorithm == Algorithm::Simple && at < LENGTH.into() && at != 3;
                    let taken = theirs.clone().verify(&forged, 3).is_ok();
                    assert!(!taken || header, "{algorithm:?}: octet {at} changed");
                }
                for length in 0..bytes.len() {
                    assert!(theirs.clone().verify(&bytes[..length], 3).is_err(), "{algorithm:?}: {length}");
                }
                assert_eq!(theirs.verify(&bytes, 3), Ok(()), "{algorithm:?}");
            }
            for mut other in [signer(algorithm, 8, b"secret"), signer(algorithm, 9, b"Secret")] {
                assert!(theirs.verify(&other.sign(packet()), 3).is_err(), "{algorithm:?}");
            }
            assert!(theirs.verify(&packet(), 3).is_err(), "{algorithm:?}: not signed");
        }
    }

    /// RFC 5880 §6.7.3 and §6.7.4.
    #[test]
    fn what_was_sent_before() {
        for algorithm in ALL.into_iter().skip(1) {
            let mut ours = signer(algorithm, 1, b"k");
            let mut theirs = signer(algorithm, 1, b"k");
            let first = ours.sign(packet());
            let second = ours.sign(packet());
            assert_eq!(theirs.verify(&first, 3), Ok(()));
            assert_eq!(theirs.verify(&first, 3).is_ok(), !algorithm.is_meticulous(), "the same again");
            assert_eq!(theirs.verify(&second, 3), Ok(()));
            assert!(theirs.verify(&first, 3).is_err(), "an earlier one");
            for _ in 0..8 {
                ours.sign(packet());
            }
            assert_eq!(theirs.clone().verify(&ours.sign(packet()), 3), Ok(()), "the ninth after it");
            let late = ours.sign(packet());
            assert!(theirs.verify(&late, 3).is_err(), "more than may be lost");
            theirs.forget();
            assert_eq!(theirs.verify(&late, 3), Ok(()));
        }
    }

    #[test]
    fn keys() {
        assert!(Key::new(Algorithm::Md5, 1, *b"").is_err());
        assert!(Key::new(Algorithm::Md5, 1, [1; 17]).is_err());
        let key = Key::new(Algorithm::Sha1, 1, *b"secret").unwrap();
        assert_eq!(format!("{key:?}"), "Key(Sha1 1)");
    }
}
