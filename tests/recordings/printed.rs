//! Golden files, and how objects and plans are written into them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;
use sheave::cluster::Object;

use crate::in_memory::Told;

/// Compares with the golden file, or writes it if `UPDATE_GOLDEN` is set.
pub fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let difference = changes(&lines(&expected), &lines(text));
    assert!(expected == text, "{} is not what comes now:\n{difference}", path.display());
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

/// All objects, in lines.
pub fn objects(told: &Told) -> String {
    told.objects.values().flat_map(lines_of_object).fold(String::new(), |text, line| text + &line + "\n")
}

fn lines_of_object(object: &Object) -> Vec<String> {
    let key = object.key();
    match object {
        Object::Service(service) => {
            let mut service = (**service).clone();
            let ports = std::mem::take(&mut service.ports);
            let ports = ports.iter().map(|port| format!("{key}: {port:?}"));
            [format!("{key}: {service:?}")].into_iter().chain(ports).collect()
        }
        Object::EndpointSlice(slice) => {
            let mut slice = (**slice).clone();
            let endpoints = std::mem::take(&mut slice.endpoints);
            let endpoints = endpoints.iter().map(|endpoint| format!("{key}: {endpoint:?}"));
            [format!("{key}: {slice:?}")].into_iter().chain(endpoints).collect()
        }
        Object::Node(node) => vec![format!("{key}: {node:?}")],
        Object::ServiceCidr(cidr) => vec![format!("{key}: {cidr:?}")],
    }
}

/// Objects and plan in lines of which each says what it belongs to.
pub fn lines_of(told: &Told) -> BTreeSet<String> {
    let mut lines: BTreeSet<String> = told.objects.values().flat_map(lines_of_object).collect();
    let plan: Value = serde_json::from_str(&sheave::cli::plan_json(&told.planner).unwrap()).unwrap();
    for (part, value) in plan.as_object().unwrap() {
        match value {
            Value::Array(items) => lines.extend(items.iter().flat_map(|item| lines_of_item(part, item))),
            value => drop(lines.insert(format!("plan.{part}: {value}"))),
        }
    }
    lines
}

/// An item of a part of the plan; a virtual server's destinations have lines of their own.
fn lines_of_item(part: &str, item: &Value) -> Vec<String> {
    let mut item = item.clone();
    let destinations = item.as_object_mut().and_then(|item| item.remove("destinations"));
    let Some(destinations) = destinations else { return vec![format!("plan.{part}: {item}")] };
    let text = |field: &str| item[field].as_str().unwrap();
    let server = format!("{} {} {} {}", text("service"), text("protocol"), text("address"), item["port"]);
    let destinations = destinations.as_array().unwrap().iter();
    let destinations = destinations.map(|destination| format!("plan.{part} {server}: {destination}"));
    [format!("plan.{part} {server}: {item}")].into_iter().chain(destinations).collect()
}

/// Lines that went, then lines that came.
pub fn changes(before: &BTreeSet<String>, after: &BTreeSet<String>) -> String {
    let mut text = String::new();
    for line in before.difference(after) {
        writeln!(text, "- {line}").unwrap();
    }
    for line in after.difference(before) {
        writeln!(text, "+ {line}").unwrap();
    }
    text
}
