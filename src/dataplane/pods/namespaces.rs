//! Which network namespaces have an address: found without asking a container runtime.
//!
//! Runtimes and CNI plugins keep a pod's namespace as a file in `/run/netns`; where none there has the address, the
//! namespaces of all visible processes are looked at too. A namespace counts once, whatever files and processes stand for it.
//! What was seen is remembered by the namespaces' identity, so that only new ones are entered, unless an address is not
//! found. Whose the address is of those that have it, [`super::owner`] says.

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

/// A namespace that could not be looked at, and why.
type Unseen = (PathBuf, String);

impl Finder {
    /// One that knows nothing yet.
    ///
    /// # Errors
    /// What the system says of our own namespace.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            own: Id::of(Path::new("/proc/thread-self/ns/net"))?,
            known: HashMap::new(),
            busy: Busy::default(),
        })
    }

    /// The namespaces that have these addresses: those of [`DIRECTORY`], of processes only where these do not do. Whether
    /// what was found does, `will_do` says; where it does not, everything is looked at anew.
    pub async fn locate(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        will_do: impl Fn(IpAddr, &[Namespace]) -> bool,
    ) -> BTreeMap<IpAddr, Result<Vec<Namespace>, PodError>> {
        if addresses.is_empty() {
            return BTreeMap::new();
        }
        let all_do = |finder: &Self, candidates: &BTreeMap<Id, PathBuf>| {
            addresses.iter().all(|address| will_do(*address, &finder.with(candidates, *address)))
        };
        let (mut candidates, unreadable) = self.in_directory();
        let mut unseen = self.look(&candidates, false).await;
        if !all_do(self, &candidates) {
            unseen = self.look(&candidates, true).await;
        }
        let mut found: BTreeMap<IpAddr, Vec<Namespace>> =
            addresses.iter().map(|address| (*address, self.with(&candidates, *address))).collect();
        if !all_do(self, &candidates) {
            for (id, path) in self.of_processes() {
                candidates.entry(id).or_insert(path);
            }
            unseen = self.look(&candidates, true).await.or(unseen);
            for (address, found) in &mut found {
                if !will_do(*address, found) {
                    *found = self.with(&candidates, *address);
                }
            }
        }
        let or_why_not = |found: Vec<Namespace>| match (&unseen, &unreadable) {
            _ if !found.is_empty() => Ok(found),
            (Some((path, why)), _) => Err(PodError::Unseen { path: path.clone(), why: why.clone() }),
            (None, Some(error)) => Err(PodError::NoDirectory(error.to_string())),
            (None, None) => Err(PodError::NotFound),
        };
        found.into_iter().map(|(address, found)| (address, or_why_not(found))).collect()
    }

    /// Enters a namespace anew before it counts again: it does not have what it was known for.
    pub fn forget(&mut self, id: Id) {
        self.known.remove(&id);
    }

    /// Those of `candidates` that have an address.
    fn with(&self, candidates: &BTreeMap<Id, PathBuf>, address: IpAddr) -> Vec<Namespace> {
        let has = |id: &Id| self.known.get(id).filter(|known| known.addresses.contains(&address));
        let found = candidates.keys().filter_map(|id| Some((id, has(id)?)));
        found.map(|(id, known)| Namespace { id: *id, path: known.path.clone() }).collect()
    }

    fn in_directory(&self) -> (BTreeMap<Id, PathBuf>, Option<io::Error>) {
        match entries(Path::new(DIRECTORY)) {
            Ok(entries) => (self.namespaces(entries), None),
            Err(error) => (BTreeMap::new(), Some(error)),
        }
    }

    fn of_processes(&self) -> BTreeMap<Id, PathBuf> {
        let processes = entries(Path::new("/proc")).into_iter().flatten().filter(|path| {
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

    /// Enters the new ones among `candidates`, or all, and forgets what is gone. Gives one that could not be looked at; of
    /// such what was seen before counts on.
    async fn look(&mut self, candidates: &BTreeMap<Id, PathBuf>, all: bool) -> Option<Unseen> {
        // Another one may have got the identity of one that is gone: it has another name then.
        self.known.retain(|id, known| Id::of(&known.path).is_ok_and(|found| found == *id));
        let (mut wanted, mut unseen) = (Vec::new(), None);
        for (id, path) in candidates {
            if !all && self.known.contains_key(id) {
                continue;
            }
            match self.busy.begin(*id, None) {
                Some(token) => wanted.push((Namespace { id: *id, path: path.clone() }, token)),
                None => unseen = Some((path.clone(), PodError::Busy.to_string())),
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
        for (namespace, addresses) in several(looks).await {
            match addresses {
                Ok(mut addresses) => {
                    addresses.retain(is_of_pods);
                    self.known.insert(namespace.id, Known { path: namespace.path, addresses });
                }
                Err(error) if namespace.exists() => unseen = Some((namespace.path, error.to_string())),
                Err(_) => {}
            }
        }
        unseen
    }
}

/// Addresses that every namespace has find nobody.
fn is_of_pods(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}

fn entries(directory: &Path) -> io::Result<impl Iterator<Item = PathBuf> + use<>> {
    Ok(fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path())))
}
