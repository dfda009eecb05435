//! What goes wrong, at random.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sheave_apiserver::{Answer, Api, Fault, Interruption, Reach, Request, Resource, Status, StreamingLists};

use crate::chance::Chance;

const RESOURCES: [Resource; 4] =
    [Resource::Services, Resource::EndpointSlices, Resource::Nodes, Resource::ServiceCidrs];

/// What servers, and what answers in their place, say no with.
const CODES: [u16; 12] = [400, 401, 403, 404, 408, 410, 422, 429, 500, 502, 503, 504];

/// What answers in an API server's place.
const GARBAGE: [&str; 6] =
    ["", "<html>hello</html>", "{}", "null", "{\"kind\":\"ServiceList\",\"items\":[{\"meta", "\n\n[]\n"];

/// More requests than any of these stories needs: a client that asks so often does not wait between them.
const MANY: u64 = 1_000;

/// What goes wrong with a server.
pub struct Disorder {
    api: Api,
    requests: Arc<AtomicU64>,
}

impl Disorder {
    pub fn new(api: &Api) -> Self {
        let disorder = Self { api: api.clone(), requests: Arc::default() };
        disorder.count();
        disorder
    }

    /// Counts requests, and stops a client that would keep the paused clock from ever moving.
    fn count(&self) {
        let requests = self.requests.clone();
        self.api.inject(move |_| {
            let many = requests.fetch_add(1, Ordering::Relaxed) > MANY;
            many.then_some(Fault::Delay(Duration::from_secs(3600)))
        });
    }

    /// Too many requests, if there were.
    pub fn complaint(&self) -> Option<String> {
        let requests = self.requests.load(Ordering::Relaxed);
        eprintln!("REQ {requests}");
        (requests > MANY).then(|| format!("{requests} requests"))
    }

    /// Lets one thing go wrong.
    pub fn strike(&self, chance: &mut Chance) {
        strike(&self.api, chance);
    }

    /// Everything is well again, but for answers that have begun.
    pub fn calm(&self) {
        calm(&self.api);
        self.count();
    }
}

fn strike(api: &Api, chance: &mut Chance) {
    match chance.number(0..16) {
        0..6 => spoil_requests(api, chance),
        6..10 => interrupt_watches(api, chance),
        10 | 11 => api.compact(),
        12 => api.set_reach(chance.of(&[Reach::Silent, Reach::Refused, Reach::Up, Reach::Up])),
        13 => api.cut(chance.one_in(2)),
        14 => api.set_streaming_lists(chance.of(&[
            StreamingLists::Served,
            StreamingLists::Rejected,
            StreamingLists::Ignored,
        ])),
        _ => withdraw_rights(api, chance),
    }
}

fn calm(api: &Api) {
    api.clear_faults();
    api.set_reach(Reach::Up);
    api.add_token("token-0");
    api.set_served(Resource::ServiceCidrs, true);
    for resource in RESOURCES {
        for verb in ["list", "watch"] {
            api.set_forbidden(verb, resource.plural(), false);
        }
    }
}

fn withdraw_rights(api: &Api, chance: &mut Chance) {
    match chance.number(0..4) {
        0 => api.revoke_token("token-0"),
        1 => api.add_token("token-0"),
        2 => api.set_served(Resource::ServiceCidrs, chance.one_in(2)),
        _ => {
            let resource = chance.of(&RESOURCES);
            api.set_forbidden(chance.of(&["list", "watch"]), resource.plural(), chance.one_in(2));
        }
    }
}

/// Spoils the next few requests of a kind.
fn spoil_requests(api: &Api, chance: &mut Chance) {
    let resource = chance.of(&RESOURCES);
    let verb = chance.of(&["list", "watch", ""]);
    let mut left = chance.number(1..5);
    let mut chance = chance.fork();
    api.inject(move |request: &Request| {
        let meant = request.resource() == Some(resource) && request.verb.starts_with(verb);
        if !meant || left == 0 {
            return None;
        }
        left -= 1;
        Some(fault(&mut chance))
    });
}

fn fault(chance: &mut Chance) -> Fault {
    let after = usize::try_from(chance.number(0..3_000)).unwrap();
    match chance.number(0..8) {
        0..3 => {
            let wait = chance.one_in(2).then_some(2);
            Fault::Status(Status::plain(chance.of(&CODES), wait))
        }
        3 => Fault::Delay(chance.time()),
        4 => Fault::Cut { after, reset: false },
        5 => Fault::Stall { after },
        6 => Fault::Drip { piece: 1 + after / 10, every: Duration::from_millis(chance.of(&[1, 50, 1_000])) },
        _ => Fault::Answer(Answer::whole(200, chance.of(&GARBAGE))),
    }
}

fn interrupt_watches(api: &Api, chance: &mut Chance) {
    let resource = chance.of(&RESOURCES);
    let interruption = match chance.number(0..8) {
        0 => Interruption::End,
        1 => Interruption::Close { partial: false },
        2 => Interruption::Close { partial: true },
        3 => Interruption::Reset,
        4 => Interruption::Stall,
        5 => Interruption::Error(Status::watch_expired(1, api.revision())),
        6 => Interruption::Error(Status::plain(chance.of(&CODES), None)),
        _ => Interruption::Bytes(Bytes::from_static(chance.of(&GARBAGE).as_bytes())),
    };
    api.interrupt(|request| request.resource() == Some(resource), &interruption);
}
