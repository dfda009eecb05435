//! Names of kernel modules that a virtual server refers to: fixed 16 bytes, as in the kernel.

use std::fmt;
use std::str::FromStr;

use crate::uapi::NAME_MAXLEN;

/// A name that the kernel cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a scheduler or persistence engine has a name of 1 to 15 printable ASCII characters")]
pub struct InvalidName;

/// Zero-padded; never empty, printable ASCII up to the first zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name([u8; NAME_MAXLEN]);

impl Name {
    fn new(name: &[u8]) -> Result<Self, InvalidName> {
        if name.is_empty() || name.len() >= NAME_MAXLEN || !name.iter().all(u8::is_ascii_graphic) {
            return Err(InvalidName);
        }
        let mut padded = [0; NAME_MAXLEN];
        padded[..name.len()].copy_from_slice(name);
        Ok(Self(padded))
    }

    /// The name with its terminating NUL, which the kernel's `NLA_NUL_STRING` asks for.
    fn with_nul(&self) -> &[u8] {
        &self.0[..=self.as_str().len()]
    }

    fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(NAME_MAXLEN);
        str::from_utf8(&self.0[..end]).unwrap_or_default()
    }
}

macro_rules! kernel_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Name);

        impl $name {
            /// The name without padding.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            pub(crate) fn with_nul(&self) -> &[u8] {
                self.0.with_nul()
            }

            pub(crate) fn from_bytes(name: &[u8]) -> Result<Self, InvalidName> {
                Name::new(name).map(Self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::from_bytes(name.as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }
    };
}

kernel_name! {
    /// A scheduler by the name of its module without `ip_vs_`: `rr`, `mh`, ….
    ///
    /// `none` stands for a virtual server without scheduler (since Linux 4.4). The kernel loads the
    /// module when a virtual server is added and refuses with `ENOENT` where there is none.
    SchedulerName
}

kernel_name! {
    /// A persistence engine by the name of its module without `ip_vs_pe_`: `sip`.
    PersistenceEngineName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_can_hold() {
        for name in ["rr", "mh", "none", "fifteen-letters"] {
            let parsed: SchedulerName = name.parse().unwrap();
            assert_eq!(parsed.to_string(), name);
            assert_eq!(parsed.with_nul(), [name.as_bytes(), b"\0"].concat());
        }
    }

    #[test]
    fn names_it_cannot() {
        for name in ["", "sixteen-letters!", "r r", "r\0r", "ü"] {
            assert_eq!(name.parse::<SchedulerName>(), Err(InvalidName), "{name:?}");
        }
    }
}
