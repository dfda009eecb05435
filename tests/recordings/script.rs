//! A server that answers requests with recorded bytes, in the order in which they are scripted.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sheave_apiserver::{Answer, Api, Fault, Options, Request, Status};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::recording::{self, Recording};

/// What is still to be answered, by resource; and what was asked.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    answers: HashMap<String, VecDeque<Recording>>,
    /// Watches that stay open.
    held: Vec<mpsc::UnboundedSender<Bytes>>,
    asked: Vec<Request>,
}

impl Script {
    /// Answers requests for a resource with these, one after the other; then watches stay open and silent.
    pub fn new(files: &[&'static str]) -> Self {
        let script = Self::default();
        script.extend(files);
        script
    }

    /// Adds more of them.
    pub fn extend(&self, files: &[&'static str]) {
        let mut state = self.0.lock().unwrap();
        for file in files {
            let recording = Recording::of(file);
            state.answers.entry(recording.resource().to_owned()).or_default().push_back(recording);
        }
    }

    /// After what is scripted for Services, this is the answer to whatever is asked for them.
    pub fn then(self, file: &'static str) -> Self {
        let recording = Recording { anyhow: true, ..Recording::of(file) };
        self.0.lock().unwrap().answers.entry("services".into()).or_default().push_back(recording);
        self
    }

    /// The server. Streams are told at their recorded times, on a clock that is at `begin` milliseconds now.
    pub fn serve(&self, begin: u64) -> Api {
        let api = Api::new(Options::default());
        let (script, start) = (self.clone(), Instant::now() - Duration::from_millis(begin));
        api.inject(move |request| Some(script.0.lock().unwrap().answer(request, start)));
        api
    }

    /// What has been asked for a resource.
    pub fn asked(&self, resource: &str) -> Vec<Request> {
        let state = self.0.lock().unwrap();
        let of_resource = |request: &&Request| request.target.as_ref().unwrap().resource == resource;
        state.asked.iter().filter(of_resource).cloned().collect()
    }

    /// Whether all that was scripted was asked for.
    pub fn is_told(&self) -> bool {
        self.0.lock().unwrap().answers.values().all(VecDeque::is_empty)
    }
}

impl State {
    fn answer(&mut self, request: &Request, start: Instant) -> Fault {
        let resource = request.target.as_ref().unwrap().resource.clone();
        let answers = self.answers.entry(resource.clone()).or_default();
        let streaming = request.parameter("sendInitialEvents").is_some();
        let streams = |next: &Recording| next.anyhow || next.parameter("sendInitialEvents").is_some();
        let refuses_streams = answers.front().is_some_and(|next| !streams(next));
        if streaming && refuses_streams {
            return Fault::Status(Status::invalid_options("sendInitialEvents", "not in this recording"));
        }
        self.asked.push(request.clone());
        let (sender, body) = mpsc::unbounded_channel();
        let Some(next) = answers.pop_front() else {
            return match request.verb.as_str() {
                // Not recorded: such a server has none.
                _ if resource == "servicecidrs" => Fault::Status(Status::no_resource()),
                "watch" => {
                    self.held.push(sender);
                    Fault::Answer(Answer { status: 200, headers: Vec::new(), body })
                }
                // All over again.
                _ if request.parameter("continue").is_none() => {
                    let list = fs::read(recording::path(&format!("list-{resource}.json"))).unwrap();
                    Fault::Answer(Answer::whole(200, list))
                }
                _ => Fault::Status(Status::plain(503, None)),
            };
        };
        if !next.anyhow {
            assert_eq!(request.verb == "watch", next.is_watch(), "{} is asked for by {request:?}", next.file);
            if let Some(token) = request.parameter("continue") {
                assert_eq!(Some(token), next.parameter("continue"), "{}", next.file);
            }
        }
        if next.anyhow || !next.is_watch() {
            let mut answer = Answer::whole(next.status, next.body());
            answer.headers = next.headers;
            return Fault::Answer(answer);
        }
        let (lines, end) = (next.lines(), next.ms_end.unwrap_or_default());
        tokio::spawn(async move {
            for (ms, line) in lines {
                sleep_until(start + Duration::from_millis(ms)).await;
                // The client has gone: it need not be told any more.
                if sender.send(line).is_err() {
                    return;
                }
            }
            sleep_until(start + Duration::from_millis(end)).await;
        });
        Fault::Answer(Answer { status: 200, headers: next.headers, body })
    }
}
