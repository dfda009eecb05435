//! The control packet (RFC 5880 §4.1).

use std::fmt;
use std::time::Duration;

/// Length of a packet without authentication.
pub(super) const LENGTH: u8 = 24;
const VERSION: u8 = 1;

/// The state of a session (RFC 5880 §4.1, §6.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Held down by an operator.
    AdminDown,
    /// Nothing is heard of the other side, or it does not hear this one.
    #[default]
    Down,
    /// The other side is heard.
    Init,
    /// Both hear each other.
    Up,
}

impl State {
    const ALL: [State; 4] = [State::AdminDown, State::Down, State::Init, State::Up];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a session last went down (RFC 5880 §4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    /// Nothing to be told.
    pub const NONE: Diagnostic = Diagnostic(0);
    /// Nothing was heard for the detection time.
    pub const DETECTION_TIME_EXPIRED: Diagnostic = Diagnostic(1);
    /// The other side says that it is down.
    pub const NEIGHBOR_SIGNALED_DOWN: Diagnostic = Diagnostic(3);
    /// An operator wants it down.
    pub const ADMINISTRATIVELY_DOWN: Diagnostic = Diagnostic(7);
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "none",
            1 => "control detection time expired",
            2 => "echo function failed",
            3 => "neighbor signaled session down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            number => return write!(f, "diagnostic {number}"),
        };
        f.write_str(name)
    }
}

/// A control packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender's session last went down.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// It wants a packet with `last` in answer.
    pub poll: bool,
    /// The answer to `poll` (F bit).
    pub last: bool,
    /// Its BFD does not die with its control plane (C bit).
    pub independent: bool,
    /// It wants no periodic packets while both sides are up (D bit).
    pub demand: bool,
    /// How many packets in a row may be lost.
    pub multiplier: u8,
    /// The sender's name of the session; not 0.
    pub sender: u32,
    /// The receiver's; 0 while it is not known.
    pub receiver: u32,
    /// The least interval at which the sender would like to send.
    pub transmit: Duration,
    /// The least at which it can receive; zero wants nothing sent.
    pub receive: Duration,
}

/// Why a datagram is not taken (RFC 5880 §6.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Another version of BFD.
    #[error("version {0}")]
    Version(u8),
    /// A length that it cannot have.
    #[error("length {told} in {bytes} bytes")]
    Length {
        /// The length field.
        told: u8,
        /// What came.
        bytes: usize,
    },
    /// It is not signed as the session's are.
    #[error("authentication")]
    Authentication,
    /// A detection multiplier of 0.
    #[error("detection multiplier 0")]
    Multiplier,
    /// The multipoint bit, which is for later versions.
    #[error("multipoint bit")]
    Multipoint,
    /// The sender's discriminator is 0.
    #[error("sender's discriminator 0")]
    Sender,
    /// The receiver's discriminator is 0, in a state in which the sender must know it.
    #[error("receiver's discriminator 0 in state {0}")]
    Receiver(State),
}

impl Packet {
    /// Reads a datagram. Whether it is signed as it has to be is another question.
    ///
    /// # Errors
    /// For each reason to discard it that needs no session to be known (RFC 5880 §6.8.6).
    pub fn decode(bytes: &[u8]) -> Result<Packet, PacketError> {
        let Some((head, _)) = bytes.split_first_chunk::<{ LENGTH as usize }>() else {
            return Err(PacketError::Length { told: bytes.get(3).copied().unwrap_or(0), bytes: bytes.len() });
        };
        let [first, flags, multiplier, told, words @ ..] = *head;
        let word =
            |index: usize| words[index * 4..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let time = |index| Duration::from_micros(word(index).into());
        let flag = |bit: u8| flags & 1 << bit != 0;
        let packet = Packet {
            diagnostic: Diagnostic(first & 0x1f),
            state: State::ALL[usize::from(flags >> 6)],
            poll: flag(5),
            last: flag(4),
            independent: flag(3),
            demand: flag(1),
            multiplier,
            sender: word(0),
            receiver: word(1),
            transmit: time(2),
            receive: time(3),
        };
        match first >> 5 {
            VERSION => {}
            other => return Err(PacketError::Version(other)),
        }
        if told < LENGTH || usize::from(told) > bytes.len() {
            return Err(PacketError::Length { told, bytes: bytes.len() });
        }
        if packet.multiplier == 0 {
            return Err(PacketError::Multiplier);
        }
        if flag(0) {
            return Err(PacketError::Multipoint);
        }
        if packet.sender == 0 {
            return Err(PacketError::Sender);
        }
        if packet.receiver == 0 && packet.state > State::Down {
            return Err(PacketError::Receiver(packet.state));
        }
        Ok(packet)
    }

    /// Whether a datagram says that it is signed (A bit).
    pub fn is_signed(bytes: &[u8]) -> bool {
        bytes.get(1).is_some_and(|flags| flags & 1 << 2 != 0)
    }

    /// The datagram.
    pub fn encode(&self) -> [u8; LENGTH as usize] {
        let flag = |set: bool, bit: u8| u8::from(set) << bit;
        let mut bytes = [0; LENGTH as usize];
        bytes[0] = VERSION << 5 | self.diagnostic.0 & 0x1f;
        bytes[1] = (self.state as u8) << 6
            | flag(self.poll, 5)
            | flag(self.last, 4)
            | flag(self.independent, 3)
            | flag(self.demand, 1);
        bytes[2] = self.multiplier;
        bytes[3] = LENGTH;
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        // Echo packets are not answered: the last word is 0.
        let words = [self.sender, self.receiver, micros(self.transmit), micros(self.receive), 0];
        for (place, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}
