//! `docs/kube-proxy-parity.md`, `docs/interop.md` and `docs/guarantees.md` name a test for each row, and each test that they name exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sheave_integration::{scenarios, soak};

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
            Self::Function { file, name } => {
                std::fs::read_to_string(root.join(file)).is_ok_and(|source| tests_of(&source).contains(name))
            }
        }
    }
}

/// The tests in a source: functions, and the lines `name: …` of the tables that macros make tests of.
fn tests_of(source: &str) -> BTreeSet<&str> {
    let mut tests = BTreeSet::new();
    let mut in_table = false;
    // The attribute stands right before the function, or before others of its own.
    let mut is_test = false;
    for line in source.lines() {
        match line.split_once("! {") {
            Some((name, _)) if is_name(name) && name != "proptest" => in_table = true,
            _ if line == "}" => in_table = false,
            _ => {}
        }
        let line = line.trim();
        let row = line.split_once(": ").map(|(name, _)| name).filter(|name| in_table && is_name(name));
        let function = line.split_once("fn ").and_then(|(_, rest)| Some(rest.split_once('(')?.0));
        tests.extend(row.or(function.filter(|name| is_test && is_name(name))));
        is_test =
            line == "#[test]" || line.starts_with("#[tokio::test") || (is_test && line.starts_with("#["));
    }
    tests
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
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

fn root() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), ".."].iter().collect()
}

/// What is wrong with the names in a document, whose rows have tests in the columns from that one on; and how many rows it has.
fn check(
    document: &str,
    column: impl Fn(&[&str]) -> usize,
    full_name: impl Fn(&str) -> String,
) -> (usize, Vec<String>) {
    let scenarios: BTreeSet<&str> = scenarios::all().iter().map(|(_, scenario)| scenario.name).collect();
    let mut wrong = Vec::new();
    let mut count = 0;
    for (line, cells) in rows(document) {
        count += 1;
        let behaviour = cells.first().copied().unwrap_or_default();
        let tests: Vec<&str> = cells.iter().skip(column(&cells)).flat_map(|cell| quoted(cell)).collect();
        if tests.is_empty() {
            wrong.push(format!("line {line}, {behaviour}: names no test"));
        }
        for text in tests {
            match Test::parse(&full_name(text)) {
                Some(test) if test.exists(&root(), &scenarios) => {}
                Some(_) => wrong.push(format!("line {line}, {behaviour}: there is no test `{text}`")),
                None => wrong.push(format!(
                    "line {line}, {behaviour}: `{text}` is neither FILE::FUNCTION nor scenario NAME"
                )),
            }
        }
    }
    (count, wrong)
}

#[test]
fn every_behaviour_has_a_test_that_exists() {
    let document = std::fs::read_to_string(root().join("docs/kube-proxy-parity.md")).unwrap();
    let (count, wrong) = check(&document, |cells| cells.len() - 1, str::to_owned);
    assert!(count > 50, "only {count} rows: is this the document?");
    assert!(wrong.is_empty(), "docs/kube-proxy-parity.md:\n{}", wrong.join("\n"));
}

/// Only the table of promises has tests: it ends at the next heading.
#[test]
fn every_promise_has_a_scenario_that_exists() {
    let document = std::fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let promises = document.split("\n## ").next().unwrap();
    let (count, wrong) = check(promises, |cells| cells.len() - 1, str::to_owned);
    assert!(count >= 8, "only {count} rows: is this the document?");
    assert!(wrong.is_empty(), "docs/guarantees.md:\n{}", wrong.join("\n"));
    // And what is tried again and again is among them.
    let scenarios: BTreeSet<&str> = scenarios::all().iter().map(|(_, scenario)| scenario.name).collect();
    for (name, _) in soak::PLAN {
        assert!(scenarios.contains(name), "the soak names {name}, and there is no such scenario");
        assert!(promises.contains(&format!("`scenario {name}`")), "{name} proves no promise");
    }
}

/// There the names are those by which `cargo test` finds them, and all that there are.
#[test]
fn every_feature_of_interoperation_has_a_test_that_exists() {
    let document = std::fs::read_to_string(root().join("docs/interop.md")).unwrap();
    let directory = "bgp/tests/interop";
    let full_name = |text: &str| format!("{directory}/{}", text.replacen("::", ".rs::", 1));
    let (count, mut wrong) = check(&document, |_| 1, full_name);
    assert!(count > 20, "only {count} rows: is this the document?");
    for file in std::fs::read_dir(root().join(directory)).unwrap() {
        let path = file.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap();
        let source = std::fs::read_to_string(&path).unwrap();
        let names = tests_of(&source).into_iter().filter(|_| module != "main");
        let unnamed = names
            .map(|name| format!("{module}::{name}"))
            .filter(|name| !document.contains(&format!("`{name}`")));
        wrong.extend(unnamed.map(|name| format!("`{name}` is not named")));
    }
    assert!(wrong.is_empty(), "docs/interop.md:\n{}", wrong.join("\n"));
}
