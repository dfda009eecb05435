//! Signatures of control packets (RFC 5880 §4.2 to §4.4, §6.7).

use std::fmt;

use md5::Md5;
use sha1::{Digest as _, Sha1};

use super::packet::{LENGTH, Packet, PacketError};

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

/// Signs the packets of a session, and tells those of the other side from others'. Without keys it has all unsigned.
#[derive(Clone, Debug)]
pub struct Signer {
    /// The first signs; what is signed with any of them is taken, so that keys can be changed at one side after the other.
    keys: Vec<Key>,
    /// Of the next packet.
    sequence: u32,
    /// Of the last that was taken.
    received: Option<u32>,
}

impl Signer {
    /// `sequence` is where packets are counted from: not to be guessed, so that those of an earlier life are of no use.
    pub fn new(keys: Vec<Key>, sequence: u32) -> Signer {
        Signer { keys, sequence, received: None }
    }

    /// Takes other keys. Packets are counted on: the other side counts those of a session, whatever they are signed with.
    pub fn set_keys(&mut self, keys: Vec<Key>) {
        self.keys = keys;
    }

    /// The packet with its signature.
    pub fn sign(&mut self, packet: [u8; LENGTH as usize]) -> Vec<u8> {
        let mut bytes = packet.to_vec();
        let Some(key) = self.keys.first() else { return bytes };
        let Key { algorithm, number, secret } = key;
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
        let hash = key.hash(&bytes);
        bytes[place..].copy_from_slice(&hash);
        bytes
    }

    /// Whether a packet is the other side's, and none that was sent before; `multiplier` is its own.
    ///
    /// # Errors
    /// It is not to be taken.
    pub fn verify(&mut self, bytes: &[u8], multiplier: u8) -> Result<(), PacketError> {
        let wrong = Err(PacketError::Authentication);
        if self.keys.is_empty() {
            // RFC 5880 §6.8.6: signed where nothing is asked for is as wrong.
            return if Packet::is_signed(bytes) { wrong } else { Ok(()) };
        }
        let told = bytes.get(3).copied().unwrap_or(0).into();
        let Some(packet) = bytes.get(..told).filter(|packet| packet.len() > usize::from(LENGTH) + 3) else {
            return wrong;
        };
        let section = &packet[LENGTH.into()..];
        let is_of = |key: &&Key| key.algorithm as u8 == section[0] && key.number == section[2];
        let Some(key) = self.keys.iter().find(is_of) else { return wrong };
        if !Packet::is_signed(packet) || usize::from(section[1]) != section.len() {
            return wrong;
        }
        let Key { algorithm, secret, .. } = key;
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
        if !same(&section[HEAD..], &key.hash(packet)) {
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
    use proptest::prelude::*;

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
        Signer::new(vec![Key::new(algorithm, number, secret).unwrap()], u32::MAX - 1)
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

    /// From one key to another, step by step: each side takes both before the other signs with the new one.
    #[test]
    fn keys_are_changed_without_a_gap() {
        let key = |number| Key::new(Algorithm::MeticulousSha1, number, [number; 8]).unwrap();
        let (old, new) = (key(1), key(2));
        let steps: [[&[&Key]; 2]; 5] = [
            [&[&old], &[&old]],
            [&[&old, &new], &[&old]],
            [&[&old, &new], &[&new, &old]],
            [&[&new, &old], &[&new, &old]],
            [&[&new], &[&new]],
        ];
        let mut sides = [7, 9].map(|sequence| Signer::new(Vec::new(), sequence));
        for (index, step) in steps.iter().enumerate() {
            for (side, keys) in sides.iter_mut().zip(step) {
                side.set_keys(keys.iter().copied().cloned().collect());
            }
            let [one, other] = &mut sides;
            for _ in 0..3 {
                assert_eq!(other.verify(&one.sign(packet()), 3), Ok(()), "step {index}");
                assert_eq!(one.verify(&other.sign(packet()), 3), Ok(()), "step {index}");
            }
        }
        let mut gone = Signer::new(vec![old], 7 + 15);
        assert!(sides[1].verify(&gone.sign(packet()), 3).is_err(), "the old key, once it is gone");
    }

    #[test]
    fn without_keys_nothing_is_signed() {
        let mut plain = Signer::new(Vec::new(), 1);
        assert_eq!(plain.sign(packet()), packet());
        assert_eq!(plain.verify(&packet(), 3), Ok(()));
        assert!(plain.verify(&signer(Algorithm::Md5, 1, b"k").sign(packet()), 3).is_err());
    }

    proptest! {
        #[test]
        fn anything_can_come(bytes in prop::collection::vec(any::<u8>(), 0..64), multiplier in any::<u8>()) {
            for algorithm in ALL {
                let signer = signer(algorithm, 9, b"secret");
                let mut signed = bytes.clone();
                let length = u8::try_from(bytes.len()).unwrap();
                if let Some(section) = signed.get_mut(LENGTH.into()..usize::from(LENGTH) + 3) {
                    section.copy_from_slice(&[algorithm as u8, length - LENGTH, 9]);
                    signed[1] |= AUTHENTICATED;
                    signed[3] = length;
                }
                prop_assert!(signer.clone().verify(&bytes, multiplier).is_err());
                prop_assert!(signer.clone().verify(&signed, multiplier).is_err());
            }
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
