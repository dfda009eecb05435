//! Which build this is.

use std::sync::LazyLock;

/// The version.
pub const NUMBER: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from, where whoever built it said so (`deploy/image/build` does); empty otherwise.
pub const REVISION: &str = match option_env!("SHEAVE_REVISION") {
    Some(revision) => revision,
    None => "",
};

/// Both, for people.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| words(NUMBER, REVISION));
    &TEXT
}

fn words(number: &str, revision: &str) -> String {
    if revision.is_empty() { number.to_owned() } else { format!("{number} ({revision})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_of_no_known_commit_is_the_version_alone() {
        for (revision, expected) in [("", "0.1.0"), ("4f1d2a9c0b7e", "0.1.0 (4f1d2a9c0b7e)")] {
            assert_eq!(words("0.1.0", revision), expected);
        }
    }
}
