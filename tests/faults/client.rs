//! A client that follows the cluster, and what must hold of everything that it is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use sheave::cluster::kubernetes::{Pace, follow};
use sheave::cluster::{Event, Object, ObjectKey, Watch, WatchState};
use sheave::plan::VipPort;
use sheave_apiserver::Api;
use tokio::sync::mpsc;

use crate::cluster::Gone;
use crate::history::History;
use crate::in_memory::{self, Told};

/// What a client was told, and where that was wrong.
pub struct Client(Arc<Mutex<State>>);

struct State {
    told: Told,
    gone: Gone,
    deleted: HashMap<ObjectKey, u32>,
    removed: HashMap<VipPort, u32>,
    history: History,
    /// Every single change is of interest, not only what a batch comes to.
    closely: bool,
    synced: bool,
    states: BTreeMap<&'static str, WatchState>,
    complaints: Vec<String>,
}

/// What a client ends with.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub objects: BTreeMap<ObjectKey, Object>,
    pub plan: String,
    pub problems: usize,
}

impl Outcome {
    /// Where this one differs from what it should be.
    pub fn differences(&self, expected: &Self) -> String {
        let mut text = String::new();
        for key in self.objects.keys().chain(expected.objects.keys()).collect::<BTreeSet<_>>() {
            let (own, other) = (self.objects.get(key), expected.objects.get(key));
            if own != other {
                text += &format!("{key}: {own:?}\ninstead of {other:?}\n");
            }
        }
        if self.plan != expected.plan {
            text += "the plans differ\n";
        }
        text + &format!("{} problems instead of {}", self.problems, expected.problems)
    }
}

impl Client {
    /// Starts one, on the current runtime.
    pub fn start(api: &Api, gone: &Gone) -> Self {
        Self::start_with(api, gone, false)
    }

    /// Starts one that goes through every state that there is.
    pub fn start_closely(api: &Api, gone: &Gone) -> Self {
        Self::start_with(api, gone, true)
    }

    fn start_with(api: &Api, gone: &Gone, closely: bool) -> Self {
        let (sender, mut events) = mpsc::unbounded_channel();
        follow(&in_memory::client(api), &Pace::default(), sender);
        let state = Arc::new(Mutex::new(State {
            told: Told::new(),
            gone: gone.clone(),
            deleted: HashMap::new(),
            removed: HashMap::new(),
            history: History::default(),
            closely,
            synced: false,
            states: BTreeMap::new(),
            complaints: Vec::new(),
        }));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Some(batch) = events.recv().await {
                shared.lock().unwrap().take(&batch);
            }
        });
        Self(state)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Whether it has heard everything there was at the start, and hears everything now.
    pub fn is_well(&self) -> bool {
        let state = self.state();
        state.synced && state.states.values().all(|state| *state == WatchState::Watching)
    }

    /// What is wrong with what it was told.
    pub fn complaints(&self) -> Vec<String> {
        self.state().complaints.clone()
    }

    /// How it stands with each resource.
    pub fn states(&self) -> String {
        format!("{:?}", self.state().states)
    }

    /// All states that it went through.
    pub fn history(&self) -> History {
        self.state().history.clone()
    }

    pub fn outcome(&self) -> Outcome {
        let state = self.state();
        Outcome {
            objects: state.told.objects.clone(),
            plan: sheave::cli::plan_json(&state.told.planner).unwrap(),
            problems: state.told.planner.problems().len(),
        }
    }
}

impl State {
    fn take(&mut self, batch: &[Event]) {
        let was_synced = self.synced;
        for event in batch {
            match event {
                Event::Delete(key) => self.check_deleted(key),
                Event::Synced if self.synced => self.complaints.push("synced twice".into()),
                Event::Synced => self.synced = true,
                Event::Watch(Watch { resource, state }) => drop(self.states.insert(resource, state.clone())),
                Event::Apply(_) | Event::Problems(_) | Event::TriggeredAt(_) => {}
            }
        }
        if self.closely {
            // Event by event; but a list is complete with its batch, and not before.
            for events in batch.chunks(if was_synced { 1 } else { batch.len().max(1) }) {
                self.told.note(events);
                self.history.add(&self.told, events);
            }
            return;
        }
        let servers = |told: &Told| -> BTreeSet<VipPort> {
            told.planner.plan().virtual_servers.keys().copied().collect()
        };
        let before = servers(&self.told);
        self.told.handle(batch.to_vec());
        self.history.add(&self.told, batch);
        for server in before.difference(&servers(&self.told)) {
            self.check_removed(*server);
        }
    }

    fn check_deleted(&mut self, key: &ObjectKey) {
        let told = self.deleted.entry(key.clone()).or_default();
        *told += 1;
        let gone = self.gone.counts().objects.get(key).copied().unwrap_or_default();
        if *told > gone {
            self.complaints.push(format!("{key} is told to be deleted, {told} times of {gone}"));
        }
    }

    fn check_removed(&mut self, server: VipPort) {
        let told = self.removed.entry(server).or_default();
        *told += 1;
        let gone = self.gone.counts().virtual_servers.get(&server).copied().unwrap_or_default();
        if *told > gone {
            self.complaints.push(format!("virtual server {server} is removed, {told} times of {gone}"));
        }
    }
}
