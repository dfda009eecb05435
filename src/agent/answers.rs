//! What the agent says when it is asked.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use sheave_bgp::session::State;
use sheave_bgp::{BfdStatus, BmpStationStatus, FamilyCounts, LearntStatus, SpeakerStatus};
use tracing::debug;

use super::{Agent, CHECK};
use crate::announce::Missing;
use crate::dataplane::Asked;
use crate::observe::explain::{self, Explanation, Target, Told};
use crate::observe::metrics::Snapshot;
use crate::observe::status::{self, Status};
use crate::version;

impl Agent {
    /// What `sheave status` asks for.
    pub(super) fn status(&mut self) -> Status {
        let mut problems: Vec<String> = self.planner.problems().iter().map(ToString::to_string).collect();
        problems.extend(self.dataplane.problems());
        problems.extend(self.observer.problems());
        problems.extend(self.announcer.problems());
        problems.extend(self.tables.problem.clone());
        problems.extend(self.draining.problems());
        let held = self.dataplane.list_virtual_servers().unwrap_or_else(|error| {
            problems.push(error.to_string());
            Vec::new()
        });
        let plan = self.planner.plan();
        let announced = self.held.as_ref().unwrap_or(plan);
        let learnt = self.announcer.learns().unwrap_or_default();
        let imported = self.announcer.imported();
        let speaker = self.announcer.status();
        Status {
            node: self.planner.node().into(),
            version: version::text().into(),
            ready: self.ready,
            holding: self.held.is_some(),
            drain: self.drain_status(),
            health: self.observer.health(),
            watches: self.observer.watches(),
            reflected: speaker.as_ref().map_or(0, |speaker| speaker.reflected),
            peers: peers(speaker, &learnt, self.announcer.missing()),
            bmp: self.announcer.bmp_stations().into_iter().map(bmp_station).collect(),
            imported: status::Imported {
                prefixes: learnt.routes,
                in_kernel: imported.in_kernel,
                kept: imported.kept,
            },
            announcements: announced
                .announcements
                .values()
                .map(|announcement| status::Announcement {
                    prefix: announcement.prefix.to_string(),
                    kind: format!("{:?}", announcement.kind),
                    service: announcement.service.as_ref().map(ToString::to_string),
                    announced: self.announcer.announces(announced, &announcement.prefix),
                    aggregate: self
                        .announcer
                        .aggregate_of(announced, &announcement.prefix)
                        .map(|aggregate| aggregate.to_string()),
                    withheld_from: self.announcer.withheld_from(announced, &announcement.prefix),
                })
                .collect(),
            virtual_servers: crate::dataplane::describe(plan, &held, |key| self.dataplane.vip_of(key)),
            problems,
            warnings: self
                .planner
                .warnings()
                .into_iter()
                .chain(self.observer.warnings())
                .map(|warning| format!("{}: {}: {}", warning.object, warning.reason, warning.message))
                .collect(),
        }
    }

    /// What `sheave explain` asks for.
    pub(super) async fn explain(&mut self, target: &Target) -> Result<Explanation, String> {
        let mut explanation = Explanation::planned(&self.planner, target).map_err(|error| {
            if self.ready { error.to_string() } else { format!("{error} (the agent waits for its source)") }
        })?;
        explanation.agent = Some(explain::Agent {
            version: version::text().into(),
            ready: self.ready,
            holding: self.held.is_some(),
            drain: self.drain_status(),
        });
        if !self.ready {
            // Nothing of the plan is meant to be in the kernel yet.
            return Ok(explanation);
        }
        let plan = self.planner.plan();
        explanation.told(&Told {
            speaker: self.announcer.status(),
            problems: &self.announcer.problems(),
            announces: &|prefix| self.announcer.announces(plan, prefix),
            aggregate_of: &|prefix| self.announcer.aggregate_of(plan, prefix),
            router: &self.planner.config().router,
            withheld_from: &|prefix| self.announcer.withheld_from(plan, prefix),
            obstacles: &|vip| match self.announcer.holds_back(&vip.into()) {
                true => vec!["this node drains".into()],
                false => self.dataplane.obstacles(plan, vip),
            },
            found: self.announcer.found(),
        });
        let asked: Vec<Asked> = explanation
            .virtual_servers
            .iter()
            .filter(|server| server.held_by.is_none())
            .map(|server| {
                let endpoints = server.endpoints.iter().map(|endpoint| endpoint.address).collect();
                Asked { vip: server.vip(), endpoints }
            })
            .collect();
        explanation.kernel = Some(self.dataplane.explain(plan, &asked, CHECK, Instant::now()).await);
        Ok(explanation)
    }

    /// What a scrape asks for: nothing per endpoint.
    pub(super) fn snapshot(&mut self) -> Snapshot {
        let wanted = self.observer.wanted();
        let mut problems = self.dataplane.problem_counts();
        let listed = if wanted.any() {
            self.dataplane.traffic().unwrap_or_else(|error| {
                debug!(%error, "no counters of virtual servers");
                *problems.entry("unanswered").or_default() += 1;
                Vec::new()
            })
        } else {
            Vec::new()
        };
        problems.insert("source", self.planner.problems().len());
        problems.insert("listener", self.observer.problems().count());
        problems.insert("bgp", self.announcer.problems().len());
        problems.insert("table", usize::from(self.tables.problem.is_some()));
        problems.insert("drain", self.draining.problems().count());
        let plan = self.planner.plan();
        let counts = self.announcer.counts(self.held.as_ref().unwrap_or(plan));
        Snapshot {
            ready: self.ready,
            holding: self.held.is_some(),
            adopted: self.dataplane.adopted(),
            virtual_servers: plan.virtual_servers.len(),
            draining: self.dataplane.draining(),
            destinations: plan.virtual_servers.values().map(|server| server.destinations.len()).sum(),
            vips: plan.vips.len(),
            rewrites: plan.rewrites.len(),
            health_check_node_ports: self.observer.health_check_node_ports(),
            announcements: counts.planned,
            announced: counts.announced,
            drain: self.drain_snapshot(),
            without_local_endpoints: plan.without_local_endpoints,
            warnings: self.observer.warning_counts(&self.planner),
            problems,
            passes: self.dataplane.passes(),
            ipvs_messages: self.dataplane.ipvs_messages(),
            ipvs_time: self.dataplane.ipvs_time(),
            traffic: wanted.pick(&self.planner, listed),
            speaker: self.announcer.status(),
            absent: self.announcer.missing().map(|Missing { name, asn, .. }| (name.clone(), *asn)).collect(),
            empty_ranges: self.announcer.missing_ranges(),
            bmp: self.announcer.bmp_stations(),
            learnt: self.announcer.learns(),
            imported: self.announcer.imported(),
        }
    }
}

fn bmp_station(station: BmpStationStatus) -> status::BmpStation {
    status::BmpStation {
        address: station.address.to_string(),
        connected_seconds: station
            .connected
            .map(|since| since.elapsed().map_or(0, |connected| connected.as_secs())),
        queued_bytes: station.queued,
        cut_off: station.counters.cut_off,
        last_error: station.last_error.map(|(_, error)| error),
    }
}

fn peers<'a>(
    speaker: Option<SpeakerStatus>,
    learnt: &LearntStatus,
    missing: impl Iterator<Item = &'a Missing>,
) -> Vec<status::Peer> {
    let count = |peer: &IpAddr, of: fn(&FamilyCounts) -> usize| {
        learnt.peers.get(peer).map(|families| families.iter().map(|(_, counts)| of(counts)).sum())
    };
    let sessions = speaker.into_iter().flat_map(|speaker| speaker.peers);
    let missing = missing.map(|Missing { name, asn, why, .. }| status::Peer {
        address: name.clone(),
        asn: *asn,
        range: None,
        state: format!("{:?}", State::Idle),
        uptime_seconds: None,
        prefixes_sent: 0,
        prefixes_received: None,
        prefixes_accepted: None,
        last_error: Some(why.clone()),
        bfd: None,
    });
    sessions
        .map(|peer| status::Peer {
            address: peer.name(),
            asn: peer.asn,
            range: peer.range.map(|range| range.to_string()),
            state: format!("{:?}", peer.state),
            uptime_seconds: peer.uptime.map(|uptime| uptime.as_secs()),
            prefixes_sent: peer
                .session
                .iter()
                .flat_map(|session| &session.families)
                .map(|family| family.prefixes_sent)
                .sum(),
            prefixes_received: count(&peer.address, |counts| counts.received),
            prefixes_accepted: count(&peer.address, |counts| counts.accepted),
            last_error: peer.last_error.map(|error| error.reason.to_string()),
            bfd: peer.bfd.map(bfd),
        })
        .chain(missing)
        .collect()
}

fn bfd(bfd: BfdStatus) -> status::Bfd {
    let micros = |time: Duration| time.as_micros().try_into().unwrap_or(u64::MAX);
    status::Bfd {
        state: bfd.state.to_string(),
        remote_state: bfd.remote_state.to_string(),
        diagnostic: bfd.diagnostic.to_string(),
        remote_diagnostic: bfd.remote_diagnostic.to_string(),
        transmit_interval_us: micros(bfd.transmit_interval),
        receive_interval_us: micros(bfd.receive_interval),
        detection_time_us: micros(bfd.detection_time),
        ups: bfd.ups,
        failures: bfd.failures,
        problem: bfd.problem,
    }
}
