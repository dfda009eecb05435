//! The node's side of a pod that accepts itself: its replies have a VIP as source, which is an address of this node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::sysctl::{self, Sysctls, Use};
use super::PodError;
use super::owner::Device;

/// The devices that lead to pods, and whose replies come in by each.
#[derive(Debug, Default)]
pub struct ReplyPaths(BTreeMap<IpAddr, String>);

impl ReplyPaths {
    /// Lets replies of this pod in. IPv6 has no such checks.
    ///
    /// # Errors
    /// [`PodError`] where the kernel would drop them all the same.
    pub fn open(
        &mut self,
        sysctls: &mut Sysctls,
        endpoint: IpAddr,
        Device { name, has_address }: Device,
    ) -> Result<(), PodError> {
        if endpoint.is_ipv6() {
            return Ok(());
        }
        // Without an address of its own a device passes no loose check either (`__fib_validate_source`).
        if !has_address && sysctl::checks_sources(&name)? {
            return Err(PodError::SourceCheck(name));
        }
        let settings = sysctl::interface(&name, false)?;
        self.0.insert(endpoint, name);
        sysctls.ensure(&settings, Use::Pods)?;
        Ok(())
    }

    /// Keeps those of these endpoints alone. Gives whether others went.
    pub fn retain(&mut self, mut keep: impl FnMut(IpAddr) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|endpoint, _| keep(*endpoint));
        self.0.len() < before
    }

    /// The devices.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(String::as_str)
    }
}
