//! TCP MD5 signatures (RFC 2385).
//!
//! A socket has keys by address of the other side, or by prefix, the longest counting. Segments from and to an address with a key are signed, and
//! those without the right signature are dropped before anyone hears of them. Sockets that a listener accepts
//! have its key for their peer.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use ipnet::IpNet;

use super::option;

/// `TCP_MD5SIG_MAXKEYLEN` of `linux/tcp.h`.
const MAX_KEY: usize = 80;
/// `TCP_MD5SIG_FLAG_PREFIX`: the prefix length counts.
const PREFIX: u8 = 1;
/// `sizeof(struct __kernel_sockaddr_storage)`.
const ADDRESS: usize = 128;
/// `sizeof(struct tcp_md5sig)`.
const SIZE: usize = ADDRESS + 8 + MAX_KEY;

/// The password of a session: 1 to 80 bytes. `Debug` tells nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Box<[u8]>);

/// A password that TCP MD5 cannot take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a password has 1 to {MAX_KEY} bytes, this one has {0}")]
pub struct PasswordLength(pub usize);

impl Password {
    /// Takes a password as it is, line ends included.
    ///
    /// # Errors
    /// It is empty or too long.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Result<Password, PasswordLength> {
        let bytes = bytes.into();
        if (1..=MAX_KEY).contains(&bytes.len()) {
            Ok(Password(bytes))
        } else {
            Err(PasswordLength(bytes.len()))
        }
    }

    /// The password itself: not for logs.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Sets the key of `socket` for `peers` (`None`: removes it, if there is one).
///
/// # Errors
/// The kernel refuses: it lacks TCP MD5 (`ENOPROTOOPT`), or the socket's memory for keys is used up (`ENOMEM`, sysctl
/// `net.core.optmem_max`).
pub(super) fn set_key(socket: BorrowedFd<'_>, peers: IpNet, password: Option<&Password>) -> io::Result<()> {
    let key = password.map_or(&[][..], |password| &password.0);
    match option::set(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG_EXT, &md5sig(peers, key)) {
        // There was none to remove.
        Err(error) if password.is_none() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), format!("TCP MD5 password: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// `struct tcp_md5sig` of `linux/tcp.h`: address, flags, prefix length, key length, interface index, key. An empty
/// key removes.
fn md5sig(peers: IpNet, key: &[u8]) -> [u8; SIZE] {
    let mut sig = [0; SIZE];
    let (family, at, address) = match &peers {
        // `struct sockaddr_in`: family, port, address.
        IpNet::V4(v4) => (libc::AF_INET, 4, &v4.network().octets()[..]),
        // `struct sockaddr_in6`: family, port, flow label, address, scope.
        IpNet::V6(v6) => (libc::AF_INET6, 8, &v6.network().octets()[..]),
    };
    let half = |value: usize| u16::try_from(value).unwrap_or(u16::MAX).to_ne_bytes();
    sig[..2].copy_from_slice(&half(usize::try_from(family).unwrap_or_default()));
    sig[at..at + address.len()].copy_from_slice(address);
    sig[ADDRESS] = PREFIX;
    sig[ADDRESS + 1] = peers.prefix_len();
    sig[ADDRESS + 2..ADDRESS + 4].copy_from_slice(&half(key.len()));
    sig[ADDRESS + 8..ADDRESS + 8 + key.len()].copy_from_slice(key);
    sig
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_have_limits_and_are_not_told() {
        for (length, good) in [(0, false), (1, true), (80, true), (81, false)] {
            assert_eq!(Password::new(vec![b'x'; length]).is_ok(), good, "{length}");
        }
        let password = Password::new(*b"secret").ok();
        assert_eq!(format!("{password:?}"), "Some(Password(…))");
    }

    #[test]
    fn the_kernels_layout() {
        let sig = md5sig("192.0.2.1/32".parse().unwrap(), b"key");
        assert_eq!(sig.len(), 216);
        assert_eq!(sig[4..8], [192, 0, 2, 1]);
        assert_eq!(sig[128..130], [1, 32]);
        assert_eq!(sig[130..132], 3u16.to_ne_bytes());
        assert_eq!(sig[136..140], *b"key\0");
        let sig = md5sig("fd00::1:0/112".parse().unwrap(), b"");
        assert_eq!((sig[8], sig[21], sig[129], sig[130]), (0xfd, 1, 112, 0));
    }
}
