//! The recorded files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;

/// One response of a real API server.
pub struct Recording {
    pub file: &'static str,
    /// As it was asked for, decoded by nobody.
    pub uri: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// When a stream ended.
    pub ms_end: Option<u64>,
    /// It is the answer whatever is asked.
    pub anyhow: bool,
}

impl Recording {
    pub fn of(file: &'static str) -> Self {
        let all: Vec<Value> = serde_json::from_str(&read("responses.json")).unwrap();
        let response = all.iter().find(|response| response["file"] == file).unwrap();
        let headers: BTreeMap<String, String> = serde_json::from_value(response["headers"].clone()).unwrap();
        Self {
            file,
            uri: response["request"].as_str().unwrap().trim_start_matches("GET ").to_owned(),
            status: response["status"].as_u64().unwrap().try_into().unwrap(),
            ms_end: response["ms_end"].as_u64(),
            anyhow: false,
            // How the body is cut into pieces, the connection that replays it settles itself.
            headers: headers
                .into_iter()
                .filter(|(name, _)| !matches!(name.as_str(), "Transfer-Encoding" | "Content-Length"))
                .collect(),
        }
    }

    /// The resource that was asked for.
    pub fn resource(&self) -> &str {
        self.uri.split('?').next().unwrap().rsplit('/').next().unwrap()
    }

    /// A parameter of the request, as it was written.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let query = self.uri.split_once('?')?.1;
        query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    }

    pub fn is_watch(&self) -> bool {
        self.parameter("watch") == Some("true")
    }

    /// What came at once.
    pub fn body(&self) -> Bytes {
        match self.ms_end {
            Some(_) => self.lines().into_iter().flat_map(|(_, line)| line).collect(),
            None => read(self.file).into(),
        }
    }

    /// What came when, in milliseconds.
    pub fn lines(&self) -> Vec<(u64, Bytes)> {
        let line = |line: &str| {
            let parts: BTreeMap<String, Box<RawValue>> = serde_json::from_str(line).unwrap();
            (parts["ms"].get().parse().unwrap(), format!("{}\n", parts["event"].get()).into())
        };
        read(self.file).lines().map(line).collect()
    }
}

/// A step of the script that changed the recorded cluster.
pub struct Step {
    pub ms: u64,
    pub title: String,
}

/// Those of which the watches tell.
pub fn steps() -> Vec<Step> {
    let steps: Vec<Value> = serde_json::from_str(&read("steps.json")).unwrap();
    let step = |step: &Value| Step {
        ms: step["ms"].as_u64().unwrap(),
        title: format!("{}: {}", step["step"], step["change"].as_str().unwrap()),
    };
    steps.iter().map(step).collect()
}

/// Where the files are.
pub fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/apiserver/recordings").join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}
