//! BGP peers, as the config file and the Node's annotations list them.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};
use sheave_bgp::{ExportPolicy, ImportPolicy, Password};

use super::bfd::Bfd;
use super::{export, import, reader};

/// One of `router.peers`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// Its address, or how it is found.
    #[serde(default)]
    pub address: PeerAddress,
    /// The interface that it is behind, if its address is link-local or not configured.
    #[serde(default)]
    pub interface: Option<String>,
    /// Its autonomous system; the same as ours makes the session internal (iBGP).
    pub asn: PeerAsn,
    /// Its TCP port.
    #[serde(default = "bgp_port")]
    pub port: u16,
    /// The address the session starts from; the kernel's choice by default.
    #[serde(default)]
    pub local_address: Option<IpAddr>,
    /// Whether it connects to this node, which then only waits for it.
    #[serde(default)]
    pub passive: bool,
    /// A file with the session's password (TCP MD5, RFC 2385).
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// A Secret with it.
    #[serde(default)]
    pub password_secret: Option<SecretKey>,
    /// The password itself, where kube-router's annotations have it.
    #[serde(skip)]
    pub password: Option<Password>,
    /// How many hops the peer is away, where it is not on the same link: TTL of packets to it.
    #[serde(default)]
    pub multihop: Option<u8>,
    /// How many hops it may be away for what it sends to be taken in (GTSM, RFC 5082).
    #[serde(default, deserialize_with = "hops")]
    pub ttl_security: Option<u8>,
    /// The hold time to propose, 90 s by default.
    #[serde(default = "hold_time", deserialize_with = "hold_time_of")]
    pub hold_time: Duration,
    /// How long it may read nothing of what it is sent (RFC 9687); `None` is as the RFC has it.
    #[serde(default, deserialize_with = "send_hold_time_of")]
    pub send_hold_time: Option<Duration>,
    /// How long our OPEN waits for its own to come first (DelayOpen).
    #[serde(default, deserialize_with = "delay_open_of")]
    pub delay_open: Option<Duration>,
    /// BFD (RFC 5880) beside the session.
    #[serde(default)]
    pub bfd: Option<Bfd>,
    /// NEXT_HOP of what is announced.
    #[serde(default)]
    pub next_hop: NextHop,
    /// Whether IPv4 prefixes have IPv6 next hops on a session over IPv6 (RFC 8950); by default between link-local addresses.
    #[serde(default)]
    pub extended_next_hop: Option<bool>,
    /// What this node is to the peer (RFC 9234).
    #[serde(default)]
    pub role: Option<Role>,
    /// Whether a peer that does not tell its own role gets no session.
    #[serde(default)]
    pub require_role: bool,
    /// Several paths to a prefix (RFC 7911); none by default.
    #[serde(default)]
    pub add_paths: AddPaths,
    /// Address families to exchange, both by default.
    #[serde(default = "families")]
    pub families: Vec<AddressFamily>,
    /// Which of the routes it announces are taken over; `None`: none.
    #[serde(default, deserialize_with = "import::policy")]
    pub import: Option<ImportPolicy>,
    /// Of which of our prefixes it is told, and with what; all of them, as they are, by default.
    #[serde(default, deserialize_with = "export::policy")]
    pub export: ExportPolicy,
    /// Whether it is a client of this node, which is a route reflector (RFC 4456).
    #[serde(default)]
    pub route_reflector_client: bool,
    /// Who asks for it.
    #[serde(skip)]
    pub source: PeerSource,
}

impl Peer {
    /// A peer with everything at its default.
    pub fn new(address: IpAddr, asn: u32) -> Self {
        Self {
            address: PeerAddress::Ip(address),
            interface: None,
            asn: PeerAsn::Number(asn),
            port: bgp_port(),
            local_address: None,
            passive: false,
            password_file: None,
            password_secret: None,
            password: None,
            multihop: None,
            ttl_security: None,
            hold_time: hold_time(),
            send_hold_time: None,
            delay_open: None,
            bfd: None,
            next_hop: NextHop::default(),
            extended_next_hop: None,
            role: None,
            require_role: false,
            add_paths: AddPaths::default(),
            families: families(),
            import: None,
            export: ExportPolicy::default(),
            route_reflector_client: false,
            source: PeerSource::default(),
        }
    }

    /// Whether IPv4 prefixes are to have IPv6 next hops.
    pub fn extends_next_hop(&self) -> bool {
        // It is between link-local addresses.
        self.extended_next_hop.unwrap_or(self.interface.is_some())
    }

    /// The same peer, once it is known where it is.
    pub fn found_at(&self, address: IpAddr, interface: Option<&str>) -> Self {
        Self { address: PeerAddress::Ip(address), interface: interface.map(str::to_owned), ..self.clone() }
    }

    /// Whether `other` is the same peer, as configured.
    pub fn is(&self, other: &Self) -> bool {
        self.place() == other.place()
    }

    /// What tells it from others: one session is to one address.
    fn place(&self) -> (PeerAddress, Option<&str>) {
        let interface = self.interface.as_deref().filter(|_| self.address == PeerAddress::Neighbour);
        (self.address, interface)
    }

    /// What to call it: its address, with the interface where that belongs to it; the interface alone, where it is found there.
    pub fn name(&self) -> String {
        match (self.address, &self.interface) {
            (PeerAddress::Neighbour, Some(interface)) => interface.clone(),
            (address, Some(interface)) => format!("{address}%{interface}"),
            (address, None) => address.to_string(),
        }
    }

    /// Whether the session is over IPv4, as far as that is known.
    fn runs_over_ipv4(&self) -> Option<bool> {
        match self.address {
            PeerAddress::Ip(address) => Some(address.is_ipv4()),
            PeerAddress::Neighbour => Some(false),
            // The gateway of an IPv4 route may have an IPv6 address.
            PeerAddress::DefaultGateway(_) => None,
        }
    }

    /// Whether BFD beside the session is over several hops (RFC 5883) where this node's autonomous system is `own`: if the session is, or may
    /// be, as internal ones are. BIRD and FRR choose likewise.
    pub fn has_multihop_bfd(&self, bfd: &Bfd, own: Option<u32>) -> bool {
        bfd.multihop.unwrap_or_else(|| {
            let internal = own.is_some() && self.asn.number(own) == own;
            self.interface.is_none()
                && (internal || self.multihop.is_some() || self.ttl_security.is_some_and(|hops| hops > 1))
        })
    }

    /// Where password and keys are read from.
    pub fn sources(&self) -> impl Iterator<Item = PasswordSource> {
        let keys = self.bfd.iter().flat_map(|bfd| &bfd.keys).map(|key| key.source.clone());
        self.password_source().into_iter().chain(keys)
    }

    /// Where its password is read from, if it is.
    pub fn password_source(&self) -> Option<PasswordSource> {
        let file = self.password_file.clone().map(PasswordSource::File);
        file.or_else(|| self.password_secret.clone().map(PasswordSource::Secret))
    }
}

/// `address` of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerAddress {
    /// That one.
    Ip(IpAddr),
    /// Of whoever is at the other end of the peer's interface, as its router advertisements tell.
    #[default]
    Neighbour,
    /// Of the router that this node's default route of a family leads to; of several, each is such a peer.
    DefaultGateway(AddressFamily),
}

impl PeerAddress {
    /// The address, where it is configured.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address),
            Self::Neighbour | Self::DefaultGateway(_) => None,
        }
    }
}

const GATEWAYS: [(&str, AddressFamily); 2] =
    [("default-gateway-ipv4", AddressFamily::Ipv4), ("default-gateway-ipv6", AddressFamily::Ipv6)];

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Neighbour => f.write_str("neighbour"),
            Self::DefaultGateway(AddressFamily::Ipv4) => f.write_str(GATEWAYS[0].0),
            Self::DefaultGateway(AddressFamily::Ipv6) => f.write_str(GATEWAYS[1].0),
        }
    }
}

impl<'de> Deserialize<'de> for PeerAddress {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if let Some((_, family)) = GATEWAYS.iter().find(|(name, _)| *name == text) {
            return Ok(Self::DefaultGateway(*family));
        }
        let [v4, v6] = GATEWAYS.map(|(name, _)| name);
        text.parse().map(Self::Ip).map_err(|_| {
            D::Error::custom(format_args!(
                "`{text}` is neither an IP address nor {v4} or {v6}; leave it out for a peer that is found on its `interface`"
            ))
        })
    }
}

/// `asn` of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAsn {
    /// That one.
    Number(u32),
    /// Whichever it says, but not this node's.
    External,
    /// This node's.
    Internal,
}

impl PeerAsn {
    /// The number where this node's is `own`; `None`: it is the peer that tells.
    pub fn number(self, own: Option<u32>) -> Option<u32> {
        match self {
            Self::Number(number) => Some(number),
            Self::External => None,
            Self::Internal => own,
        }
    }
}

impl fmt::Display for PeerAsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::External => f.write_str("external"),
            Self::Internal => f.write_str("internal"),
        }
    }
}

impl<'de> Deserialize<'de> for PeerAsn {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct NumberOrWord;

        impl Visitor<'_> for NumberOrWord {
            type Value = PeerAsn;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an autonomous system number, `external` or `internal`")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<PeerAsn, E> {
                match u32::try_from(number) {
                    Ok(0) => Err(E::custom("0 is reserved (RFC 7607)")),
                    Ok(number) => Ok(PeerAsn::Number(number)),
                    Err(_) => Err(E::custom(format_args!("{number} is more than {}", u32::MAX))),
                }
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PeerAsn, E> {
                match text {
                    "external" => Ok(PeerAsn::External),
                    "internal" => Ok(PeerAsn::Internal),
                    _ => match text.parse() {
                        Ok(number) => self.visit_u64(number),
                        Err(_) => Err(E::custom(format_args!(
                            "`{text}` is neither an autonomous system number nor `external` or `internal`"
                        ))),
                    },
                }
            }
        }

        d.deserialize_any(NumberOrWord)
    }
}

/// Who asks for a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeerSource {
    /// The config file.
    #[default]
    Config,
    /// An annotation of the Node.
    Annotation,
    /// `router.mesh`: it is another node.
    Mesh,
}

/// `passwordSecret` of a peer: a key of a Secret in the agent's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKey {
    /// The Secret's name.
    pub name: String,
    /// The key in its data.
    #[serde(default = "password_key")]
    pub key: String,
}

/// Where a password is read from; prints as `file /etc/sheave/password` or `Secret sheave-bgp (key password)`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PasswordSource {
    /// A file.
    File(PathBuf),
    /// A Secret.
    Secret(SecretKey),
}

impl fmt::Display for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Secret(SecretKey { name, key }) => write!(f, "Secret {name} (key {key})"),
        }
    }
}

/// One of `router.dynamicPeers`: peers that connect to this node from a range. Fields are those of [`Peer`] where they have the
/// same name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DynamicPeer {
    /// Where peers may connect from.
    #[serde(deserialize_with = "prefix")]
    pub prefix: IpNet,
    /// Their autonomous system.
    #[serde(deserialize_with = "asn")]
    pub asn: u32,
    /// How many there may be.
    #[serde(default = "limit")]
    pub limit: u16,
    #[serde(default)]
    password_file: Option<PathBuf>,
    #[serde(default)]
    password_secret: Option<SecretKey>,
    #[serde(default)]
    multihop: Option<u8>,
    #[serde(default, deserialize_with = "hops")]
    ttl_security: Option<u8>,
    #[serde(default = "hold_time", deserialize_with = "hold_time_of")]
    hold_time: Duration,
    #[serde(default, deserialize_with = "send_hold_time_of")]
    send_hold_time: Option<Duration>,
    #[serde(default, deserialize_with = "delay_open_of")]
    delay_open: Option<Duration>,
    #[serde(default)]
    bfd: Option<Bfd>,
    #[serde(default)]
    next_hop: NextHop,
    #[serde(default)]
    extended_next_hop: Option<bool>,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    require_role: bool,
    #[serde(default)]
    add_paths: AddPaths,
    #[serde(default = "families")]
    families: Vec<AddressFamily>,
    /// Of which of our prefixes they are told, and with what.
    #[serde(default, deserialize_with = "export::policy")]
    pub export: ExportPolicy,
    #[serde(default)]
    route_reflector_client: bool,
}

impl DynamicPeer {
    /// What each of them is like, but for its address.
    pub fn template(&self) -> Peer {
        Peer {
            passive: true,
            password_file: self.password_file.clone(),
            password_secret: self.password_secret.clone(),
            multihop: self.multihop,
            ttl_security: self.ttl_security,
            hold_time: self.hold_time,
            send_hold_time: self.send_hold_time,
            delay_open: self.delay_open,
            bfd: self.bfd.clone(),
            next_hop: self.next_hop,
            extended_next_hop: self.extended_next_hop,
            role: self.role,
            require_role: self.require_role,
            add_paths: self.add_paths,
            families: self.families.clone(),
            export: self.export.clone(),
            route_reflector_client: self.route_reflector_client,
            ..Peer::new(self.prefix.addr(), self.asn)
        }
    }
}

/// `addPaths` of a peer: in which directions several paths to a prefix may be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AddPaths {
    /// The peer's are taken.
    pub receive: bool,
    /// The peer is sent them.
    pub send: bool,
}

/// `nextHop` of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NextHop {
    /// The session's local address.
    #[default]
    Own,
    /// A fixed address.
    Address(IpAddr),
}

/// An address family (AFI with SAFI unicast).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressFamily {
    /// IPv4 unicast.
    Ipv4,
    /// IPv6 unicast.
    Ipv6,
}

/// `role` of a peer: what this node is to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Its transit provider.
    Provider,
    /// Its route server.
    Rs,
    /// A client of it, which is a route server.
    #[serde(rename = "rs-client")]
    RsClient,
    /// Its customer.
    Customer,
    /// Neither.
    Peer,
}

/// The field that is wrong, from the list on, and what is wrong with it.
pub(super) type Wrong = (String, String);

/// What no field can tell alone.
pub(super) fn check(peers: &[Peer]) -> Result<(), Wrong> {
    let mut seen = HashSet::new();
    for (index, peer) in peers.iter().enumerate() {
        let wrong = |field: &str, message: String| Err((format!("[{index}].{field}"), message));
        if !seen.insert(peer.place()) {
            let field = if peer.address == PeerAddress::Neighbour { "interface" } else { "address" };
            return wrong(field, format!("{} is listed twice: a peer has one session", peer.name()));
        }
        let of_other_family = |local: IpAddr, ipv4: bool| local.is_ipv4() != ipv4;
        if peer
            .local_address
            .zip(peer.runs_over_ipv4())
            .is_some_and(|(local, ipv4)| of_other_family(local, ipv4))
        {
            return wrong("localAddress", "is of another address family than the peer's address".into());
        }
        match (peer.address, &peer.interface) {
            (PeerAddress::Neighbour, None) => {
                let message = "missing: give the peer's address, or the interface that it is to be found on";
                return wrong("address", message.into());
            }
            (PeerAddress::Ip(address), None) if is_link_local(address) => {
                let message =
                    format!("missing: {address} is link-local, give the interface that it is behind");
                return wrong("interface", message);
            }
            (PeerAddress::Ip(address), Some(_)) if !is_link_local(address) => {
                return wrong(
                    "interface",
                    "is for a link-local address, such as fe80::1, or for none: leave out this or the address".into(),
                );
            }
            (PeerAddress::DefaultGateway(_), Some(_)) => {
                return wrong("interface", "is the default route's: leave it out".into());
            }
            (PeerAddress::Neighbour | PeerAddress::Ip(_), _) | (PeerAddress::DefaultGateway(_), None) => {}
        }
        fits(peer).or_else(|(field, message)| wrong(field, message.into()))?;
    }
    Ok(())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The same of ranges.
pub(super) fn check_dynamic(ranges: &[DynamicPeer]) -> Result<(), Wrong> {
    let mut seen = HashSet::new();
    for (index, range) in ranges.iter().enumerate() {
        let wrong = |field: &str, message: String| Err((format!("[{index}].{field}"), message));
        if !seen.insert(range.prefix) {
            return wrong("prefix", format!("{} is listed twice", range.prefix));
        }
        if range.limit == 0 {
            return wrong(
                "limit",
                "0 would let nobody connect: give how many there may be, or remove the range".into(),
            );
        }
        fits(&range.template()).or_else(|(field, message)| wrong(field, message.into()))?;
    }
    Ok(())
}

/// Which two fields do not fit together.
fn fits(peer: &Peer) -> Result<(), (&'static str, &'static str)> {
    if peer.require_role && peer.role.is_none() {
        return Err(("requireRole", "there is no role that the peer's could fit: give this node's `role`"));
    }
    if peer.extended_next_hop == Some(true) && peer.runs_over_ipv4() == Some(true) {
        return Err(("extendedNextHop", "is for sessions over IPv6, which carry IPv4 by it: leave it out"));
    }
    if peer.password_file.is_some() && peer.password_secret.is_some() {
        return Err(("passwordSecret", "there is a passwordFile too: give one of them"));
    }
    if peer.interface.is_some() && peer.bfd.as_ref().is_some_and(|bfd| bfd.multihop == Some(true)) {
        return Err(("bfd.multihop", "a link-local address is one hop away: leave it out"));
    }
    if peer.ttl_security.is_some() && peer.multihop.is_some() {
        return Err((
            "multihop",
            "there is ttlSecurity too, which sends with TTL 255: leave ttlSecurity, as the number of hops",
        ));
    }
    Ok(())
}

pub(super) fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(d)?)
}

fn parse_duration<E: serde::de::Error>(text: &str) -> Result<Duration, E> {
    humantime::parse_duration(text)
        .map_err(|_| E::custom(format_args!("`{text}` is not a duration such as 120s, 300ms or 1h")))
}

pub(super) fn hold_time() -> Duration {
    Duration::from_secs(90)
}

/// RFC 4271 section 4.2: 0, or at least 3 seconds; 16 bits.
pub(super) fn hold_time_of<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let time = duration(d)?;
    let seconds = time.as_secs();
    if time.subsec_nanos() != 0 || (seconds != 0 && !(3..=65535).contains(&seconds)) {
        return Err(D::Error::custom("a hold time is 0s (never) or whole seconds of 3s to 65535s"));
    }
    Ok(time)
}

/// RFC 9687 section 3.2: longer than the hold time, which is negotiated; and no shorter than one can be.
fn send_hold_time_of<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    within(d, 3, 86400, "a send hold time is null (8min, or twice the hold time) or 3s to 24h")
}

fn delay_open_of<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    within(d, 1, 240, "an OPEN is delayed by 1s to 240s, or null: not at all")
}

pub(super) fn within<'de, D: Deserializer<'de>>(
    d: D,
    least: u64,
    most: u64,
    wrong: &str,
) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
    let time = parse_duration(&text)?;
    if time < Duration::from_secs(least) || time > Duration::from_secs(most) {
        return Err(D::Error::custom(wrong));
    }
    Ok(Some(time))
}

fn prefix<'de, D: Deserializer<'de>>(d: D) -> Result<IpNet, D::Error> {
    reader::cidr(&String::deserialize(d)?).map_err(D::Error::custom)
}

fn limit() -> u16 {
    100
}

fn bgp_port() -> u16 {
    179
}

fn families() -> Vec<AddressFamily> {
    vec![AddressFamily::Ipv4, AddressFamily::Ipv6]
}

fn asn<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    match u32::deserialize(d)? {
        0 => Err(D::Error::custom("0 is reserved (RFC 7607)")),
        asn => Ok(asn),
    }
}

fn password_key() -> String {
    "password".into()
}

fn hops<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u8>, D::Error> {
    match Option::<u8>::deserialize(d)? {
        Some(0) => Err(D::Error::custom("a peer on the same link is 1 hop away: 1 to 255, or null")),
        hops => Ok(hops),
    }
}

impl<'de> Deserialize<'de> for NextHop {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match &*String::deserialize(d)? {
            "self" => Ok(Self::Own),
            text => text
                .parse()
                .map(Self::Address)
                .map_err(|_| D::Error::custom(format_args!("`{text}` is neither `self` nor an IP address"))),
        }
    }
}
