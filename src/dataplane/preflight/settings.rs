//! Sysctls: what the agent will set, and whether it can.

use super::super::sysctl::{self, EXPIRE_NODEST_CONN, Sysctl};
use super::super::uplink::Uplink;
use super::Finding;

/// Where IPVS keeps its settings: absent before it is loaded.
const IPVS: &str = "net/ipv4/vs/";
const CONNTRACK: &str = "net/ipv4/vs/conntrack";
/// What new interfaces start with, `sheave6` among them.
const DISABLE_IPV6: &str = "net/ipv6/conf/default/disable_ipv6";

/// A setting with what was found.
struct Reading {
    setting: Sysctl,
    /// The present value, or why there is none.
    present: Result<String, String>,
    writable: bool,
}

/// The settings of the namespace and of the uplinks. `ipvs`: it answers, so that its settings are there;
/// `shared`: others use it too.
pub fn check(uplinks: &[Uplink], ipv6: bool, ipvs: bool, shared: bool) -> Vec<Finding> {
    let mut settings = sysctl::namespace(ipv6);
    settings.retain(|setting| ipvs || !setting.path.starts_with(IPVS));
    let mut findings = Vec::new();
    for uplink in uplinks {
        match sysctl::interface(&uplink.name, ipv6) {
            Ok(more) => settings.extend(more),
            Err(error) => findings.push(Finding::fail(
                format!("sysctls of {}", uplink.name),
                error.to_string(),
                "mount /proc of this network namespace",
            )),
        }
    }
    let readings: Vec<Reading> = settings.into_iter().map(Reading::take).collect();
    findings.extend(judge(&readings, shared));
    if ipv6 {
        findings.push(judge_ipv6(sysctl::read(DISABLE_IPV6).ok().as_deref()));
    }
    findings
}

impl Reading {
    fn take(setting: Sysctl) -> Self {
        let present = sysctl::read(&setting.path).map_err(|error| error.to_string());
        let writable = sysctl::is_writable(&setting.path);
        Self { setting, present, writable }
    }
}

/// One finding for each that differs or cannot be had, one for all the others.
fn judge(readings: &[Reading], shared: bool) -> Vec<Finding> {
    let mut as_wanted = 0;
    let mut findings = Vec::new();
    for Reading { setting: Sysctl { path, value }, present, writable } in readings {
        let subject = format!("sysctl {path}");
        let remedy = || {
            format!(
                "set it on the host (`sysctl -w {path}={value}`), or let the agent write it: in a container on the host's network, mount the host's /proc/sys/net and set SHEAVE_PROC_SYS, as deploy/base does"
            )
        };
        findings.push(match present {
            Err(error) => {
                Finding::fail(subject, error.as_str(), "the agent cannot do without it: run a newer kernel")
            }
            // The agent turns this one off and on again.
            Ok(_) if path == EXPIRE_NODEST_CONN && !writable => {
                Finding::fail(subject, "read-only, and the agent must be able to change it", remedy())
            }
            Ok(present) if present == value => {
                as_wanted += 1;
                continue;
            }
            Ok(present) if !writable => {
                Finding::fail(subject, format!("{present} and read-only, must be {value}"), remedy())
            }
            Ok(present) if path == CONNTRACK && shared => Finding::warn(
                subject,
                format!("{present}, will be set to {value}; another owner of virtual servers may need it"),
                "stop that owner first: its virtual servers with masquerading or source NAT break",
            ),
            Ok(present) if path.ends_with("/rp_filter") => {
                Finding::ok(subject, format!("{present}, strict is in force; will be set to {value} (loose)"))
            }
            Ok(present) => Finding::ok(subject, format!("{present}, will be set to {value}")),
        });
    }
    if as_wanted > 0 {
        findings.push(Finding::ok("sysctls", format!("{as_wanted} have the value they need")));
    }
    findings
}

/// The agent makes `sheave6` where the Node has IPv6, and an interface that starts without IPv6 takes no address.
fn judge_ipv6(disabled: Option<&str>) -> Finding {
    match disabled {
        Some("0") => Finding::ok("IPv6", "on"),
        Some(_) => Finding::fail(
            "IPv6",
            format!("new interfaces start without it ({DISABLE_IPV6}=1)"),
            format!("sheave6 needs it: `sysctl -w {DISABLE_IPV6}=0`"),
        ),
        None => Finding::fail("IPv6", "the kernel has none", "sheave6 needs it: boot without ipv6.disable=1"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    fn reading(path: &str, value: &'static str, present: Result<&str, &str>, writable: bool) -> Reading {
        Reading {
            setting: Sysctl { path: path.into(), value: value.into() },
            present: present.map(Into::into).map_err(Into::into),
            writable,
        }
    }

    #[test]
    fn readings() {
        let (forward, conntrack) = ("net/ipv4/ip_forward", CONNTRACK);
        use Severity::{Fail, Ok as Fine, Warn};
        for (case, reading, shared, severity, words) in [
            ("differs", reading(forward, "1", Ok("0"), true), false, Fine, "0, will be set to 1"),
            ("as wanted", reading(forward, "1", Ok("1"), true), false, Fine, "1 have the value"),
            ("as wanted, read-only", reading(forward, "1", Ok("1"), false), false, Fine, "1 have the value"),
            (
                "differs, read-only",
                reading(forward, "1", Ok("0"), false),
                false,
                Fail,
                "read-only, must be 1",
            ),
            ("not there", reading(forward, "1", Err("read: ENOENT"), false), false, Fail, "ENOENT"),
            (
                "switched around batches",
                reading(EXPIRE_NODEST_CONN, "1", Ok("1"), false),
                false,
                Fail,
                "read-only",
            ),
            ("conntrack, alone", reading(conntrack, "0", Ok("1"), true), false, Fine, "will be set to 0"),
            ("conntrack, shared", reading(conntrack, "0", Ok("1"), true), true, Warn, "another owner"),
            (
                "conntrack, shared, off",
                reading(conntrack, "0", Ok("0"), true),
                true,
                Fine,
                "1 have the value",
            ),
            (
                "strict",
                reading("net/ipv4/conf/eth0/rp_filter", "2", Ok("1"), true),
                false,
                Fine,
                "will be set to 2 (loose)",
            ),
        ] {
            let findings = judge(&[reading], shared);
            assert_eq!(findings.len(), 1, "{case}: {findings:?}");
            assert_eq!(findings[0].severity, severity, "{case}: {findings:?}");
            assert!(findings[0].found.contains(words), "{case}: {findings:?}");
        }
    }

    #[test]
    fn ipv6_must_be_on() {
        for (disabled, severity) in
            [(Some("0"), Severity::Ok), (Some("1"), Severity::Fail), (None, Severity::Fail)]
        {
            assert_eq!(judge_ipv6(disabled).severity, severity, "{disabled:?}");
        }
    }
}
