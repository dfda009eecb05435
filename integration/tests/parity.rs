//! `docs/kube-proxy-parity.md` names a test for each behaviour, and each test that it names exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sheave_integration::scenarios;

/// A test of ours as the document names it.
#[derive(Debug, PartialEq)]
enum Test<'a> {
    Scenario(&'a str),
    Function { file: &'a str, name: &'a str },
}

impl<'a> Test<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if let Some(name) = text.strip_prefix("scenario ") {
            return Some(Self::Scenario(name));
        }
        let (file, name) = text.split_once("::")?;
        file.ends_with(".rs").then_some(Self::Function { file, name })
    }

    fn exists(&self, root: &Path, scenarios: &BTreeSet<&str>) -> bool {
        match self {
            Self::Scenario(name) => scenarios.contains(name),
            Self::Function { file, name } => std::fs::read_to_string(root.join(file)).is_ok_and(|source| {
                let declared = format!("fn {name}(");
                let mut lines = source.lines().map(str::trim);
                // The attribute stands right before it, or before others of its own.
                let mut is_test = false;
                lines.any(|line| {
                    let found = is_test && line.contains(&declared);
                    is_test = line == "#[test]"
                        || line.starts_with("#[tokio::test")
                        || (is_test && line.starts_with("#["));
                    found
                })
            }),
        }
    }
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The cells of the rows of all tables, heads left out.
fn rows(document: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    let lines: Vec<&str> = document.lines().collect();
    let is_row = |line: &str| line.starts_with('|');
    let head_ends = |line: &str| line.starts_with("|---");
    let indexes: Vec<usize> = (0..lines.len())
        .filter(|&index| {
            let next = lines.get(index + 1).is_some_and(|next| head_ends(next));
            is_row(lines[index]) && !head_ends(lines[index]) && !next
        })
        .collect();
    indexes.into_iter().map(move |index| {
        let cells = lines[index].trim_matches('|').split('|').map(str::trim).collect();
        (index + 1, cells)
    })
}

#[test]
fn every_behaviour_has_a_test_that_exists() {
    let root: PathBuf = [env!("CARGO_MANIFEST_DIR"), ".."].iter().collect();
    let document = std::fs::read_to_string(root.join("docs/kube-proxy-parity.md")).unwrap();
    let scenarios: BTreeSet<&str> = scenarios::all().iter().map(|(_, scenario)| scenario.name).collect();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (line, cells) in rows(&document) {
        count += 1;
        let behaviour = cells.first().copied().unwrap_or_default();
        let tests: Vec<&str> = cells.last().into_iter().flat_map(|cell| quoted(cell)).collect();
        if tests.is_empty() {
            wrong.push(format!("line {line}, {behaviour}: names no test"));
        }
        for text in tests {
            match Test::parse(text) {
                Some(test) if test.exists(&root, &scenarios) => {}
                Some(_) => wrong.push(format!("line {line}, {behaviour}: there is no test `{text}`")),
                None => wrong.push(format!(
                    "line {line}, {behaviour}: `{text}` is neither FILE::FUNCTION nor scenario NAME"
                )),
            }
        }
    }
    assert!(count > 50, "only {count} rows: is this the document?");
    assert!(wrong.is_empty(), "docs/kube-proxy-parity.md:\n{}", wrong.join("\n"));
}
