//! All states that the objects of a resource went through, one after the other.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use sheave::cluster::{Event, Object, ObjectKey};

use crate::in_memory::Told;

/// Of each resource, the states in their order; equal ones have equal numbers.
#[derive(Clone, Debug, Default)]
pub struct History(BTreeMap<&'static str, Vec<u64>>);

impl History {
    /// Adds what is known now of the resources that these events are of.
    pub fn add<'a>(&mut self, told: &Told, events: impl IntoIterator<Item = &'a Event>) {
        let resource_of_event = |event: &Event| match event {
            Event::Apply(object) => Some(resource(&object.key())),
            Event::Delete(key) => Some(resource(key)),
            Event::Synced | Event::Problems(_) | Event::Watch(_) | Event::TriggeredAt(_) => None,
        };
        let mut last = None;
        for touched in events.into_iter().filter_map(resource_of_event) {
            // A batch is of one resource.
            if last.replace(touched) == Some(touched) {
                continue;
            }
            let objects = told.objects.iter().filter(|(key, _)| resource(key) == touched);
            let state: String = objects.map(|(_, object)| format!("{:?}", without_time(object))).collect();
            let state = BuildHasherDefault::<DefaultHasher>::default().hash_one(state);
            let states = self.0.entry(touched).or_default();
            if states.last() != Some(&state) {
                states.push(state);
            }
        }
    }

    /// Which resource was at some time in a state that it was not in then, according to the whole history.
    pub fn strays_from(&self, whole: &Self) -> Option<&'static str> {
        let strays = |(resource, states): (&&'static str, &Vec<u64>)| {
            let mut then = whole.0.get(resource).into_iter().flatten();
            let follows = states.iter().all(|state| then.any(|other| other == state));
            (!follows).then_some(*resource)
        };
        self.0.iter().find_map(strays)
    }
}

fn resource(key: &ObjectKey) -> &'static str {
    match key {
        ObjectKey::Service(_) => "services",
        ObjectKey::EndpointSlice(_) => "endpointslices",
        ObjectKey::Node(_) => "nodes",
        ObjectKey::ServiceCidr(_) => "servicecidrs",
    }
}

/// Two servers do not create an object in the same second.
fn without_time(object: &Object) -> Object {
    let mut object = object.clone();
    if let Object::Service(service) = &mut object {
        Arc::make_mut(service).created = None;
    }
    object
}
