//! Whether pods of this node could accept themselves, and whether any shall.

use std::fs;

use super::super::pods::DIRECTORY;
use super::{Finding, kernel};
use crate::plan::{AcceptedIn, NodePlan};

/// Bit of the capability set (linux/capability.h).
const CAP_SYS_ADMIN: u32 = 21;

/// Looks at what entering the network namespaces of pods takes.
pub fn check(plan: &NodePlan) -> Finding {
    let wanted = plan.rewrites.values().filter(|rewrite| rewrite.accepted_in == AcceptedIn::Pod).count();
    let namespaces = fs::read_dir(DIRECTORY).map(Iterator::count).unwrap_or_default();
    judge(wanted, kernel::holds(CAP_SYS_ADMIN), namespaces)
}

/// `wanted`: ports that pods shall take in.
fn judge(wanted: usize, capable: bool, namespaces: usize) -> Finding {
    let subject = "acceptance in pods";
    let lacks = match (capable, namespaces) {
        (true, 0) => format!("{DIRECTORY} shows no network namespace"),
        (true, _) => {
            return Finding::ok(subject, format!("possible: {namespaces} network namespaces in {DIRECTORY}"));
        }
        (false, _) => "the capability SYS_ADMIN is not held".into(),
    };
    if wanted == 0 {
        return Finding::ok(subject, format!("not possible ({lacks}), and nothing known asks for it"));
    }
    Finding::warn(
        subject,
        format!("{lacks}: this node accepts for its pods, though {wanted} ports ask for the other"),
        "add deploy/components/pod-acceptance, or set `sheave.io/acceptance: node` and `services.acceptance: node`",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn possible_or_asked_for() {
        for (case, wanted, capable, namespaces, severity, words) in [
            ("all there", 2, true, 7, Severity::Ok, "7 network namespaces"),
            ("not there, not needed", 0, false, 0, Severity::Ok, "nothing known asks"),
            ("no capability", 1, false, 7, Severity::Warn, "SYS_ADMIN"),
            ("no mount", 1, true, 0, Severity::Warn, "/run/netns"),
        ] {
            let finding = judge(wanted, capable, namespaces);
            assert_eq!(finding.severity, severity, "{case}");
            assert!(finding.found.contains(words), "{case}: {}", finding.found);
        }
    }
}
