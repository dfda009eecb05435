//! Which network namespace has an address: found without asking a container runtime.
//!
//! Runtimes and CNI plugins keep a pod's namespace as a file in `/run/netns`; where none there has the address, the
//! namespaces of all visible processes are looked at too. What was seen is remembered by the namespaces' identity, so that
//! only new ones are entered, unless an address is not found.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::uplink;
use super::PodError;
use super::enter::{Busy, Id, Namespace, apart, several, within};

/// Where runtimes keep namespaces.
pub const DIRECTORY: &str = "/run/netns";

/// How long looking at a namespace may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Finds namespaces by address.
#[derive(Debug)]
pub struct Finder {
    /// The one we are in: that of the host.
    own: Id,
    known: HashMap<Id, Known>,
    /// Work that was given up.
    pub busy: Busy,
}

#[derive(Debug)]
struct Known {
    path: PathBuf,
    addresses: BTreeSet<IpAddr>,
}

impl Finder {
    /// One that knows nothing yet.
    ///
    /// # Errors
    /// What the system says of our own namespace.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            own: Id::of(Path::new("/proc/self/ns/net"))?,
            known: HashMap::new(),
            busy: Busy::default(),
        })
    }

    /// The namespaces that have these addresses. Where one is not found, everything is looked at anew.
    pub async fn locate(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
    ) -> BTreeMap<IpAddr, Result<Namespace, PodError>> {
        let mut candidates = self.in_directory();
        self.look(&candidates, false).await;
        if addresses.iter().any(|address| self.find(*address).is_err()) {
            for (id, path) in self.of_processes() {
                candidates.entry(id).or_insert(path);
            }
            self.look(&candidates, true).await;
        }
        addresses.iter().map(|address| (*address, self.find(*address))).collect()
    }

    fn find(&self, address: IpAddr) -> Result<Namespace, PodError> {
        let mut found = self.known.iter().filter(|(_, known)| known.addresses.contains(&address));
        match (found.next(), found.next()) {
            (Some((id, known)), None) => Ok(Namespace { id: *id, path: known.path.clone() }),
            (None, _) => Err(PodError::NotFound),
            (Some((_, one)), Some((_, other))) => {
                Err(PodError::Ambiguous(one.path.clone(), other.path.clone()))
            }
        }
    }

    fn in_directory(&self) -> BTreeMap<Id, PathBuf> {
        self.namespaces(entries(Path::new(DIRECTORY)))
    }

    fn of_processes(&self) -> BTreeMap<Id, PathBuf> {
        let processes = entries(Path::new("/proc")).filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        });
        self.namespaces(processes.map(|process| process.join("ns/net")))
    }

    /// Those of the files that are namespaces, and not ours.
    fn namespaces(&self, paths: impl Iterator<Item = PathBuf>) -> BTreeMap<Id, PathBuf> {
        let found = paths.filter_map(|path| Some((Id::of(&path).ok()?, path)));
        found.filter(|(id, _)| *id != self.own && id.is_like(self.own)).collect()
    }

    /// Enters the new ones among `candidates`, or all, and forgets what is gone.
    async fn look(&mut self, candidates: &BTreeMap<Id, PathBuf>, all: bool) {
        // Another one may have got the identity of one that is gone: it has another name then.
        self.known.retain(|id, known| Id::of(&known.path).is_ok_and(|found| found == *id));
        let mut wanted = Vec::new();
        for (id, path) in candidates {
            if !all && self.known.contains_key(id) {
                continue;
            }
            if let Some(token) = self.busy.begin(*id, None) {
                wanted.push((Namespace { id: *id, path: path.clone() }, token));
            }
        }
        let looks = wanted.into_iter().map(|(namespace, token)| async move {
            let entered = namespace.clone();
            let addresses = apart(LIMIT, move || {
                let _token = token;
                within(&entered, async |handle| Ok(uplink::local_addresses(&handle).await?))
            });
            (namespace, addresses.await)
        });
        for (Namespace { id, path }, addresses) in several(looks).await {
            // What cannot be looked at has no address that we know: who asks for one is told that it is not found.
            let mut addresses = addresses.unwrap_or_default();
            addresses.retain(is_of_pods);
            self.known.insert(id, Known { path, addresses });
        }
    }
}

/// Addresses that every namespace has find nobody.
fn is_of_pods(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}
