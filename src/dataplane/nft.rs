//! The `nft` binary, fed with text on stdin: one call, one atomic transaction.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::elements::Element;
use super::ruleset::{FILLED_BY_PACKETS, TABLE};

/// What went wrong with `nft`.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// It could not be run.
    #[error("nft: {0}: is it installed and in the PATH?")]
    Spawn(std::io::Error),
    /// It refused; nothing has changed.
    #[error("nft: {0}")]
    Refused(String),
    /// Its answer is not what the manual says.
    #[error("nft -j list: {0}")]
    Answer(String),
    /// The kernel did not tell the generation of its ruleset.
    #[error("nfnetlink: {0}")]
    Nfnetlink(#[from] std::io::Error),
}

impl NftError {
    /// Whether it says nothing of what was asked for: the same may be done a moment later.
    pub fn is_passing(&self) -> bool {
        // As `strerror` has EINTR, EAGAIN, ENOBUFS, ENOMEM, EBUSY and ETIMEDOUT.
        const PASSING: [&str; 6] = [
            "Interrupted system call",
            "Resource temporarily unavailable",
            "No buffer space available",
            "Cannot allocate memory",
            "Device or resource busy",
            "Connection timed out",
        ];
        match self {
            Self::Refused(message) => PASSING.iter().any(|passing| message.contains(passing)),
            Self::Spawn(_) | Self::Answer(_) | Self::Nfnetlink(_) => true,
        }
    }
}

/// The table as the kernel holds it.
#[derive(Debug, Default, PartialEq)]
pub struct Listing {
    /// Chains and rules, in nft's JSON without handles: to be compared, not understood.
    pub rules: Vec<Value>,
    /// Elements of ours.
    pub elements: BTreeSet<Element>,
    /// Text of elements that we could not have written, with their set.
    pub strange: Vec<(String, Value)>,
}

/// Lists our table; `None` where there is none.
///
/// # Errors
/// [`NftError`].
pub fn list() -> Result<Option<Listing>, NftError> {
    list_table(&["-j"])
}

/// Lists our table without its elements; `None` where there is none.
///
/// # Errors
/// [`NftError`].
pub fn list_rules() -> Result<Option<Vec<Value>>, NftError> {
    list_table(&["-j", "-t"]).map(|listing| listing.map(|listing| listing.rules))
}

fn list_table(options: &[&str]) -> Result<Option<Listing>, NftError> {
    objects_of(TABLE, options).map(|objects| objects.map(parse))
}

/// The objects of a table of family `inet`, as in nft's JSON; `None` where there is none.
///
/// # Errors
/// [`NftError`].
pub fn table(name: &str) -> Result<Option<Vec<Value>>, NftError> {
    objects_of(name, &["-j"])
}

fn objects_of(table: &str, options: &[&str]) -> Result<Option<Vec<Value>>, NftError> {
    match run(&[options, &["list", "table", "inet", table]].concat(), "") {
        Ok(output) => array(&output).map(Some),
        Err(NftError::Refused(message)) if message.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// The elements of one of our table's sets; none where there is no such set.
///
/// # Errors
/// [`NftError`].
pub fn set(name: &str) -> Result<Vec<Element>, NftError> {
    let objects = match run(&["-j", "list", "set", "inet", TABLE, name], "") {
        Ok(output) => array(&output)?,
        Err(NftError::Refused(message)) if message.contains("No such file or directory") => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(parse(objects).elements.into_iter().collect())
}

/// Runs one transaction.
///
/// # Errors
/// [`NftError`]; nothing has changed then.
pub fn transact(text: &str) -> Result<(), NftError> {
    run(&["-f", "-"], text).map(drop)
}

/// Asks the kernel whether it would take a transaction. Changes nothing.
///
/// # Errors
/// [`NftError`] with what it says.
pub fn check(text: &str) -> Result<(), NftError> {
    run(&["--check", "-f", "-"], text).map(drop)
}

/// Which `nft` this is, in its own words.
///
/// # Errors
/// [`NftError`] where it cannot be run.
pub fn version() -> Result<String, NftError> {
    run(&["--version"], "")
}

/// Lists every table with its chains and rules, whoever owns them, without elements of sets, as objects of nft's JSON.
///
/// # Errors
/// [`NftError`].
pub fn ruleset() -> Result<Vec<Value>, NftError> {
    array(&run(&["-j", "-t", "list", "ruleset"], "")?)
}

/// The commands that remove `gone` and add `new`, for [`transact`]. Empty where both are.
///
/// Deletions come first: a map refuses a second value for a key, an interval set an overlap.
pub fn changes<'a>(
    gone: impl IntoIterator<Item = &'a Element>,
    new: impl IntoIterator<Item = &'a Element>,
) -> String {
    let mut text = String::new();
    for (verb, elements) in [("delete", sorted(gone, Element::key)), ("add", sorted(new, Element::text))] {
        for (set, members) in elements {
            let _ = writeln!(text, "{verb} element inet {TABLE} {set} {{ {} }}", members.join(", "));
        }
    }
    text
}

fn sorted<'a>(
    elements: impl IntoIterator<Item = &'a Element>,
    text: impl Fn(&Element) -> String,
) -> std::collections::BTreeMap<&'static str, Vec<String>> {
    let mut sets = std::collections::BTreeMap::<_, Vec<_>>::new();
    for element in elements {
        sets.entry(element.set()).or_default().push(text(element));
    }
    sets
}

fn parse(objects: Vec<Value>) -> Listing {
    let mut listing = Listing::default();
    for object in objects {
        if let Some(set) = object.get("set").or_else(|| object.get("map")) {
            let name = set.get("name").and_then(Value::as_str).unwrap_or_default();
            if FILLED_BY_PACKETS.contains(&name) {
                continue;
            }
            for element in set.get("elem").and_then(Value::as_array).into_iter().flatten() {
                match Element::parse(name, element) {
                    Some(element) => drop(listing.elements.insert(element)),
                    None => listing.strange.push((name.to_owned(), element.clone())),
                }
            }
        } else if object.get("chain").is_some() || object.get("rule").is_some() {
            let mut object = object;
            for part in object.as_object_mut().into_iter().flat_map(|object| object.values_mut()) {
                if let Some(part) = part.as_object_mut() {
                    part.remove("handle");
                }
            }
            listing.rules.push(object);
        }
    }
    listing
}

/// The objects of a listing.
fn array(output: &str) -> Result<Vec<Value>, NftError> {
    let mut answer: Value =
        serde_json::from_str(output).map_err(|error| NftError::Answer(format!("not JSON: {error}")))?;
    match answer.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => Err(NftError::Answer("no array `nftables`".into())),
    }
}

fn run(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::Spawn)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // Each pipe has its own thread: nft may fill one while we still write or read another.
    let (written, out, err) = std::thread::scope(|scope| {
        let written = scope.spawn(move || stdin.map_or(Ok(()), |mut pipe| pipe.write_all(input.as_bytes())));
        let err = scope.spawn(move || read(stderr));
        let out = read(stdout);
        (written.join(), out, err.join())
    });
    let status = child.wait().map_err(NftError::Spawn)?;
    let err = err.unwrap_or_else(|_| Ok(String::new())).unwrap_or_default();
    if !status.success() {
        let first = err.lines().take(4).collect::<Vec<_>>().join("; ");
        return Err(NftError::Refused(if first.is_empty() { status.to_string() } else { first }));
    }
    if let Ok(Err(error)) = written {
        return Err(NftError::Spawn(error));
    }
    out.map_err(NftError::Spawn)
}

fn read(pipe: Option<impl std::io::Read>) -> std::io::Result<String> {
    let mut text = String::new();
    pipe.map_or(Ok(0), |mut pipe| pipe.read_to_string(&mut text))?;
    Ok(text)
}
