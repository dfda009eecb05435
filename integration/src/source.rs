//! Where the agents hear of the cluster: a directory of manifests, or an API server.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sheave_apiserver::{Api, Options, Resource, Server};

use crate::cluster::{Manifests, NAMESPACE, Service, node_object};
use crate::fabric::addresses::{self, Family, NODE_ASN};
use crate::fabric::{LEAVES, Node};
use crate::netns::NetNs;
use crate::wait::await_some;

/// What the agents are told, and how.
pub enum Source {
    /// A directory of manifests; each node's peers are in its config.
    Manifests(Manifests),
    /// An API server; peers are in annotations of the Nodes, and the agents write there too.
    Api(Rc<ApiServer>),
}

impl Source {
    /// Writes or replaces a Service with its EndpointSlices.
    pub fn apply(&self, service: &Service) -> Result<()> {
        match self {
            Self::Manifests(manifests) => manifests.apply(service),
            Self::Api(server) => server.apply(service),
        }
    }

    /// Removes a Service and its EndpointSlices.
    pub fn remove(&self, service: &Service) -> Result<()> {
        match self {
            Self::Manifests(manifests) => manifests.remove(service),
            Self::Api(server) => server.remove(service),
        }
    }

    /// Changes a Node.
    pub fn change_node(&self, node: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        match self {
            Self::Manifests(manifests) => manifests.change_node(node, change),
            Self::Api(server) => server.change_node(node, change),
        }
    }

    /// Tells an agent where it is.
    pub fn tell(&self, agent: &mut Command) {
        match self {
            Self::Manifests(manifests) => agent.arg("--manifests").arg(manifests.dir()),
            Self::Api(server) => agent.arg("--kubeconfig").arg(server.kubeconfig()),
        };
    }

    /// The manifests; an error where there are none.
    pub fn manifests(&self) -> Result<&Manifests> {
        match self {
            Self::Manifests(manifests) => Ok(manifests),
            Self::Api(_) => anyhow::bail!("this lab has an API server, not manifests"),
        }
    }

    /// The API server; an error where there is none.
    pub fn server(&self) -> Result<Rc<ApiServer>> {
        match self {
            Self::Api(server) => Ok(server.clone()),
            Self::Manifests(_) => anyhow::bail!("this lab has manifests, not an API server"),
        }
    }
}

/// An API server on a host of the fabric.
pub struct ApiServer {
    server: Server,
    kubeconfig: PathBuf,
}

/// Its port.
const PORT: u16 = 6443;

impl ApiServer {
    /// Starts it in namespace `ns`, on `address`, with the Nodes and their peers. The kubeconfig is written into `dir`.
    pub fn start(ns: &NetNs, address: IpAddr, nodes: &[Node], dir: &Path) -> Result<Self> {
        let ns = ns.clone();
        let bind = move || {
            ns.enter(|| TcpListener::bind(SocketAddr::new(address, PORT))).map_err(std::io::Error::other)?
        };
        let server = Server::bind(Options::default(), Box::new(bind))?;
        let kubeconfig = dir.join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig()).with_context(|| kubeconfig.display().to_string())?;
        for node in nodes {
            let asn = NODE_ASN.to_string();
            let peers = peers(node, |_| true);
            let annotations = [("sheave.io/asn", asn.as_str()), (PEERS, peers.as_str())];
            server.api().apply(node_object(node, &annotations.into()))?;
        }
        Ok(Self { server, kubeconfig })
    }

    /// How to reach it, and as whom.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// What it serves, and how it is harmed.
    pub fn api(&self) -> &Api {
        self.server.api()
    }

    /// Writes or replaces a Service with its EndpointSlices.
    pub fn apply(&self, service: &Service) -> Result<()> {
        service.objects().into_iter().try_for_each(|object| self.api().apply(object).map(drop))
    }

    /// Removes a Service and its EndpointSlices.
    pub fn remove(&self, service: &Service) -> Result<()> {
        for object in service.objects() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
            let resource = Resource::of(&api_version, &kind).with_context(|| kind.clone())?;
            self.api().delete(resource, Some(NAMESPACE), &text(&object["metadata"]["name"]));
        }
        Ok(())
    }

    /// An annotation of a Node.
    pub fn annotation(&self, node: &str, key: &str) -> Option<String> {
        let node = self.api().object(Resource::Nodes, None, node)?;
        Some(node["metadata"]["annotations"][key].as_str()?.to_owned())
    }

    /// Sets an annotation of a Node, or takes it away.
    pub fn annotate(&self, node: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.change_node(node, |object| {
            let annotations = &mut object["metadata"]["annotations"];
            match value {
                Some(value) => annotations[key] = value.into(),
                None => drop(annotations.as_object_mut().map(|annotations| annotations.remove(key))),
            }
        })
    }

    /// Changes a Node.
    pub fn change_node(&self, node: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut object = self.api().object(Resource::Nodes, None, node).with_context(|| node.to_owned())?;
        change(&mut object);
        self.api().apply(object).map(drop)
    }

    /// Waits until a Node has an annotation of that value (`None`: has it not).
    pub fn await_annotation(
        &self,
        limit: Duration,
        node: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        await_some(limit, &format!("annotation {key} of {node}"), || {
            let seen = self.annotation(node, key);
            if seen.as_deref() == value { Ok(()) } else { Err(format!("{seen:?}, not {value:?}")) }
        })
    }

    /// The Events that agents have posted about an object (kind and name) for a reason.
    pub fn events(&self, kind: &str, name: &str, reason: &str) -> Vec<Value> {
        let mut events = self.api().objects(Resource::Events);
        events.retain(|event| {
            let regarding = &event["regarding"];
            regarding["kind"] == kind && regarding["name"] == name && event["reason"] == reason
        });
        events
    }
}

/// Annotation with a Node's BGP peers.
pub const PEERS: &str = "sheave.io/peers";

/// The value of [`PEERS`] for a node: a session of each family with each leaf (by number) that is `wanted`.
pub fn peers(node: &Node, wanted: impl Fn(u8) -> bool) -> String {
    let lines = (1..=LEAVES).filter(|leaf| wanted(*leaf)).flat_map(|leaf| {
        Family::BOTH.map(|family| {
            let peer = json!({
                "address": addresses::leaf_link(family, leaf, node.number),
                "asn": addresses::leaf_asn(leaf),
                "families": [family.to_string().to_lowercase()],
            });
            format!("- {peer}\n")
        })
    });
    lines.collect()
}
