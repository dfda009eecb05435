//! Receive ports of Generic UDP Encapsulation (the kernel calls the whole Foo-over-UDP), over generic netlink: what comes in there
//! loses its UDP and GUE headers and goes on as if it had been IP in IP.
//!
//! ```text
//! uplink ─► rule `outer`: to a pod of ours, from a node, and GUE ─destination := our tunnel address─► port here ─► sheave4, sheave6
//! ```
//!
//! Each port is bound to the address of one of our tunnel devices, which no packet from outside has as its destination: so nothing
//! but what the rules turned there is taken in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{fmt, fs, io};

use rustix::io::Errno;
use rustix::net::netlink::GENERIC;

use super::netlink::{self, Request, Socket};
use super::tunnel::{LOCAL4, LOCAL6};

/// The UDP port: IANA's for GUE, the same on every node. Not 5555, which examples use and kube-router takes for its overlay.
pub const PORT: u16 = 6080;

/// Why this node does not take in GUE.
#[derive(Debug, thiserror::Error)]
pub enum FouError {
    /// The kernel does not know the generic netlink family.
    #[error(
        "the kernel has no Foo-over-UDP: `modprobe fou`, and `echo fou > /etc/modules-load.d/fou.conf` for the next boot"
    )]
    Unavailable,
    /// Somebody else's receive port is in the way.
    #[error("{0} is another owner's: `ip fou show` has it, `ip fou del` removes it")]
    Taken(Port),
    /// A socket is in the way.
    #[error(
        "a program listens on UDP port {PORT} of all addresses, so {0} cannot be made: `ss -ulnp` tells which one"
    )]
    InUse(Port),
    /// What the kernel says otherwise.
    #[error("{request}: {source}")]
    Refused {
        /// What was asked for.
        request: &'static str,
        /// The answer.
        source: io::Error,
    },
}

/// A receive port as the kernel lists it, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    address: IpAddr,
    port: u16,
    encapsulation: u8,
    /// Takes packets of one sender or interface alone.
    narrowed: bool,
}

/// From linux/genetlink.h.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// From linux/fou.h.
const FOU_GENL_NAME: &str = "fou";
const FOU_CMD_ADD: u8 = 1;
const FOU_CMD_DEL: u8 = 2;
const FOU_CMD_GET: u8 = 3;
const FOU_ATTR_PORT: u16 = 1;
const FOU_ATTR_AF: u16 = 2;
const FOU_ATTR_TYPE: u16 = 4;
const FOU_ATTR_LOCAL_V4: u16 = 6;
const FOU_ATTR_LOCAL_V6: u16 = 7;
const FOU_ATTR_PEER_PORT: u16 = 10;
const FOU_ATTR_IFINDEX: u16 = 11;
const FOU_ENCAP_GUE: u8 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.encapsulation == FOU_ENCAP_GUE { "GUE" } else { "FOU" };
        write!(f, "the {kind} port {} of {}", self.port, self.address)
    }
}

impl Port {
    fn ours(address: IpAddr) -> Self {
        Self { address, port: PORT, encapsulation: FOU_ENCAP_GUE, narrowed: false }
    }

    /// Those of a node; `ipv6`: it has that family.
    fn wanted(ipv6: bool) -> impl Iterator<Item = Self> {
        let addresses = [Some(IpAddr::V4(LOCAL4)), ipv6.then_some(IpAddr::V6(LOCAL6))];
        addresses.into_iter().flatten().map(Self::ours)
    }

    fn is_same_place(&self, other: &Self) -> bool {
        self.port == other.port
            && self.address.is_ipv4() == other.address.is_ipv4()
            && (self.address == other.address || self.address.is_unspecified())
    }

    fn parse(attributes: &[u8]) -> Option<Self> {
        let (mut port, mut encapsulation, mut address, mut narrowed) = (None, None, None, false);
        for (kind, value) in netlink::attributes(attributes) {
            match kind {
                FOU_ATTR_PORT => port = value.first_chunk().copied().map(u16::from_be_bytes),
                FOU_ATTR_TYPE => encapsulation = value.first().copied(),
                FOU_ATTR_LOCAL_V4 => address = value.first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into()),
                FOU_ATTR_LOCAL_V6 => address = value.first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into()),
                FOU_ATTR_PEER_PORT | FOU_ATTR_IFINDEX => narrowed |= value.iter().any(|byte| *byte != 0),
                _ => {}
            }
        }
        Some(Self { address: address?, port: port?, encapsulation: encapsulation?, narrowed })
    }

    fn attributes(&self) -> Vec<u8> {
        let (family, local) = match self.address {
            IpAddr::V4(address) => (AF_INET, netlink::attribute(FOU_ATTR_LOCAL_V4, &address.octets())),
            IpAddr::V6(address) => (AF_INET6, netlink::attribute(FOU_ATTR_LOCAL_V6, &address.octets())),
        };
        [
            netlink::attribute(FOU_ATTR_PORT, &self.port.to_be_bytes()),
            netlink::attribute(FOU_ATTR_AF, &[family]),
            netlink::attribute(FOU_ATTR_TYPE, &[self.encapsulation]),
            local,
        ]
        .concat()
    }
}

/// Makes sure that this node has its ports; the tunnel devices' addresses must be there. Gives what was made, in words.
///
/// # Errors
/// [`FouError`]: this node cannot take in GUE.
pub fn ensure(ipv6: bool) -> Result<Vec<String>, FouError> {
    let mut fou = Fou::open()?;
    let mut made = Vec::new();
    for port in missing(&fou.list()?, ipv6)? {
        match fou.change(FOU_CMD_ADD, "add a GUE port", &port) {
            Err(FouError::Refused { source, .. }) if is(&source, Errno::ADDRINUSE) => {
                return Err(FouError::InUse(port));
            }
            result => result?,
        }
        made.push(format!("made {port}"));
    }
    Ok(made)
}

/// Whether this node has its ports; `false`: nothing is known that would keep it from making them.
///
/// # Errors
/// [`FouError`].
pub fn stands(ipv6: bool) -> Result<bool, FouError> {
    let Some(port) = missing(&Fou::open()?.list()?, ipv6)?.first().copied() else { return Ok(true) };
    // As proc(5) has it; where it cannot be read, making the port will tell.
    let sockets =
        |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    if ["udp", "udp6"].into_iter().any(|file| has_listener(&sockets(file))) {
        return Err(FouError::InUse(port));
    }
    Ok(false)
}

/// Whether a socket has our port on all addresses.
fn has_listener(sockets: &str) -> bool {
    let local = sockets.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)?.split_once(':'));
    let all = |address: &str| address.bytes().all(|digit| digit == b'0');
    local.into_iter().any(|(address, port)| all(address) && u16::from_str_radix(port, 16) == Ok(PORT))
}

/// Removes our ports. Gives how many there were.
///
/// # Errors
/// [`FouError::Refused`].
pub fn remove() -> Result<usize, FouError> {
    let mut fou = match Fou::open() {
        Err(FouError::Unavailable) => return Ok(0),
        fou => fou?,
    };
    let listed = fou.list()?;
    let ours = Port::wanted(true).filter(|port| listed.contains(port)).collect::<Vec<_>>();
    ours.iter().try_for_each(|port| fou.change(FOU_CMD_DEL, "remove a GUE port", port))?;
    Ok(ours.len())
}

/// The ports of ours that are not among those listed.
fn missing(listed: &[Port], ipv6: bool) -> Result<Vec<Port>, FouError> {
    let missing: Vec<Port> = Port::wanted(ipv6).filter(|port| !listed.contains(port)).collect();
    let is_in_the_way = |listed: &&Port| missing.iter().any(|port| listed.is_same_place(port));
    match listed.iter().find(is_in_the_way) {
        Some(other) => Err(FouError::Taken(*other)),
        None => Ok(missing),
    }
}

/// The generic netlink family.
struct Fou {
    socket: Socket,
    family: u16,
}

impl Fou {
    fn open() -> Result<Self, FouError> {
        let refused = |request| move |source| FouError::Refused { request, source };
        let mut socket = Socket::open(Some(GENERIC)).map_err(refused("generic netlink socket"))?;
        let name = netlink::name_attribute(CTRL_ATTR_FAMILY_NAME, FOU_GENL_NAME);
        let mut family = None;
        let result = socket.ask(request(GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY, &name), |_, answer| {
            let id = netlink::attributes(answer).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID);
            family = id.and_then(|(_, value)| value.first_chunk().copied().map(u16::from_ne_bytes));
        });
        match result {
            Err(error) if is(&error, Errno::NOENT) => return Err(FouError::Unavailable),
            result => result.map_err(refused("find generic netlink family fou"))?,
        }
        Ok(Self { socket, family: family.ok_or(FouError::Unavailable)? })
    }

    fn list(&mut self) -> Result<Vec<Port>, FouError> {
        let mut ports = Vec::new();
        let dump = request(self.family, netlink::DUMP, FOU_CMD_GET, &[]);
        let result = self.socket.ask(dump, |_, answer| ports.extend(Port::parse(answer)));
        result.map_err(|source| FouError::Refused { request: "list FOU ports", source })?;
        Ok(ports)
    }

    fn change(&mut self, command: u8, what: &'static str, port: &Port) -> Result<(), FouError> {
        let result = self.socket.ask(request(self.family, 0, command, &port.attributes()), |_, _| {});
        result.map_err(|source| FouError::Refused { request: what, source })
    }
}

/// With `struct genlmsghdr`: command and version.
fn request(kind: u16, flags: u16, command: u8, attributes: &[u8]) -> Request<'_> {
    Request { kind, flags, header: [command, 1, 0, 0], attributes }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: &str, port: u16, encapsulation: u8) -> Port {
        Port { address: address.parse().unwrap(), port, encapsulation, narrowed: false }
    }

    #[test]
    fn a_port_is_listed_as_it_was_asked_for() {
        for wanted in Port::wanted(true) {
            assert_eq!(Port::parse(&wanted.attributes()), Some(wanted));
            let narrow = netlink::attribute(FOU_ATTR_IFINDEX, &7_i32.to_ne_bytes());
            let narrowed = Port::parse(&[wanted.attributes(), narrow].concat()).unwrap();
            assert_ne!(narrowed, wanted);
        }
    }

    #[test]
    fn listeners_on_all_addresses() {
        let header = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n";
        let zero = "00000000";
        for (case, local, expected) in [
            ("ours", "085863C0:17C0".to_owned(), false),
            ("all of IPv4", format!("{zero}:17C0"), true),
            ("all of IPv6", format!("{}:17C0", zero.repeat(4)), true),
            ("another port", format!("{zero}:17C1"), false),
        ] {
            let sockets = format!("{header}  507: {local} 00000000:0000 07 00000000:00000000 00:00000000\n");
            assert_eq!(has_listener(&sockets), expected, "{case}");
        }
        assert!(!has_listener("") && !has_listener(header));
    }

    #[test]
    fn what_is_missing_and_what_is_in_the_way() {
        let [v4, v6] = [LOCAL4.into(), LOCAL6.into()].map(Port::ours);
        let other = |address: &str| port(address, PORT, FOU_ENCAP_GUE);
        let narrow = Port { narrowed: true, ..v4 };
        for (case, listed, ipv6, expected) in [
            ("nothing", vec![], true, Ok(vec![v4, v6])),
            ("a node without IPv6", vec![], false, Ok(vec![v4])),
            ("ours", vec![v6, v4], true, Ok(vec![])),
            ("one of ours", vec![v4], true, Ok(vec![v6])),
            ("another port", vec![port("0.0.0.0", 5555, FOU_ENCAP_GUE)], true, Ok(vec![v4, v6])),
            ("another address", vec![other("10.0.0.1")], true, Ok(vec![v4, v6])),
            ("all addresses", vec![other("0.0.0.0")], true, Err(other("0.0.0.0"))),
            ("all addresses of the other family", vec![v4, other("0.0.0.0")], false, Ok(vec![])),
            ("all addresses, IPv6", vec![v4, other("::")], true, Err(other("::"))),
            (
                "our place, without GUE",
                vec![port("192.88.99.8", PORT, 1)],
                true,
                Err(port("192.88.99.8", PORT, 1)),
            ),
            ("our place, for one sender", vec![narrow], true, Err(narrow)),
        ] {
            let found = missing(&listed, ipv6).map_err(|error| match error {
                FouError::Taken(port) => port,
                other => panic!("{case}: {other}"),
            });
            assert_eq!(found, expected, "{case}");
        }
    }
}
