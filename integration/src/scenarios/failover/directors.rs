//! Nodes that leave as directors, and join again.

use anyhow::Result;
use serde_json::{Value, json};

use super::super::Scenario;
use super::super::announced::await_directors;
use super::{Traffic, await_all_ways, service};
use crate::lab::Lab;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "failover-director-leaves",
    proves: "each node in turn leaves as a director, by the label that keeps load balancers off it, and joins again: no connection is lost and no request fails",
    run: director_leaves,
}];

const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

fn director_leaves(lab: &mut Lab) -> Result<()> {
    let service = service(lab, "leaving", 73, &["a1", "b1", "c1"])?;
    lab.apply(&service)?;
    await_all_ways(lab, &service)?;
    let mut traffic = Traffic::start(lab, &service)?;
    let nodes = ["node-a", "node-b", "node-c"];
    for node in nodes {
        lab.source.change_node(node, |object| object["metadata"]["labels"] = json!({LABEL: "true"}))?;
        let others = nodes.into_iter().filter(|other| *other != node).collect::<Vec<_>>();
        await_directors(lab, &service.vips(), &others)?;
        traffic.goes_on(lab)?;
        lab.source.change_node(node, |object| object["metadata"]["labels"] = Value::Null)?;
        await_directors(lab, &service.vips(), &nodes)?;
        traffic.goes_on(lab)?;
    }
    traffic.none_failed(lab)?;
    lab.remove(&service)
}
