//! Tests in a process of their own, for what they do to all of it.

use std::env;
use std::process::Command;

const VARIABLE: &str = "SHEAVE_TEST_ALONE";

/// Runs the test of that name, whose heart is `test`, in another process.
pub(crate) fn alone(name: &str, test: impl FnOnce()) {
    if env::var_os(VARIABLE).is_some() {
        return test();
    }
    let output = Command::new(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads", "1"])
        .env(VARIABLE, "1")
        .output()
        .unwrap();
    let [told, log] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    eprint!("{log}");
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}
