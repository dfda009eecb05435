//! What the agent writes to the API server: Events, and its own Node's annotation. Against the double, over TLS.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]

use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use sheave::cluster::{self, ACCEPTS_ANNOTATION, ObjectKey, Place, Problem, ServiceName, Severity};
use sheave::observe::accepts::{self, Accepts};
use sheave::observe::events::{Events, Kind, Notice};
use sheave::plan::{NodePlan, ServicePlan, Warning};
use sheave_apiserver::{Options, Reach, Resource, Server};
use tokio::runtime::Handle;

const LIMIT: Duration = Duration::from_secs(20);

async fn client(server: &Server) -> kube::Client {
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

/// A server with Node node-a and Service shop/web.
fn server() -> Server {
    let server = Server::start(Options::default()).unwrap();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a", "annotations": {"other": "x"}}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"}});
    server.api().apply(node).unwrap();
    server.api().apply(service).unwrap();
    server
}

/// Asks until `done` gives something.
async fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

mod annotation {
    use super::*;

    const BOTH: cluster::Accepts = cluster::Accepts { gue: true };

    fn annotation(server: &Server) -> Option<String> {
        let node = server.api().object(Resource::Nodes, None, "node-a").unwrap();
        Some(node["metadata"]["annotations"][ACCEPTS_ANNOTATION].as_str()?.to_owned())
    }

    /// Tells what is there as the source does, until it is `wanted`.
    async fn kept(server: &Server, accepts: &Accepts, wanted: Option<&str>) {
        eventually(&format!("the annotation as {wanted:?}"), || {
            let seen = annotation(server);
            accepts.saw(Some(seen.as_deref().map(Into::into).as_ref()));
            (seen.as_deref() == wanted).then_some(())
        })
        .await;
    }

    fn write(server: &Server, value: Option<&str>) {
        let mut node = server.api().object(Resource::Nodes, None, "node-a").unwrap();
        node["metadata"]["annotations"][ACCEPTS_ANNOTATION] = value.into();
        server.api().apply(node).unwrap();
    }

    #[tokio::test]
    async fn it_is_there_once_acceptance_stands_and_comes_back() {
        let server = server();
        let mut accepts = Accepts::start(client(&server).await, "node-a", &Handle::current());
        accepts.saw(Some(None));
        accepts.stands(None);
        assert_eq!(annotation(&server), None);
        accepts.stands(Some(BOTH));
        kept(&server, &accepts, Some(BOTH.annotation())).await;
        for other in [None, Some("none")] {
            write(&server, other);
            kept(&server, &accepts, Some(BOTH.annotation())).await;
        }
        let node = server.api().object(Resource::Nodes, None, "node-a").unwrap();
        assert_eq!(node["metadata"]["annotations"]["other"], "x", "others' annotations are left alone");
    }

    #[tokio::test]
    async fn a_server_that_is_away_or_refuses_is_asked_again() {
        let server = server();
        server.api().set_reach(Reach::Refused);
        let mut accepts = Accepts::start(client(&server).await, "node-a", &Handle::current());
        accepts.saw(Some(None));
        accepts.stands(Some(BOTH));
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.api().set_forbidden("patch", "nodes", true);
        server.api().set_reach(Reach::Up);
        eventually("a refused attempt", || {
            let counts = server.api().counts();
            counts.get(&("patch".into(), "nodes".into(), 403)).copied()
        })
        .await;
        server.api().set_forbidden("patch", "nodes", false);
        kept(&server, &accepts, Some(BOTH.annotation())).await;
    }

    #[tokio::test]
    async fn cleanup_takes_it_away() {
        let server = server();
        let client = client(&server).await;
        write(&server, Some(BOTH.annotation()));
        assert_eq!(accepts::remove(&client, "node-a").await, Ok(true));
        assert_eq!(annotation(&server), None);
        assert_eq!(accepts::remove(&client, "node-a").await, Ok(false));
        assert_eq!(accepts::remove(&client, "no-such-node").await, Ok(false));
        server.api().set_reach(Reach::Refused);
        accepts::remove(&client, "node-a").await.unwrap_err();
    }
}

mod events {
    use super::*;

    async fn start(server: &Server, node: &str) -> Events {
        Events::start(client(server).await, node, &Handle::current())
    }

    /// A plan in which Service shop/web has this warning.
    fn plan(message: &str) -> NodePlan {
        let warning = Warning {
            object: "Service shop/web".into(),
            reason: "ExternalIPNotAllowed",
            message: message.into(),
        };
        let mut plan = NodePlan::new("node-a");
        plan.set(&web(), None, Some(ServicePlan { warnings: vec![warning], ..ServicePlan::default() }));
        plan
    }

    fn web() -> ServiceName {
        ServiceName { namespace: "shop".into(), name: "web".into() }
    }

    fn down(message: &str) -> Notice {
        Notice::of_node("node-a", Kind::Warning, "PeerDown", "Peer", message.into())
    }

    /// Lets the agent tell until the Events are so.
    async fn told<T>(
        server: &Server,
        events: &mut Events,
        what: &str,
        done: impl Fn(&[Value]) -> Option<T>,
    ) -> T {
        eventually(what, || {
            events.tick(&foldhash::HashMap::default());
            done(&server.api().objects(Resource::Events))
        })
        .await
    }

    fn one(events: &[Value]) -> Option<Value> {
        assert!(events.len() <= 1, "{events:#?}");
        events.first().cloned()
    }

    fn series_of(count: u64) -> impl Fn(&[Value]) -> Option<Value> {
        move |events| one(events).filter(|event| event["series"]["count"] == count)
    }

    fn count(server: &Server, verb: &str, status: u16) -> u64 {
        server.api().counts().get(&(verb.into(), "events".into(), status)).copied().unwrap_or_default()
    }

    #[tokio::test]
    async fn two_agents_and_a_restart_make_one_event() {
        let server = server();
        let plan = plan("denied");
        let mut agent = start(&server, "node-a").await;
        agent.planned(&plan, [&web()]);
        let event = told(&server, &mut agent, "an Event", one).await;
        assert_eq!(event["metadata"]["namespace"], "shop");
        assert_eq!(event["regarding"]["uid"], "u-1");
        assert_eq!(event["regarding"]["kind"], "Service");
        assert_eq!(event["note"], "denied");
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["reason"], "ExternalIPNotAllowed");
        assert_eq!(event["reportingController"], "sheave.io/agent");
        assert_eq!(event["reportingInstance"], "node-a");
        assert_eq!(event.get("series"), None);

        // One that does not know of the other, and one that has forgotten what it told.
        for node in ["node-b", "node-a"] {
            let patched = count(&server, "patch", 200);
            let mut agent = start(&server, node).await;
            agent.planned(&plan, [&web()]);
            let again =
                |events: &[Value]| (count(&server, "patch", 200) > patched).then(|| one(events)).flatten();
            let event = told(&server, &mut agent, "the Event again", again).await;
            assert_eq!(event["series"]["count"], 2);
            assert_eq!(event["reportingInstance"], "node-a");
        }
    }

    #[tokio::test]
    async fn what_happens_again_is_a_series_even_if_the_event_expired() {
        let server = server();
        let mut agent = start(&server, "node-a").await;
        agent.happened(down("down"));
        let event = told(&server, &mut agent, "an Event", one).await;
        assert_eq!(event["metadata"]["namespace"], "default");
        assert_eq!(event["regarding"]["uid"], "node-a");
        for count in [2, 3] {
            agent.happened(down("down"));
            told(&server, &mut agent, "a series", series_of(count)).await;
        }
        let name = event["metadata"]["name"].as_str().unwrap();
        server.api().delete(Resource::Events, Some("default"), name);
        agent.happened(down("down"));
        told(&server, &mut agent, "a new Event", one).await;
    }

    #[tokio::test]
    async fn what_could_not_be_told_is_told_later() {
        let server = server();
        server.api().set_reach(Reach::Refused);
        let mut agent = start(&server, "node-a").await;
        agent.planned(&plan("denied"), [&web()]);
        for number in 0..3 {
            agent.happened(down(&format!("down {number}")));
        }
        agent.tick(&foldhash::HashMap::default());
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.api().set_reach(Reach::Up);
        let four = |events: &[Value]| (events.len() == 4).then_some(());
        told(&server, &mut agent, "all four", four).await;
    }

    #[tokio::test]
    async fn a_refusal_does_not_hold_up_the_rest() {
        let server = server();
        server.api().set_forbidden("create", "events", true);
        let mut agent = start(&server, "node-a").await;
        agent.happened(down("one"));
        let refused = |_: &[Value]| (count(&server, "create", 403) > 0).then_some(());
        told(&server, &mut agent, "a refusal", refused).await;
        server.api().set_forbidden("create", "events", false);
        agent.happened(down("two"));
        let event = told(&server, &mut agent, "the other", one).await;
        assert_eq!(event["note"], "two");
    }

    #[tokio::test]
    async fn nothing_is_told_of_what_is_gone() {
        let server = server();
        let mut agent = start(&server, "node-a").await;
        server.api().delete(Resource::Services, Some("shop"), "web");
        agent.planned(&plan("denied"), [&web()]);
        let asked = |_: &[Value]| server.api().counts().get(&("get".into(), "services".into(), 404)).copied();
        told(&server, &mut agent, "a question for the Service", asked).await;
        agent.happened(down("down"));
        let event = told(&server, &mut agent, "the other", one).await;
        assert_eq!(event["note"], "down");
    }

    #[tokio::test]
    async fn objects_that_cannot_be_read() {
        let server = server();
        let mut agent = start(&server, "node-a").await;
        let problem = |place| Problem {
            place,
            field: "spec.ports[0].port".into(),
            message: "is 0".into(),
            severity: Severity::Error,
        };
        let problems = [
            problem(Place::Object(ObjectKey::Service(web()))),
            problem(Place::File { path: "web.yaml".into(), line: Some(3) }),
        ];
        agent.problems(&problems);
        let event = told(&server, &mut agent, "an Event", one).await;
        assert_eq!(event["reason"], "InvalidObject");
        assert_eq!(event["note"], "spec.ports[0].port: is 0");
    }

    #[tokio::test]
    async fn a_health_check_node_port_is_every_nodes_own() {
        let server = server();
        let warning = || Warning {
            object: "Service shop/web".into(),
            reason: "FailedToStartServiceHealthcheck",
            message: "the port is taken".into(),
        };
        let mut agents = Vec::new();
        for node in ["node-a", "node-b"] {
            let mut agent = start(&server, node).await;
            agent.node_ports([warning()]);
            agents.push(agent);
        }
        let mut notes = eventually("an Event of each node", || {
            agents.iter_mut().for_each(|agent| {
                agent.tick(
                    &["node-a", "node-b"]
                        .map(|name| (name.into(), cluster::Accepts::default()))
                        .into_iter()
                        .collect(),
                );
            });
            let events = server.api().objects(Resource::Events);
            (events.len() == 2).then_some(events)
        })
        .await;
        notes.sort_by_key(|event| event["note"].to_string());
        assert_eq!(notes[0]["note"], "on node node-a: the port is taken");
        assert_eq!(notes[1]["note"], "on node node-b: the port is taken");
    }
}
