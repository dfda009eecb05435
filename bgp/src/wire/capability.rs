//! Capabilities, advertised in an OPEN (RFC 5492).

use std::fmt;

use super::reader::Reader;
use crate::Family;

/// Something a speaker can do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Capability {
    /// Routes of a family (1, RFC 4760). Families that are not ours are kept.
    Multiprotocol {
        /// Address Family Identifier.
        afi: u16,
        /// Subsequent Address Family Identifier.
        safi: u8,
    },
    /// Answers ROUTE-REFRESH (2, RFC 2918).
    RouteRefresh,
    /// Takes prefixes of one family with next hops of another (5, RFC 8950): these.
    ExtendedNextHop(Vec<ExtendedNextHop>),
    /// Takes messages of up to 65535 bytes (6, RFC 8654).
    ExtendedMessage,
    /// Says where the answer to a ROUTE-REFRESH begins and ends (70, RFC 7313).
    EnhancedRouteRefresh,
    /// What the speaker is to its peer (9, RFC 9234), as a number of [`Role`].
    Role(u8),
    /// Graceful restart (64, RFC 4724).
    GracefulRestart(GracefulRestartCapability),
    /// 4-octet ASNs (65, RFC 6793): the speaker's own.
    FourOctetAsn(u32),
    /// Several paths to a prefix (69, RFC 7911), for each of these families.
    AddPath(Vec<AddPathFamily>),
    /// Long-lived graceful restart (71, RFC 9494), for each of these families.
    LongLivedGracefulRestart(Vec<LongLivedFamily>),
    /// Any other, kept as it came.
    Unknown {
        /// Capability code.
        code: u8,
        /// Capability value, up to 255 bytes.
        value: Vec<u8>,
    },
}

/// A family of an extended next hop capability, with that of its next hops (RFC 8950 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtendedNextHop {
    /// Address Family Identifier.
    pub afi: u16,
    /// Subsequent Address Family Identifier, which has two octets here.
    pub safi: u16,
    /// Address Family Identifier of the next hops.
    pub next_hop_afi: u16,
}

impl ExtendedNextHop {
    /// IPv4 prefixes by way of IPv6 next hops.
    pub const IPV4_BY_IPV6: ExtendedNextHop = ExtendedNextHop { afi: 1, safi: 1, next_hop_afi: 2 };
}

/// What a speaker is to its eBGP peer (RFC 9234 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Its transit provider.
    Provider = 0,
    /// Its route server.
    RouteServer = 1,
    /// A client of it, which is a route server.
    RouteServerClient = 2,
    /// Its customer.
    Customer = 3,
    /// Neither.
    Peer = 4,
}

impl Role {
    /// What the peer of such a speaker is to it (RFC 9234 §4.2).
    pub fn counterpart(self) -> Role {
        match self {
            Role::Provider => Role::Customer,
            Role::Customer => Role::Provider,
            Role::RouteServer => Role::RouteServerClient,
            Role::RouteServerClient => Role::RouteServer,
            Role::Peer => Role::Peer,
        }
    }

    /// Whether what such a speaker announces goes no further up (RFC 9234 §5): it is marked ONLY_TO_CUSTOMER.
    pub fn marks_routes(self) -> bool {
        match self {
            Role::Provider | Role::RouteServer | Role::Peer => true,
            Role::Customer | Role::RouteServerClient => false,
        }
    }

    /// The role of that number.
    pub fn from_number(number: u8) -> Option<Role> {
        [Role::Provider, Role::RouteServer, Role::RouteServerClient, Role::Customer, Role::Peer]
            .into_iter()
            .find(|role| *role as u8 == number)
    }
}

/// Prints as the config has it: `provider`, `rs`, `rs-client`, `customer`, `peer`.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Provider => "provider",
            Role::RouteServer => "rs",
            Role::RouteServerClient => "rs-client",
            Role::Customer => "customer",
            Role::Peer => "peer",
        })
    }
}

/// The value of the graceful restart capability (RFC 4724 §3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GracefulRestartCapability {
    /// The speaker has restarted (R bit).
    pub restarting: bool,
    /// NOTIFICATIONs, too, are followed by a graceful restart (N bit, RFC 8538).
    pub notification: bool,
    /// Seconds that the speaker takes to come back, up to 4095.
    pub restart_time: u16,
    /// Families that are kept.
    pub families: Vec<GracefulRestartFamily>,
}

/// One family of a graceful restart capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GracefulRestartFamily {
    /// Address Family Identifier.
    pub afi: u16,
    /// Subsequent Address Family Identifier.
    pub safi: u8,
    /// Forwarding went on during the restart (F bit).
    pub forwarding: bool,
}

/// One family of an ADD-PATH capability (RFC 7911 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddPathFamily {
    /// Address Family Identifier.
    pub afi: u16,
    /// Subsequent Address Family Identifier.
    pub safi: u8,
    /// The speaker takes several paths to a prefix.
    pub receive: bool,
    /// The speaker can send several paths to a prefix.
    pub send: bool,
}

/// One family of a long-lived graceful restart capability (RFC 9494 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LongLivedFamily {
    /// Address Family Identifier.
    pub afi: u16,
    /// Subsequent Address Family Identifier.
    pub safi: u8,
    /// Forwarding went on during the restart (F bit).
    pub forwarding: bool,
    /// Seconds that stale routes may be kept beyond the restart time, up to 2²⁴ - 1.
    pub stale_time: u32,
}

const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const EXTENDED_NEXT_HOP: u8 = 5;
const EXTENDED_MESSAGE: u8 = 6;
const ROLE: u8 = 9;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_ASN: u8 = 65;
const ADD_PATH: u8 = 69;
const ENHANCED_ROUTE_REFRESH: u8 = 70;
const LONG_LIVED_GRACEFUL_RESTART: u8 = 71;

const RESTARTING: u16 = 0x8000;
const NOTIFICATION: u16 = 0x4000;
const RESTART_TIME: u16 = 0x0fff;
const FORWARDING: u8 = 0x80;

impl Capability {
    /// The capability that offers `family`.
    pub fn multiprotocol(family: Family) -> Capability {
        Capability::Multiprotocol { afi: family.afi(), safi: family.safi() }
    }

    /// Code, length and value, as in an OPEN; a value beyond 255 bytes is cut.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (code, mut value) = self.to_code_and_value();
        value.truncate(255);
        let mut bytes = vec![code];
        bytes.extend(u8::try_from(value.len()));
        bytes.extend(value);
        bytes
    }

    /// Code and value.
    pub(super) fn to_code_and_value(&self) -> (u8, Vec<u8>) {
        match self {
            Capability::Multiprotocol { afi, safi } => {
                let [high, low] = afi.to_be_bytes();
                (MULTIPROTOCOL, vec![high, low, 0, *safi])
            }
            Capability::RouteRefresh => (ROUTE_REFRESH, Vec::new()),
            Capability::ExtendedNextHop(families) => {
                let family =
                    |f: &ExtendedNextHop| [f.afi, f.safi, f.next_hop_afi].map(u16::to_be_bytes).concat();
                (EXTENDED_NEXT_HOP, families.iter().flat_map(family).collect())
            }
            Capability::ExtendedMessage => (EXTENDED_MESSAGE, Vec::new()),
            Capability::Role(role) => (ROLE, vec![*role]),
            Capability::EnhancedRouteRefresh => (ENHANCED_ROUTE_REFRESH, Vec::new()),
            Capability::GracefulRestart(capability) => (GRACEFUL_RESTART, capability.to_value()),
            Capability::FourOctetAsn(asn) => (FOUR_OCTET_ASN, asn.to_be_bytes().to_vec()),
            Capability::AddPath(families) => {
                let mut value = Vec::new();
                families.iter().for_each(|family| family.write(&mut value));
                (ADD_PATH, value)
            }
            Capability::LongLivedGracefulRestart(families) => {
                let mut value = Vec::new();
                families.iter().for_each(|family| family.write(&mut value));
                (LONG_LIVED_GRACEFUL_RESTART, value)
            }
            Capability::Unknown { code, value } => (*code, value.clone()),
        }
    }

    /// `None` where the value's length does not fit the code.
    pub(super) fn from_code_and_value(code: u8, value: &[u8]) -> Option<Capability> {
        let mut reader = Reader::new(value);
        let capability = match code {
            MULTIPROTOCOL => {
                let afi = reader.u16()?;
                reader.u8()?;
                Capability::Multiprotocol { afi, safi: reader.u8()? }
            }
            ROUTE_REFRESH => Capability::RouteRefresh,
            EXTENDED_NEXT_HOP => {
                let mut families = Vec::new();
                while !reader.is_empty() {
                    let (afi, safi) = (reader.u16()?, reader.u16()?);
                    families.push(ExtendedNextHop { afi, safi, next_hop_afi: reader.u16()? });
                }
                Capability::ExtendedNextHop(families)
            }
            EXTENDED_MESSAGE => Capability::ExtendedMessage,
            ROLE => Capability::Role(reader.u8()?),
            ENHANCED_ROUTE_REFRESH => Capability::EnhancedRouteRefresh,
            GRACEFUL_RESTART => Capability::GracefulRestart(GracefulRestartCapability::read(&mut reader)?),
            FOUR_OCTET_ASN => Capability::FourOctetAsn(reader.u32()?),
            ADD_PATH => {
                let mut families = Vec::new();
                while !reader.is_empty() {
                    families.push(AddPathFamily::read(&mut reader)?);
                }
                Capability::AddPath(families)
            }
            LONG_LIVED_GRACEFUL_RESTART => {
                let mut families = Vec::new();
                while !reader.is_empty() {
                    families.push(LongLivedFamily::read(&mut reader)?);
                }
                Capability::LongLivedGracefulRestart(families)
            }
            _ => Capability::Unknown { code, value: reader.rest().to_vec() },
        };
        reader.is_empty().then_some(capability)
    }
}

impl GracefulRestartCapability {
    fn to_value(&self) -> Vec<u8> {
        let flags =
            if self.restarting { RESTARTING } else { 0 } | if self.notification { NOTIFICATION } else { 0 };
        let mut value = (flags | self.restart_time & RESTART_TIME).to_be_bytes().to_vec();
        for family in &self.families {
            value.extend_from_slice(&family.afi.to_be_bytes());
            value.extend_from_slice(&[family.safi, if family.forwarding { FORWARDING } else { 0 }]);
        }
        value
    }

    fn read(reader: &mut Reader<'_>) -> Option<GracefulRestartCapability> {
        let head = reader.u16()?;
        let mut families = Vec::new();
        while !reader.is_empty() {
            families.push(GracefulRestartFamily {
                afi: reader.u16()?,
                safi: reader.u8()?,
                forwarding: reader.u8()? & FORWARDING != 0,
            });
        }
        Some(GracefulRestartCapability {
            restarting: head & RESTARTING != 0,
            notification: head & NOTIFICATION != 0,
            restart_time: head & RESTART_TIME,
            families,
        })
    }
}

impl AddPathFamily {
    const RECEIVE: u8 = 1;
    const SEND: u8 = 2;

    fn write(self, out: &mut Vec<u8>) {
        let receive = if self.receive { Self::RECEIVE } else { 0 };
        let send = if self.send { Self::SEND } else { 0 };
        out.extend_from_slice(&self.afi.to_be_bytes());
        out.extend_from_slice(&[self.safi, receive | send]);
    }

    fn read(reader: &mut Reader<'_>) -> Option<AddPathFamily> {
        let (afi, safi, mode) = (reader.u16()?, reader.u8()?, reader.u8()?);
        // RFC 7911 §4: any other value is as if the family were not there.
        let has = |bit| mode <= Self::RECEIVE | Self::SEND && mode & bit != 0;
        Some(AddPathFamily { afi, safi, receive: has(Self::RECEIVE), send: has(Self::SEND) })
    }
}

impl LongLivedFamily {
    /// The longest time that there is room for, in seconds.
    pub const MAX_STALE_TIME: u32 = 0xff_ffff;

    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.afi.to_be_bytes());
        out.extend_from_slice(&[self.safi, if self.forwarding { FORWARDING } else { 0 }]);
        out.extend_from_slice(&self.stale_time.min(Self::MAX_STALE_TIME).to_be_bytes()[1..]);
    }

    fn read(reader: &mut Reader<'_>) -> Option<LongLivedFamily> {
        let (afi, safi, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
        let [high, middle, low] = reader.array::<3>()?;
        Some(LongLivedFamily {
            afi,
            safi,
            forwarding: flags & FORWARDING != 0,
            stale_time: u32::from_be_bytes([0, high, middle, low]),
        })
    }
}
