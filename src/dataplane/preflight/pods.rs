//! Whether pods of this node could accept themselves, and whether any shall.

use std::fs;

use super::super::pods::DIRECTORY;
use super::owners::first_few;
use super::{Finding, kernel};
use crate::plan::{AcceptedIn, NodePlan};

/// Bit of the capability set (linux/capability.h).
const CAP_SYS_ADMIN: u32 = 21;

/// Looks at what entering the network namespaces of pods takes, and whether they could answer then. `default`: of Services
/// that do not say; `source_checks`: who lets pods send from their own address alone.
pub fn check(plan: &NodePlan, default: AcceptedIn, source_checks: &[String]) -> Finding {
    let ports = plan.rewrites.values().filter(|rewrite| rewrite.accepted_in == AcceptedIn::Pod).count();
    let asks = match (ports, default) {
        (0, AcceptedIn::Node) => None,
        (0, AcceptedIn::Pod) => Some("services.acceptance asks for it".to_owned()),
        _ => Some(format!("{ports} ports ask for it")),
    };
    let namespaces = fs::read_dir(DIRECTORY).map(Iterator::count).unwrap_or_default();
    judge(asks.as_deref(), source_checks, kernel::holds(CAP_SYS_ADMIN), namespaces)
}

/// `asks`: who does.
fn judge(asks: Option<&str>, source_checks: &[String], capable: bool, namespaces: usize) -> Finding {
    let subject = "acceptance in pods";
    if !source_checks.is_empty() {
        let found = format!("{}: pods send from their own address alone", first_few(source_checks));
        return match asks {
            None => Finding::ok(subject, format!("not possible ({found}), and nothing known asks for it")),
            Some(asks) => Finding::fail(
                subject,
                format!("{found}, and so what answers as a virtual IP is dropped, though {asks}"),
                "set `services.acceptance: node`, and `sheave.io/acceptance: node` on Services that say `pod` (docs/acceptance.md)",
            ),
        };
    }
    let lacks = match (capable, namespaces) {
        (true, 0) => format!("{DIRECTORY} shows no network namespace"),
        (true, _) => {
            return Finding::ok(subject, format!("possible: {namespaces} network namespaces in {DIRECTORY}"));
        }
        (false, _) => "the capability SYS_ADMIN is not held".into(),
    };
    let Some(asks) = asks else {
        return Finding::ok(subject, format!("not possible ({lacks}), and nothing known asks for it"));
    };
    Finding::warn(
        subject,
        format!("{lacks}: this node accepts for its pods, though {asks}"),
        "add deploy/components/pod-acceptance, or set `sheave.io/acceptance: node` and `services.acceptance: node`",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn possible_or_asked_for() {
        let (nobody, calico) = (vec![], vec!["chain cali-PREROUTING in table ip raw".to_owned()]);
        let asks = Some("2 ports ask for it");
        for (case, asks, checks, capable, namespaces, severity, words) in [
            ("all there", asks, &nobody, true, 7, Severity::Ok, "7 network namespaces"),
            ("not there, not needed", None, &nobody, false, 0, Severity::Ok, "nothing known asks"),
            ("no capability", asks, &nobody, false, 7, Severity::Warn, "SYS_ADMIN"),
            ("no mount", asks, &nobody, true, 0, Severity::Warn, "/run/netns"),
            ("sources are checked", asks, &calico, true, 7, Severity::Fail, "cali-PREROUTING"),
            ("sources are checked, no capability", asks, &calico, false, 0, Severity::Fail, "2 ports ask"),
            ("sources are checked, not needed", None, &calico, true, 7, Severity::Ok, "nothing known asks"),
        ] {
            let finding = judge(asks, checks, capable, namespaces);
            assert_eq!(finding.severity, severity, "{case}");
            assert!(finding.found.contains(words), "{case}: {}", finding.found);
        }
    }
}
