//! Traffic that goes on while the cluster changes.

use std::net::IpAddr;

use anyhow::Result;
use sheave::cluster::Protocol::{Sctp, Tcp, Udp};

use super::{Connections, Load, await_each};
use crate::netns::NetNs;

/// Requests of all protocols to port 80, and connections that stay open.
#[derive(Debug)]
pub struct Steady {
    loads: Vec<Load>,
    connections: Vec<Connections>,
}

impl Steady {
    /// Starts them from each of these to that address.
    pub fn start(ways: &[(&NetNs, IpAddr)]) -> Result<Self> {
        let (mut loads, mut connections) = (Vec::new(), Vec::new());
        for (from, address) in ways {
            for protocol in [Tcp, Udp, Sctp] {
                loads.push(Load::start(from, protocol, *address, 80, 1)?);
            }
            for protocol in [Tcp, Sctp] {
                connections.push(Connections::open(from, protocol, *address, 80, 10)?);
            }
        }
        Ok(Self { loads, connections })
    }

    /// Waits for answers of each kind, and wants every connection to be what it was.
    pub fn check(&mut self) -> Result<()> {
        await_each(&self.loads, 10)?;
        self.connections.iter_mut().try_for_each(Connections::check)
    }

    /// Ends them; an error if a request ever failed.
    pub fn none_failed(mut self) -> Result<()> {
        self.check()?;
        self.loads.into_iter().try_for_each(Load::none_failed)
    }
}
