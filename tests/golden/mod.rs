//! What `sheave` prints, run among the fixtures, against golden files. `UPDATE_GOLDEN=1` writes them anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub fn sheave(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sheave")).args(args).current_dir(fixtures()).output().unwrap()
}

/// It prints what is in the file, and complains of nothing.
pub fn golden(file: &str, args: &[&str]) {
    let output = sheave(args);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    assert_eq!(output.status.code(), Some(0), "{args:?}");
    let path = fixtures().join("golden").join(file);
    let printed = String::from_utf8(output.stdout).unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &printed).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(printed == expected, "{} differs from:\n{printed}", path.display());
}
