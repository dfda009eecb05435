//! What the kernel and the programs beside it must be able to do.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use sheave_ipvs::{Ipvs, ServiceEntry};

use super::super::conntrack;
use super::super::fou::FouError;
use super::super::nft::{self, Listing, NftError};
use super::super::reconcile;
use super::super::ruleset::{Rules, TABLE};
use super::super::sysctl;
use super::Finding;
use crate::cluster::Encapsulation;
use crate::plan::Scheduler;

/// Bit of the capability set (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// What the ruleset needs besides the core of nf_tables, with the option that builds it.
const NFT_MODULES: [(&str, &str); 7] = [
    ("nf_tables", "CONFIG_NF_TABLES"),
    ("nft_ct", "CONFIG_NFT_CT"),
    ("nft_chain_nat", "CONFIG_NFT_NAT"),
    ("nft_nat", "CONFIG_NFT_NAT"),
    ("nft_masq", "CONFIG_NFT_MASQ"),
    ("nft_reject_inet", "CONFIG_NFT_REJECT"),
    ("nft_fib_inet", "CONFIG_NFT_FIB_INET"),
];

/// The oldest `nft` whose JSON and sets are what the agent reads and writes.
const NFT_VERSION: (u32, u32) = (1, 0);

/// The oldest kernel that was tried.
const KERNEL: (u32, u32) = (6, 1);

/// Whether the kernel is one that was tried.
pub fn version() -> Finding {
    judge_kernel(&rustix::system::uname().release().to_string_lossy())
}

fn judge_kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL => Finding::ok("kernel", release),
        _ => Finding::warn(
            "kernel",
            format!("{release}: older ones than 6.1 were not tried"),
            "run Linux 6.1 or later",
        ),
    }
}

/// Whether this process may change the network.
pub fn capability() -> Finding {
    let subject = "capability CAP_NET_ADMIN";
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective_capabilities(&status) {
        Some(held) if held >> CAP_NET_ADMIN & 1 == 1 => Finding::ok(subject, "held"),
        Some(_) => Finding::fail(
            subject,
            "not held",
            "run as root; in a container add the capability NET_ADMIN, or run it privileged",
        ),
        None => Finding::warn(subject, "/proc/self/status does not tell", "mount /proc"),
    }
}

/// Whether this process has a capability in force, by its bit; without /proc nobody can tell.
pub fn holds(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status).is_some_and(|held| held >> capability & 1 == 1)
}

/// `CapEff` of `/proc/PID/status` (proc(5)).
fn effective_capabilities(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// Whether IPVS answers, and the virtual servers it holds.
pub fn ipvs(modules: &Modules) -> (Finding, Option<Vec<ServiceEntry>>) {
    let answer = Ipvs::open().and_then(|mut ipvs| Ok((ipvs.info()?, ipvs.services()?)));
    match answer {
        Ok((info, servers)) => {
            let (major, minor, patch) = info.version;
            (Finding::ok("IPVS", format!("version {major}.{minor}.{patch}")), Some(servers))
        }
        Err(error) => {
            let remedy = match modules.presence("ip_vs") {
                Presence::Loaded | Presence::BuiltIn => {
                    "run as root, in the initial user namespace: IPVS answers nobody else".into()
                }
                absent => absent.remedy("ip_vs", "CONFIG_IP_VS"),
            };
            let found = match error {
                sheave_ipvs::Error::Unavailable => "the running kernel has none loaded".into(),
                other => other.to_string(),
            };
            (Finding::fail("IPVS", found, remedy), None)
        }
    }
}

/// The schedulers that are asked for, and the tunnel devices.
pub fn modules(modules: &Modules, schedulers: &BTreeSet<Scheduler>) -> Vec<Finding> {
    let mut wanted: Vec<(String, String)> = schedulers
        .iter()
        .map(|scheduler| {
            let module = format!("ip_vs_{}", reconcile::scheduler_name(*scheduler));
            let option = format!("CONFIG_{}", module.to_uppercase());
            (module, option)
        })
        .collect();
    wanted.push(("ipip".into(), "CONFIG_NET_IPIP".into()));
    wanted.push(("ip6_tunnel".into(), "CONFIG_IPV6_TUNNEL".into()));
    wanted.iter().map(|(module, option)| modules.presence(module).judge(module, option)).collect()
}

/// `nft`: its version, our table, and whether the kernel takes our rules. The modules behind these are looked at
/// only where it does not: what works needs no further proof.
pub fn nft(modules: &Modules, table: &Result<Option<Listing>, NftError>, rules: Rules) -> Vec<Finding> {
    let mut findings = Vec::new();
    match nft::version() {
        Err(error @ NftError::Spawn(_)) => {
            let remedy = "install nftables 1.0 or newer (Debian, Fedora, Alpine: package nftables)";
            return vec![Finding::fail("nft", error.to_string(), remedy)];
        }
        Err(error) => {
            let remedy = "check that `nft --version` runs";
            return vec![Finding::fail("nft", error.to_string(), remedy)];
        }
        Ok(text) => findings.push(judge_version(&text)),
    }
    let subject = format!("table inet {TABLE}");
    findings.push(match table {
        Ok(None) => Finding::ok(subject, "absent: the agent makes it"),
        Ok(Some(_)) => Finding::ok(subject, "there: an agent has run here, the next one adopts it"),
        Err(error) => {
            Finding::fail(subject, error.to_string(), "the agent must be able to list it: run as root")
        }
    });
    match nft::check(&rules.replacement()) {
        Ok(()) => findings.push(Finding::ok("nftables rules", "the kernel takes them (dry run)")),
        Err(error) => {
            findings.push(Finding::fail(
                "nftables rules",
                error.to_string(),
                "run as root; if that is not it, the kernel lacks one of the modules below",
            ));
            let judged = NFT_MODULES.map(|(module, option)| modules.presence(module).judge(module, option));
            findings.extend(judged);
        }
    }
    findings
}

/// Whether the node can take in GUE, which matters where directors send it. `stands`: what [`super::super::fou::stands`] says.
pub fn gue(modules: &Modules, stands: &Result<bool, FouError>, encapsulation: Encapsulation) -> Finding {
    judge_gue(modules.presence("fou"), stands, encapsulation)
}

fn judge_gue(module: Presence, stands: &Result<bool, FouError>, encapsulation: Encapsulation) -> Finding {
    let subject = "GUE";
    let (found, remedy) = match stands {
        Ok(true) => return Finding::ok(subject, "taken in"),
        Ok(false) => return Finding::ok(subject, "the kernel can take it in: the agent makes its port"),
        // No alias tells the kernel to load this module when it is used.
        Err(FouError::Unavailable) => (
            "the kernel has no Foo-over-UDP loaded".to_owned(),
            match module {
                Presence::Sealed | Presence::Missing => module.remedy("fou", "CONFIG_NET_FOU"),
                _ => {
                    "`modprobe fou` on the host, and for each boot `echo fou > /etc/modules-load.d/fou.conf`"
                        .into()
                }
            },
        ),
        Err(error @ FouError::Refused { .. }) => (error.to_string(), "run as root".into()),
        Err(error @ (FouError::Taken(_) | FouError::InUse(_))) => {
            (error.to_string(), "remove it, or stop its owner".into())
        }
    };
    match encapsulation {
        Encapsulation::Gue => {
            Finding::fail(subject, format!("{found}, and services.encapsulation is gue"), remedy)
        }
        Encapsulation::Ipip => {
            Finding::warn(subject, format!("{found}: directors can send IP in IP alone"), remedy)
        }
    }
}

/// Whether entries of endpoints that went can be deleted. The agent works without, but connections to these hang.
pub fn conntrack(modules: &Modules) -> Finding {
    let (module, subject) = ("nf_conntrack_netlink", "conntrack over netlink");
    match conntrack::probe() {
        Ok(()) => Finding::ok(subject, "answers"),
        Err(error) => Finding::warn(
            subject,
            format!("{error}: connections to endpoints that are gone will hang instead of being reset"),
            modules.presence(module).remedy(module, "CONFIG_NF_CT_NETLINK"),
        ),
    }
}

fn judge_version(text: &str) -> Finding {
    let found = text.trim();
    match parse_version(text) {
        Some(version) if version >= NFT_VERSION => Finding::ok("nft", found),
        Some(_) => Finding::fail("nft", found, "install nftables 1.0 or newer"),
        None => Finding::warn(
            "nft",
            format!("`nft --version` says {found:?}"),
            "make sure that it is nftables 1.0 or newer",
        ),
    }
}

/// Major and minor of `nftables v1.0.6 (Lester Gooch #5)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// The modules of the running kernel.
pub struct Modules {
    /// By the lists below `/lib/modules`; `None` where there are none for the running release.
    listed: Option<Listed>,
    /// `kernel.modules_disabled`: none can be loaded any more.
    sealed: bool,
}

struct Listed {
    builtin: BTreeSet<String>,
    loadable: BTreeSet<String>,
}

/// Where a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Loaded,
    BuiltIn,
    /// The kernel loads it when it is asked for what is in it.
    Loadable,
    /// It could be loaded, were that not forbidden until the next boot.
    Sealed,
    Missing,
    /// Not loaded, and nothing tells more.
    Unknown,
}

impl Modules {
    /// Reads the lists of the running release.
    pub fn read() -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let directory = Path::new("/lib/modules").join(release);
        let list = |file: &str| fs::read_to_string(directory.join(file)).map(|text| names(&text));
        let listed = match (list("modules.builtin"), list("modules.dep")) {
            (Ok(builtin), Ok(loadable)) => Some(Listed { builtin, loadable }),
            _ => None,
        };
        Self { listed, sealed: sysctl::read("kernel/modules_disabled").is_ok_and(|value| value == "1") }
    }

    fn presence(&self, module: &str) -> Presence {
        self.judge(module, Path::new("/sys/module").join(module).exists())
    }

    fn judge(&self, module: &str, loaded: bool) -> Presence {
        match &self.listed {
            Some(listed) if listed.builtin.contains(module) => Presence::BuiltIn,
            // A module that is built in and has parameters is there too.
            _ if loaded => Presence::Loaded,
            None => Presence::Unknown,
            Some(listed) if !listed.loadable.contains(module) => Presence::Missing,
            Some(_) if self.sealed => Presence::Sealed,
            Some(_) => Presence::Loadable,
        }
    }
}

impl Presence {
    fn judge(self, module: &str, option: &str) -> Finding {
        let subject = format!("kernel module {module}");
        match self {
            Self::Loaded => Finding::ok(subject, "loaded"),
            Self::BuiltIn => Finding::ok(subject, "built in"),
            Self::Loadable => Finding::ok(subject, "not loaded yet: the kernel loads it when it is used"),
            Self::Sealed => Finding::fail(
                subject,
                "not loaded, and kernel.modules_disabled=1 forbids it",
                self.remedy(module, option),
            ),
            Self::Missing => {
                Finding::fail(subject, "the running kernel has none", self.remedy(module, option))
            }
            Self::Unknown => Finding::warn(
                subject,
                "not loaded, and /lib/modules has nothing for the running kernel that would tell",
                self.remedy(module, option),
            ),
        }
    }

    fn remedy(self, module: &str, option: &str) -> String {
        match self {
            Self::Loaded | Self::BuiltIn | Self::Loadable => format!("run `modprobe {module}`"),
            Self::Sealed => format!("load it at boot: `echo {module} > /etc/modules-load.d/{module}.conf`"),
            Self::Missing => format!("run a kernel with {option} (Debian: linux-image-amd64 has it)"),
            Self::Unknown => {
                format!("run `modprobe {module}` on the host (a container without /lib/modules cannot tell)")
            }
        }
    }
}

/// Module names of `modules.builtin` and `modules.dep` (modules.dep(5)): one path per line, up to a colon.
fn names(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| {
            let path = line.split(':').next()?;
            let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
            Some(name.replace('-', "_"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn capabilities() {
        for (case, status, expected) in [
            ("root", "Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n", Some(0x1ff_ffff_ffff)),
            ("nobody", "CapEff:\t0000000000000000\n", Some(0)),
            ("no such line", "CapPrm:\t0000000000001000\n", None),
            ("not a number", "CapEff:\tmany\n", None),
        ] {
            assert_eq!(effective_capabilities(status), expected, "{case}");
        }
    }

    #[test]
    fn kernel_versions() {
        for (release, severity) in [
            ("6.1.0-44-amd64", Severity::Ok),
            ("6.18.2", Severity::Ok),
            ("7.0-rc1", Severity::Ok),
            ("6.0.19", Severity::Warn),
            ("5.15.0-119-generic", Severity::Warn),
            ("unknown", Severity::Warn),
        ] {
            assert_eq!(judge_kernel(release).severity, severity, "{release}");
        }
    }

    #[test]
    fn nft_versions() {
        for (text, severity) in [
            ("nftables v1.0.6 (Lester Gooch #5)\n", Severity::Ok),
            ("nftables v1.1.3 (Commodore Bullmoose #4)\n", Severity::Ok),
            ("nftables v2.0\n", Severity::Ok),
            ("nftables v0.9.8 (E.D.S.)\n", Severity::Fail),
            ("nftables\n", Severity::Warn),
            ("nftables vNext\n", Severity::Warn),
        ] {
            assert_eq!(judge_version(text).severity, severity, "{text}");
        }
    }

    #[test]
    fn gue_matters_where_directors_send_it() {
        use Encapsulation::{Gue, Ipip};
        let unavailable = || Err(FouError::Unavailable);
        for (case, module, stands, encapsulation, severity, words) in [
            ("taken in", Presence::Loaded, Ok(true), Gue, Severity::Ok, ""),
            ("it could be", Presence::Loaded, Ok(false), Gue, Severity::Ok, ""),
            ("not loaded", Presence::Loadable, unavailable(), Gue, Severity::Fail, "modprobe fou"),
            (
                "not loaded, not needed",
                Presence::Loadable,
                unavailable(),
                Ipip,
                Severity::Warn,
                "modprobe fou",
            ),
            ("not there", Presence::Missing, unavailable(), Ipip, Severity::Warn, "CONFIG_NET_FOU"),
            ("not known", Presence::Unknown, unavailable(), Gue, Severity::Fail, "modprobe fou"),
        ] {
            let finding = judge_gue(module, &stands, encapsulation);
            assert_eq!(finding.severity, severity, "{case}");
            assert!(finding.remedy.unwrap_or_default().contains(words), "{case}");
        }
    }

    #[test]
    fn where_a_module_is() {
        let listed = |sealed| Modules {
            listed: Some(Listed {
                builtin: names("kernel/net/ipv4/ipip.ko\nkernel/lib/crc-t10dif.ko\n"),
                loadable: names(
                    "kernel/net/netfilter/ipvs/ip_vs_mh.ko.xz: kernel/net/netfilter/ipvs/ip_vs.ko.xz\n\
                     kernel/net/ipv6/ip6_tunnel.ko.zst: kernel/net/ipv6/tunnel6.ko.zst\n",
                ),
            }),
            sealed,
        };
        let none = Modules { listed: None, sealed: false };
        for (case, modules, module, loaded, presence, severity) in [
            ("built in", listed(false), "ipip", false, Presence::BuiltIn, Severity::Ok),
            ("built in, with parameters", listed(false), "ipip", true, Presence::BuiltIn, Severity::Ok),
            ("hyphens are underscores", listed(false), "crc_t10dif", false, Presence::BuiltIn, Severity::Ok),
            ("loaded", listed(true), "ip_vs_mh", true, Presence::Loaded, Severity::Ok),
            ("loadable", listed(false), "ip_vs_mh", false, Presence::Loadable, Severity::Ok),
            ("sealed", listed(true), "ip6_tunnel", false, Presence::Sealed, Severity::Fail),
            ("a dependency is no entry", listed(false), "tunnel6", false, Presence::Missing, Severity::Fail),
            (
                "no lists, loaded",
                Modules { listed: None, sealed: false },
                "ipip",
                true,
                Presence::Loaded,
                Severity::Ok,
            ),
            ("no lists", none, "ipip", false, Presence::Unknown, Severity::Warn),
        ] {
            assert_eq!(modules.judge(module, loaded), presence, "{case}");
            assert_eq!(presence.judge(module, "CONFIG_X").severity, severity, "{case}");
        }
    }
}
