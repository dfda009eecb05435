//! A large cluster for the API server double: objects as long as real ones, with all that an agent has no use for.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::Value;
use sheave_apiserver::Api;

/// Endpoints of each Service.
pub const ENDPOINTS: u32 = 10;
/// Nodes, over which endpoints are spread in turn.
const NODES: u32 = 1_000;
/// Revision of everything at first.
const REVISION: u32 = 1_000_000;

/// The Node that is measured, and its address.
pub const NODE: &str = "node-0";
/// Its address.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// So many Services, each with one EndpointSlice, on 1,000 Nodes with agents.
#[derive(Clone, Copy, Debug)]
pub struct Population {
    /// How many.
    pub services: u32,
}

impl Population {
    /// Puts it into an API server that is empty.
    ///
    /// # Errors
    /// When the double does not take it.
    pub fn load(self, api: &Api) -> Result<()> {
        load(api, "v1", "Node", (0..NODES).map(node))?;
        load(api, "v1", "Service", (0..self.services).map(service))?;
        load(api, "discovery.k8s.io/v1", "EndpointSlice", (0..self.services).map(slice))
    }

    /// Changes one endpoint, not of the measured Node, of a Service.
    ///
    /// # Errors
    /// When the double does not take it.
    pub fn set_ready(self, api: &Api, service: u32, ready: bool) -> Result<()> {
        let mut slice: Value = serde_json::from_str(&slice(service))?;
        slice["kind"] = "EndpointSlice".into();
        slice["apiVersion"] = "discovery.k8s.io/v1".into();
        let endpoint = slice.pointer_mut("/endpoints/7/conditions").context("endpoint 7")?;
        endpoint["ready"] = ready.into();
        endpoint["serving"] = ready.into();
        api.apply(slice).map(drop)
    }
}

fn load(api: &Api, api_version: &str, kind: &str, items: impl Iterator<Item = String>) -> Result<()> {
    let mut list = format!(
        r#"{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{REVISION}"}},"items":["#
    );
    for (index, item) in items.enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = write!(list, "{comma}{item}");
    }
    list.push_str("]}");
    api.load_list(&list)
}

/// The cluster IP of a Service.
pub fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0100 + service)
}

fn uid(of: &str, number: u32) -> String {
    let kind: u32 = of.bytes().map(u32::from).sum();
    format!("{kind:08x}-0000-4000-8000-{number:012x}")
}

fn namespace(service: u32) -> String {
    format!("team-{}", service % 100)
}

fn metadata(namespace: Option<&str>, name: &str, uid: &str, rest: &str) -> String {
    let namespace = namespace.map(|namespace| format!(r#""namespace":"{namespace}","#)).unwrap_or_default();
    format!(
        r#""metadata":{{"name":"{name}",{namespace}"uid":"{uid}","resourceVersion":"{REVISION}","generation":2,"creationTimestamp":"2026-11-20T11:32:52Z",{rest}}}"#
    )
}

fn node(number: u32) -> String {
    let address = Ipv4Addr::from(u32::from(NODE_ADDRESS) + number);
    let pods = Ipv4Addr::from(0x0a80_0000 + (number << 8));
    let zone = number % 3;
    let conditions: Vec<String> = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
        .iter()
        .map(|kind| {
            format!(
                r#"{{"type":"{kind}","status":"False","lastHeartbeatTime":"2026-11-20T11:32:51Z","lastTransitionTime":"2026-11-20T11:32:51Z","reason":"KubeletHasSufficient","message":"kubelet has what it needs of it"}}"#
            )
        })
        .collect();
    let images: Vec<String> = (0..40)
        .map(|image| {
            format!(
                r#"{{"names":["registry.example/team-{image}/application@sha256:{image:064x}","registry.example/team-{image}/application:v1.{image}.0"],"sizeBytes":{}}}"#,
                100_000_000 + image
            )
        })
        .collect();
    let metadata = metadata(
        None,
        &format!("node-{number}"),
        &uid("node", number),
        &format!(
            r#""labels":{{"kubernetes.io/arch":"amd64","kubernetes.io/hostname":"node-{number}","kubernetes.io/os":"linux","topology.kubernetes.io/region":"region-1","topology.kubernetes.io/zone":"zone-{zone}"}},"annotations":{{"node.alpha.kubernetes.io/ttl":"0","sheave.io/accepts":"true"}},"managedFields":[{{"manager":"kubelet","operation":"Update","apiVersion":"v1","time":"2026-11-20T11:32:51Z","fieldsType":"FieldsV1","fieldsV1":{{"f:status":{{"f:allocatable":{{"f:cpu":{{}},"f:memory":{{}}}},"f:capacity":{{"f:cpu":{{}},"f:memory":{{}}}},"f:conditions":{{"k:{{\"type\":\"DiskPressure\"}}":{{"f:lastHeartbeatTime":{{}}}},"k:{{\"type\":\"MemoryPressure\"}}":{{"f:lastHeartbeatTime":{{}}}},"k:{{\"type\":\"PIDPressure\"}}":{{"f:lastHeartbeatTime":{{}}}},"k:{{\"type\":\"Ready\"}}":{{"f:lastHeartbeatTime":{{}}}}}},"f:images":{{}}}}}},"subresource":"status"}}]"#
        ),
    );
    format!(
        r#"{{{metadata},"spec":{{"podCIDR":"{pods}/24","podCIDRs":["{pods}/24"]}},"status":{{"capacity":{{"cpu":"32","memory":"128Gi","pods":"110"}},"allocatable":{{"cpu":"31","memory":"120Gi","pods":"110"}},"conditions":[{}],"addresses":[{{"type":"InternalIP","address":"{address}"}},{{"type":"Hostname","address":"node-{number}"}}],"images":[{}]}}}}"#,
        conditions.join(","),
        images.join(",")
    )
}

fn service(number: u32) -> String {
    let address = cluster_ip(number);
    let metadata = metadata(
        Some(&namespace(number)),
        &format!("service-{number}"),
        &uid("service", number),
        &format!(
            r#""labels":{{"app.kubernetes.io/name":"service-{number}","app.kubernetes.io/managed-by":"Helm"}},"annotations":{{"meta.helm.sh/release-name":"service-{number}","kubectl.kubernetes.io/last-applied-configuration":"{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{\"name\":\"service-{number}\"}},\"spec\":{{\"ports\":[{{\"port\":80,\"targetPort\":8080}}]}}}}"}},"managedFields":[{{"manager":"helm","operation":"Update","apiVersion":"v1","time":"2026-11-20T11:32:51Z","fieldsType":"FieldsV1","fieldsV1":{{"f:metadata":{{"f:annotations":{{".":{{}},"f:meta.helm.sh/release-name":{{}}}},"f:labels":{{".":{{}},"f:app.kubernetes.io/name":{{}}}}}},"f:spec":{{"f:internalTrafficPolicy":{{}},"f:ports":{{".":{{}},"k:{{\"port\":80,\"protocol\":\"TCP\"}}":{{".":{{}},"f:name":{{}},"f:port":{{}},"f:protocol":{{}},"f:targetPort":{{}}}}}},"f:selector":{{}},"f:sessionAffinity":{{}},"f:type":{{}}}}}}}}]"#
        ),
    );
    format!(
        r#"{{{metadata},"spec":{{"ports":[{{"name":"http","protocol":"TCP","port":80,"targetPort":8080}}],"selector":{{"app.kubernetes.io/name":"service-{number}"}},"clusterIP":"{address}","clusterIPs":["{address}"],"type":"ClusterIP","sessionAffinity":"None","ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Cluster"}},"status":{{"loadBalancer":{{}}}}}}"#
    )
}

fn slice(service: u32) -> String {
    let namespace = namespace(service);
    let endpoints: Vec<String> = (0..ENDPOINTS)
        .map(|endpoint| {
            let number = service * ENDPOINTS + endpoint;
            let node = number % NODES;
            let address = Ipv4Addr::from(0x0a80_0001 + (node << 8) + number / NODES);
            format!(
                r#"{{"addresses":["{address}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"targetRef":{{"kind":"Pod","namespace":"{namespace}","name":"service-{service}-7f5c9d8b6-{endpoint:05x}","uid":"{}"}},"nodeName":"node-{node}","zone":"zone-{}"}}"#,
                uid("pod", number),
                node % 3
            )
        })
        .collect();
    let owner = uid("service", service);
    let metadata = metadata(
        Some(&namespace),
        &format!("service-{service}-m2bht"),
        &uid("slice", service),
        &format!(
            r#""generateName":"service-{service}-","labels":{{"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","app.kubernetes.io/name":"service-{service}","kubernetes.io/service-name":"service-{service}"}},"annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"2026-11-20T11:32:56Z"}},"ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"service-{service}","uid":"{owner}","controller":true,"blockOwnerDeletion":true}}],"managedFields":[{{"manager":"kube-controller-manager","operation":"Update","apiVersion":"discovery.k8s.io/v1","time":"2026-11-20T11:32:56Z","fieldsType":"FieldsV1","fieldsV1":{{"f:addressType":{{}},"f:endpoints":{{}},"f:metadata":{{"f:annotations":{{".":{{}},"f:endpoints.kubernetes.io/last-change-trigger-time":{{}}}},"f:generateName":{{}},"f:labels":{{".":{{}},"f:endpointslice.kubernetes.io/managed-by":{{}},"f:kubernetes.io/service-name":{{}}}},"f:ownerReferences":{{".":{{}},"k:{{\"uid\":\"{owner}\"}}":{{}}}}}},"f:ports":{{}}}}}}]"#
        ),
    );
    format!(
        r#"{{{metadata},"addressType":"IPv4","endpoints":[{}],"ports":[{{"name":"http","protocol":"TCP","port":8080}}]}}"#,
        endpoints.join(",")
    )
}

#[cfg(test)]
mod tests {
    use sheave_apiserver::{Api, Options, Resource};

    use super::*;

    #[test]
    fn the_double_takes_it_and_an_endpoint_changes() {
        let api = Api::new(Options::default());
        let population = Population { services: 30 };
        population.load(&api).unwrap();
        for (resource, count) in
            [(Resource::Services, 30), (Resource::EndpointSlices, 30), (Resource::Nodes, 1_000)]
        {
            assert_eq!(api.objects(resource).len(), count, "{resource:?}");
        }
        population.set_ready(&api, 3, false).unwrap();
        let slice = api.object(Resource::EndpointSlices, Some("team-3"), "service-3-m2bht").unwrap();
        assert_eq!(slice["endpoints"][7]["conditions"]["ready"], false);
        assert_eq!(slice["endpoints"][6]["conditions"]["ready"], true);
    }
}
