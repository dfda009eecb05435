//! Kernel settings: written where they differ, with the value found first kept aside for `cleanup`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::error::is_passing;
use crate::config::Conntrack;

/// A setting below `/proc/sys`, with the value it must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl {
    /// Path below `/proc/sys`, for example `net/ipv4/ip_forward`.
    pub path: String,
    /// Value.
    pub value: Cow<'static, str>,
}

/// Below which settings are written. Container runtimes mount `/proc/sys` read-only unless the container is privileged,
/// and forbid mounts within `/proc`: the DaemonSet mounts the host's `/proc/sys/net` at a place of its own and names it.
static WRITABLE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::var_os("SHEAVE_PROC_SYS").map_or_else(|| "/proc/sys".into(), PathBuf::from));

/// What was done when writing a setting failed.
const WRITE: &str = "write";

/// What went wrong with a setting.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {path}: {action}: {error}")]
pub struct SysctlError {
    path: String,
    action: &'static str,
    error: io::Error,
}

impl SysctlError {
    fn of(path: impl Into<String>, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self { path, action, error }
    }

    /// Whether it says nothing of the setting: it was not seen, or could not be written at that moment.
    pub fn is_passing(&self) -> bool {
        self.action != WRITE || is_passing(&self.error)
    }
}

/// Settings of the whole network namespace. Why each: see `docs/decisions/sysctls.md`.
pub fn namespace(ipv6: bool) -> Vec<Sysctl> {
    let mut settings = vec![
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/vs/conntrack", "0"),
        ("net/ipv4/vs/sloppy_tcp", "1"),
        ("net/ipv4/vs/sloppy_sctp", "1"),
        ("net/ipv4/vs/pmtu_disc", "0"),
        ("net/ipv4/vs/schedule_icmp", "1"),
        ("net/ipv4/vs/expire_quiescent_template", "1"),
        (EXPIRE_NODEST_CONN, "1"),
    ];
    if ipv6 {
        settings.push(("net/ipv6/conf/all/forwarding", "1"));
    }
    settings.into_iter().map(|(path, value)| Sysctl { path: path.into(), value: value.into() }).collect()
}

/// What keeps this node from answering ARP requests for VIPs, and from asking with one as its address: `services.strictARP`
/// (as kube-proxy's `--ipvs-strict-arp`).
pub fn strict_arp() -> [Sysctl; 2] {
    [("arp_ignore", "1"), ("arp_announce", "2")]
        .map(|(key, value)| Sysctl { path: format!("net/ipv4/conf/all/{key}"), value: value.into() })
}

/// What connection tracking has less of than wanted. How many entries there may be is the machine's: its first network namespace
/// alone may set it, and in others it is left as it is.
///
/// # Errors
/// [`SysctlError`] when a value cannot be read.
pub fn conntrack(wanted: &Conntrack) -> Result<Vec<Sysctl>, SysctlError> {
    let cpus = rustix::thread::sched_getaffinity(None).map(|cpus| cpus.count());
    let max = wanted.max(cpus.map_err(|error| SysctlError::of(MAX, "count CPUs")(error.into()))?);
    let machine = [(MAX, max), ("nf_conntrack_buckets", max.map(|max| max / ENTRIES_PER_BUCKET))]
        .map(|(key, value)| (key, value.map(u64::from)))
        .into_iter()
        .filter(|(key, _)| is_writable(&format!("{NETFILTER}/{key}")));
    let own = [
        ("nf_conntrack_tcp_timeout_established", wanted.tcp_established_timeout),
        ("nf_conntrack_tcp_timeout_close_wait", wanted.tcp_close_wait_timeout),
    ]
    .map(|(key, time)| (key, Some(time.as_secs())));
    let mut settings = Vec::new();
    for (key, value) in machine.chain(own) {
        let path = format!("{NETFILTER}/{key}");
        let has = match read(&path) {
            // Connection tracking comes with the first rule that needs it: there the next time.
            Err(error) if error.error.kind() == io::ErrorKind::NotFound => continue,
            has => has?.parse::<u64>().ok(),
        };
        if let (Some(value), Some(has)) = (value, has)
            && has < value
        {
            settings.push(Sysctl { path, value: value.to_string().into() });
        }
    }
    Ok(settings)
}

const NETFILTER: &str = "net/netfilter";
const MAX: &str = "nf_conntrack_max";

/// As kube-proxy sizes the hash table.
const ENTRIES_PER_BUCKET: u32 = 4;

/// Whether connections of a removed destination are ended at once (1), or left to find it again (0).
pub const EXPIRE_NODEST_CONN: &str = "net/ipv4/vs/expire_nodest_conn";

/// Settings of one interface that replies from VIPs, or decapsulated packets, arrive on: they may carry a local
/// address as source, and need not come the way their answer would go. None where the interface has just gone.
///
/// # Errors
/// [`SysctlError`] when a present value cannot be read.
pub fn interface(name: &str, ipv6: bool) -> Result<Vec<Sysctl>, SysctlError> {
    let ipv4 = |of: &str, key: &str| format!("net/ipv4/conf/{of}/{key}");
    let is = |path: &str, wanted: &str| match read(path) {
        Err(error) if error.error.kind() == io::ErrorKind::NotFound => Ok(false),
        value => value.map(|value| value == wanted),
    };
    let mut settings = Vec::new();
    if is(&ipv4(name, "accept_local"), "0")? {
        settings.push((ipv4(name, "accept_local"), "1"));
    }
    // The larger of `all` and the interface's own is in force (ip-sysctl.rst); only strict (1) is in the way.
    let own = is(&ipv4(name, "rp_filter"), "2")?;
    if !own && (is(&ipv4("all", "rp_filter"), "1")? || is(&ipv4(name, "rp_filter"), "1")?) {
        settings.push((ipv4(name, "rp_filter"), "2"));
    }
    // A host that forwards takes no default route from a router, and forgets the one it has, unless this is 2.
    let accept_ra = format!("net/ipv6/conf/{name}/accept_ra");
    if ipv6 && is(&accept_ra, "1")? {
        settings.push((accept_ra, "2"));
    }
    Ok(settings.into_iter().map(|(path, value)| Sysctl { path, value: value.into() }).collect())
}

/// Whether sources of IPv4 packets that arrive on an interface are checked against the routing table, strictly or loosely.
///
/// # Errors
/// [`SysctlError`] when a value cannot be read.
pub fn checks_sources(name: &str) -> Result<bool, SysctlError> {
    let value = |of: &str| read(&format!("net/ipv4/conf/{of}/rp_filter"));
    Ok(value("all")? != "0" || value(name)? != "0")
}

/// Writes settings, and remembers what was there before the first write.
#[derive(Debug)]
pub struct Sysctls {
    file: PathBuf,
    /// By path, as in the file.
    changes: BTreeMap<String, Change>,
}

/// A setting that we changed.
#[derive(Debug, Serialize, Deserialize)]
struct Change {
    found: String,
    written: String,
    #[serde(default)]
    used_for: Use,
}

/// What settings of an interface are changed for, first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Use {
    /// For the node's own links: until cleanup. They may go and come back.
    #[default]
    Node,
    /// For pods behind it: as long as there are any.
    Pods,
}

impl Sysctls {
    /// `directory` must outlive the agent, not the boot (`/run/…`).
    ///
    /// # Errors
    /// [`SysctlError`] when an existing file cannot be read.
    pub fn open(directory: &Path) -> Result<Self, SysctlError> {
        let file = directory.join("sysctls.json");
        let name = file.display().to_string();
        let changes = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| SysctlError::of(name, "parse")(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(SysctlError::of(name, "read")(error)),
        };
        Ok(Self { file, changes })
    }

    /// Writes those that differ. Gives them.
    ///
    /// # Errors
    /// [`SysctlError`] naming the setting; those before it are written.
    pub fn ensure(&mut self, settings: &[Sysctl], used_for: Use) -> Result<Vec<Sysctl>, SysctlError> {
        let mut changed = Vec::new();
        for setting in settings {
            let value = read(&setting.path)?;
            if value == setting.value {
                continue;
            }
            if !self.changes.contains_key(&setting.path) {
                let change = Change { found: value, written: setting.value.clone().into(), used_for };
                self.changes.insert(setting.path.clone(), change);
                self.save()?;
            }
            write(&setting.path, &setting.value)?;
            changed.push(setting.clone());
        }
        Ok(changed)
    }

    /// Puts back what was found, except where someone has changed a setting since; forgets it.
    ///
    /// # Errors
    /// [`SysctlError`] naming the first setting that could not be written; the others are.
    pub fn restore(mut self) -> Result<usize, SysctlError> {
        let (mut restored, mut failed) = (0, None);
        for (path, Change { found, written, .. }) in std::mem::take(&mut self.changes) {
            match read(&path) {
                // The interface is gone, and its settings with it.
                Err(error) if error.error.kind() == io::ErrorKind::NotFound => continue,
                Ok(now) if now != written => continue,
                _ => {}
            }
            match write(&path, &found) {
                Ok(()) => restored += 1,
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                failed.get_or_insert(SysctlError::of(self.file.display().to_string(), "remove")(error));
            }
            _ => {}
        }
        failed.map_or(Ok(restored), Err)
    }

    /// Puts back what was found at interfaces that were changed for pods and are not among these, except where someone has
    /// changed it since; forgets them. Those that are gone took their settings along.
    ///
    /// # Errors
    /// [`SysctlError`] naming the first setting that could not be put back: it is tried again the next time.
    pub fn release_pods(&mut self, needed: &BTreeSet<&str>) -> Result<(), SysctlError> {
        let before = self.changes.len();
        let mut failed = None;
        self.changes.retain(|path, Change { found, written, used_for }| {
            let interface = path.rsplit('/').nth(1).unwrap_or_default();
            if *used_for != Use::Pods || needed.contains(interface) {
                return true;
            }
            let restored = match read(path) {
                Err(error) if error.error.kind() == io::ErrorKind::NotFound => Ok(()),
                Ok(now) if now == *written => write(path, found),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            match restored {
                Ok(()) => false,
                Err(error) => {
                    failed.get_or_insert(error);
                    true
                }
            }
        });
        if self.changes.len() < before {
            self.save()?;
        }
        failed.map_or(Ok(()), Err)
    }

    fn save(&self) -> Result<(), SysctlError> {
        let name = self.file.display().to_string();
        let text = serde_json::to_vec_pretty(&self.changes)
            .map_err(|error| SysctlError::of(name.clone(), "serialize")(error.into()))?;
        // Renamed into place: a crash must not leave half a file.
        let draft = self.file.with_extension("tmp");
        if let Some(directory) = self.file.parent() {
            fs::create_dir_all(directory).map_err(SysctlError::of(name.clone(), "create directory"))?;
        }
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &self.file))
            .map_err(SysctlError::of(name, "save"))
    }
}

/// Reads one setting below `/proc/sys`.
///
/// # Errors
/// [`SysctlError`] naming the setting.
pub fn read(path: &str) -> Result<String, SysctlError> {
    fs::read_to_string(Path::new("/proc/sys").join(path))
        .map(|value| value.trim().to_owned())
        .map_err(SysctlError::of(path, "read"))
}

/// Writes one setting below `/proc/sys`, or at the place that `SHEAVE_PROC_SYS` gives it.
///
/// # Errors
/// [`SysctlError`] naming the setting.
pub fn write(path: &str, value: &str) -> Result<(), SysctlError> {
    fs::write(WRITABLE.join(path), value).map_err(SysctlError::of(path, WRITE))
}

/// Whether this process may write a setting. Writes nothing.
pub fn is_writable(path: &str) -> bool {
    fs::OpenOptions::new().write(true).open(WRITABLE.join(path)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::namespace::{in_namespace, ip};

    #[test]
    fn settings_for_pods_go_with_them() {
        let test = || {
            ip("link add up0 type veth peer name gone0");
            ip("link add shared0 type veth peer name changed0");
            let path = |name: &str| format!("net/ipv4/conf/{name}/accept_local");
            let is = |name: &str| read(&path(name)).unwrap();
            let directory = tempfile::tempdir().unwrap();
            let open = || Sysctls::open(directory.path()).unwrap();
            let mut sysctls = open();
            for (name, used_for) in
                [("up0", Use::Node), ("shared0", Use::Pods), ("changed0", Use::Pods), ("lo", Use::Pods)]
            {
                assert_eq!(is(name), "0");
                let setting = Sysctl { path: path(name), value: "1".into() };
                if sysctls.ensure(std::slice::from_ref(&setting), used_for).is_err() {
                    return println!("skipped: /proc/sys is not writable");
                }
            }
            drop(sysctls);
            let mut sysctls = open();
            sysctls.release_pods(&BTreeSet::from(["shared0", "changed0", "lo"])).unwrap();
            assert_eq!(["up0", "shared0", "changed0", "lo"].map(is), ["1"; 4], "all are needed");
            sysctls.release_pods(&BTreeSet::from(["shared0", "changed0"])).unwrap();
            assert_eq!(["up0", "shared0", "changed0", "lo"].map(is), ["1", "1", "1", "0"]);
            // One pod's device vanishes; another's still is, and what somebody else has set there since stays.
            ip("link del shared0");
            ip("link add shared0 type veth peer name changed0");
            write(&path("shared0"), "1").unwrap();
            sysctls.release_pods(&BTreeSet::new()).unwrap();
            assert_eq!(["up0", "shared0", "changed0"].map(is), ["1", "0", "0"]);
            assert_eq!(open().changes.into_keys().collect::<Vec<_>>(), [path("up0")]);
            ip("link del up0");
            assert_eq!(open().restore().unwrap(), 0);
        };
        in_namespace(test);
    }
}
