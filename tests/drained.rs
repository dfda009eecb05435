//! The agent's program on a node that drains, against a real kernel: what it keeps, and what it knows of itself when it starts anew.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]

mod namespace;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sheave::observe::status::{self, Status};

use self::namespace::{address, dump, in_namespace, shell};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// `drain.wait`.
const WAIT: Duration = Duration::from_secs(3);
const HEALTH_PORT: u16 = 10256;

/// A node with its agent: node-a of node-a and node-b, and a Service.
struct Running {
    directory: PathBuf,
    agent: Child,
}

impl Running {
    fn begin(directory: &Path, web: &[Value]) -> Self {
        std::fs::create_dir_all(directory.join("manifests")).unwrap();
        let config = format!(
            "router: {{asn: 64512, listen: null}}\ndrain: {{wait: {}s}}\nobserve: {{status: {}, metrics: null, health: '127.0.0.1:{HEALTH_PORT}'}}\n",
            WAIT.as_secs(),
            Self::socket_in(directory).display()
        );
        std::fs::write(directory.join("config.yaml"), config).unwrap();
        Self::write_in(directory, "nodes", &[node("node-a", 1), node("node-b", 2)]);
        Self::write_in(directory, "web", web);
        Self { directory: directory.into(), agent: Self::spawn(directory) }
    }

    fn spawn(directory: &Path) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_sheave"))
            .args(["agent", "--node", "node-a", "--config"])
            .arg(directory.join("config.yaml"))
            .arg("--manifests")
            .arg(directory.join("manifests"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn socket_in(directory: &Path) -> PathBuf {
        directory.join("status.sock")
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.directory.join("manifests").join(format!("{name}.json"))
    }

    fn write(&self, name: &str, objects: &[Value]) {
        Self::write_in(&self.directory, name, objects);
    }

    /// Writes a file of the source whole, as an editor would.
    fn write_in(directory: &Path, name: &str, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let draft = directory.join(name);
        std::fs::write(&draft, list.to_string()).unwrap();
        std::fs::rename(draft, directory.join("manifests").join(format!("{name}.json"))).unwrap();
    }

    fn kill(&mut self) {
        self.agent.kill().unwrap();
        self.agent.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.agent = Self::spawn(&self.directory);
    }

    async fn drain(&self) {
        status::drain(&Self::socket_in(&self.directory), true).await.unwrap();
    }

    /// Its status; `None` while it does not answer.
    async fn status(&self) -> Option<Status> {
        status::ask(&Self::socket_in(&self.directory)).await.ok()
    }

    async fn until(&self, what: &str, is: impl Fn(&Status) -> bool) -> Status {
        let end = Instant::now() + LIMIT;
        loop {
            let status = self.status().await;
            match status {
                Some(status) if is(&status) => return status,
                status => assert!(Instant::now() < end, "{what}: {:?}", status.map(|status| status.drain)),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        if std::thread::panicking() {
            println!("{}", std::fs::read_to_string(self.directory.join("log")).unwrap_or_default());
            println!("{}", dump().join("\n"));
        }
    }
}

fn node(name: &str, last: u8) -> Value {
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "annotations": {"sheave.io/accepts": "ipip"}},
        "spec": {"podCIDRs": [format!("10.244.{last}.0/24")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.1{last}")}]}})
}

/// A Service whose endpoints are on these nodes, by their numbers; those of `unready` are not.
fn web(policy: &str, nodes: &[u8], unready: &[u8]) -> [Value; 2] {
    let endpoint = |number: &u8| {
        let name = ["node-a", "node-b"][usize::from(*number) - 1];
        json!({"addresses": [format!("10.244.{number}.10")], "nodeName": name,
            "conditions": {"ready": !unready.contains(number)}})
    };
    let endpoints: Vec<Value> = nodes.iter().map(endpoint).collect();
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy, "clusterIP": "10.96.0.80",
                "ports": [{"name": "http", "port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}]}}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080}]}),
    ]
}

/// What `/healthz` answers; `None`: nobody does.
fn healthz() -> Option<u16> {
    let mut stream = TcpStream::connect((address("127.0.0.1"), HEALTH_PORT)).ok()?;
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

#[test]
fn an_agent_that_starts_anew_does_not_take_its_node_for_drained_or_serving() {
    in_namespace("drained", async |node| {
        let mut running = Running::begin(&node.settings.state_directory, &web("Cluster", &[1, 2], &[]));
        running.until("ready", |status| status.ready).await;
        let servers = shell("ipvsadm", "-Sn");
        assert_eq!(healthz(), Some(200));
        running.drain().await;
        running.until("emptying", |status| status.drain.phase == "emptying").await;
        assert_eq!(healthz(), Some(503));

        // Without its own Node the source does not count: whose connections there are is not known.
        running.kill();
        std::fs::remove_file(running.manifest("nodes")).unwrap();
        running.start_again();
        running.until("holding", |status| status.holding).await;
        let held = Instant::now();
        while held.elapsed() < 2 * WAIT {
            let status = running.until("an answer", |_| true).await;
            assert!(status.holding && status.drain.phase == "emptying", "{:?}", status.drain);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let unknown = |problem: &String| problem.contains("not known before the source has told all");
        assert!(running.until("an answer", |_| true).await.problems.iter().any(unknown));
        running.write("nodes", &[self::node("node-a", 1), self::node("node-b", 2)]);
        let status = running.until("drained", |status| status.drain.phase == "drained").await;
        assert!(status.ready && !status.problems.iter().any(unknown), "{:?}", status.problems);

        // Its Node is known, and it waits for a file to be mended.
        running.kill();
        std::fs::write(running.manifest("broken"), "{").unwrap();
        running.start_again();
        let began = Instant::now();
        let mut answers = 0;
        while began.elapsed() < Duration::from_secs(4) {
            let answer = healthz();
            assert!(answer.is_none_or(|code| code == 503), "{answer:?} after {:?}", began.elapsed());
            answers += usize::from(answer.is_some());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(answers > 0, "nobody answered");
        assert!(!running.until("an answer", |_| true).await.ready);
        std::fs::remove_file(running.manifest("broken")).unwrap();
        running.until("ready and drained", |status| status.ready && status.drain.phase == "drained").await;
        assert_eq!(healthz(), Some(503));
        assert_eq!(shell("ipvsadm", "-Sn"), servers, "what still comes is forwarded as ever");
    });
}

#[test]
fn a_vip_that_no_other_node_announces_comes_back_with_its_endpoint() {
    in_namespace("kept", async |node| {
        let (here, both) = (&[1][..], &[1, 2][..]);
        let running = Running::begin(&node.settings.state_directory, &web("Local", here, &[]));
        running.until("ready", |status| status.ready).await;
        running.drain().await;
        for (what, nodes, unready, phase, kept) in [
            ("it is kept", here, &[][..], "emptying", 1),
            ("its endpoint is not ready", here, here, "drained", 0),
            ("it is again", here, &[], "emptying", 1),
            ("there is one elsewhere", both, &[], "drained", 0),
        ] {
            running.write("web", &web("Local", nodes, unready));
            let is_so = |status: &Status| status.drain.phase == phase && status.drain.kept.len() == kept;
            let status = running.until(what, is_so).await;
            let service = status.drain.kept.iter().all(|kept| kept.service.as_deref() == Some("default/web"));
            assert!(service, "{what}: {:?}", status.drain);
        }
        // What went does not come back by itself.
        running.write("web", &web("Local", here, &[]));
        let moved = Instant::now();
        while moved.elapsed() < 2 * WAIT {
            let status = running.until("an answer", |_| true).await;
            assert_eq!((&*status.drain.phase, status.drain.kept.len()), ("drained", 0));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}
