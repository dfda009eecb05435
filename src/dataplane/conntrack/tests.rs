//! The thread, and what it says. What it does to a kernel is for the lab: `integration/lab test --scenario conntrack`.

use super::*;

#[test]
fn words_name_the_remedy_and_what_stays() {
    let missing = io::Error::from_raw_os_error(22);
    let forbidden = io::Error::from_raw_os_error(1);
    for (case, error, ways, expected, absent) in [
        ("a probe", &missing, 0, "load module nf_conntrack_netlink", "stay"),
        ("entries are left", &missing, 3, "entries of 3 rewrites", "none"),
        ("another reason", &forbidden, 0, "Operation not permitted", "module"),
    ] {
        let words = words(error, ways);
        assert!(words.contains(expected) && !words.contains(absent), "{case}: {words}");
    }
}
