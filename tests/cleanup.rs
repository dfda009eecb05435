//! `sheave cleanup` as it is run, in a network namespace of its own.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// In a namespace where nothing is to be removed, the kernel's part says so; where the kernel lacks what it takes to
/// tell, that is an error of its own.
#[test]
fn a_journal_that_cannot_be_removed_does_not_keep_the_kernel_from_being_cleaned() {
    let directory = tempfile::tempdir().unwrap();
    // In the journal's place there is what no file can be.
    std::fs::create_dir(directory.path().join("announced")).unwrap();
    let config = directory.path().join("config.yaml");
    let socket = directory.path().join("status.sock");
    std::fs::write(&config, format!("observe: {{status: {}}}\n", socket.display())).unwrap();
    let run = || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("skipped: unshare: {error}");
            return None;
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_sheave"));
        command.args(["cleanup", "--node", "node-a", "--config"]).arg(&config);
        // No API server is known.
        command.env("HOME", directory.path()).env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
        Some(command.output().unwrap())
    };
    let Some(output) = std::thread::scope(|scope| scope.spawn(run).join()).unwrap() else { return };
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("error: the journal of announcements in"), "{errors}");
    assert!(errors.contains("`kubectl annotate node node-a sheave.io/accepts-`"), "{errors}");
    let cleaned = told.contains("nothing of Sheave's is here");
    assert!(cleaned || errors.matches("error: ").count() == 2, "stdout: {told}\nstderr: {errors}");
}
