//! What an explanation is asked of.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::cluster::{Protocol, ServiceName};
use crate::plan::VipPort;

/// A Service, or an address and port that something is sent to. Prints as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `NAMESPACE/SERVICE`.
    Service(ServiceName),
    /// `ADDRESS:PORT` or `[ADDRESS]:PORT`, with or without `/tcp`, `/udp` or `/sctp`.
    Address {
        /// Address and port: a VIP's, or a node's with a node port.
        address: SocketAddr,
        /// `None`: each that is there.
        protocol: Option<Protocol>,
    },
}

/// A target that does not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither NAMESPACE/SERVICE nor ADDRESS:PORT: {1}")]
pub struct TargetError(String, &'static str);

impl Target {
    /// The keys of the virtual servers that it may mean.
    pub(super) fn vip_ports(
        address: SocketAddr,
        protocol: Option<Protocol>,
    ) -> impl Iterator<Item = VipPort> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .filter(move |one| protocol.is_none_or(|wanted| wanted == *one))
            .map(move |protocol| VipPort { address: address.ip(), port: address.port(), protocol })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => name.fmt(f),
            Self::Address { address, protocol: None } => address.fmt(f),
            Self::Address { address, protocol: Some(protocol) } => {
                write!(f, "{address}/{}", protocol.to_string().to_lowercase())
            }
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let wrong = |why| TargetError(text.to_owned(), why);
        if let Ok(address) = text.parse::<IpAddr>() {
            return Err(wrong(match address {
                IpAddr::V4(_) => "a port is missing, as in 192.0.2.80:80",
                IpAddr::V6(_) => "a port is missing, as in [2001:db8:2::80]:80",
            }));
        }
        let (head, tail) = text.split_once('/').map_or((text, None), |(head, tail)| (head, Some(tail)));
        if let Ok(address) = head.parse::<SocketAddr>() {
            let protocol = match tail.map(str::to_ascii_lowercase).as_deref() {
                None => None,
                Some("tcp") => Some(Protocol::Tcp),
                Some("udp") => Some(Protocol::Udp),
                Some("sctp") => Some(Protocol::Sctp),
                Some(_) => return Err(wrong("behind the port comes /tcp, /udp, /sctp or nothing")),
            };
            if address.port() == 0 {
                return Err(wrong("a port is from 1 to 65535"));
            }
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            return Ok(Self::Address { address, protocol });
        }
        match tail {
            Some(name) if is_name(head) && is_name(name) => {
                Ok(Self::Service(ServiceName { namespace: Arc::from(head), name: Arc::from(name) }))
            }
            Some(_) => Err(wrong("names have lower-case letters, digits, dashes and dots")),
            None if is_name(text) => Err(wrong("name the Service's namespace too, as in default/web")),
            None => Err(wrong("an IPv6 address with a port is written [2001:db8:2::80]:80")),
        }
    }
}

/// Whether Kubernetes could have let an object have this name (a DNS subdomain, RFC 1123).
fn is_name(text: &str) -> bool {
    let within = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    (1..=253).contains(&text.len())
        && text.bytes().all(within)
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reads() {
        for (text, printed) in [
            ("default/web", "default/web"),
            ("kube-system/kube-dns", "kube-system/kube-dns"),
            ("192.0.2.80:80", "192.0.2.80:80"),
            ("192.0.2.80:80/tcp", "192.0.2.80:80/tcp"),
            ("192.0.2.80:80/TCP", "192.0.2.80:80/tcp"),
            ("10.96.0.10:53/udp", "10.96.0.10:53/udp"),
            ("[2001:db8:2::29]:2905/sctp", "[2001:db8:2::29]:2905/sctp"),
            ("[2001:DB8:2::80]:80", "[2001:db8:2::80]:80"),
            ("[::ffff:192.0.2.80]:80", "192.0.2.80:80"),
        ] {
            assert_eq!(text.parse::<Target>().map(|target| target.to_string()), Ok(printed.into()), "{text}");
        }
    }

    #[test]
    fn what_does_not_read_says_why() {
        for (text, why) in [
            ("web", "name the Service's namespace too"),
            ("192.0.2.80", "a port is missing, as in 192.0.2.80:80"),
            ("2001:db8:2::80", "a port is missing, as in [2001:db8:2::80]:80"),
            ("2001:db8:2::80:80:tcp", "is written [2001:db8:2::80]:80"),
            ("192.0.2.80:80/icmp", "/tcp, /udp, /sctp or nothing"),
            ("192.0.2.80:0", "from 1 to 65535"),
            ("192.0.2.80:80000", "is written"),
            ("default/Web", "lower-case letters"),
            ("default/", "lower-case letters"),
            ("/web", "lower-case letters"),
            ("default/web/http", "lower-case letters"),
            ("", "is written"),
        ] {
            let error = text.parse::<Target>().map_err(|error| error.to_string());
            assert!(error.as_ref().is_err_and(|error| error.contains(why)), "{text}: {error:?}");
        }
    }
}
