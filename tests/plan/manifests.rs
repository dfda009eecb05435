//! A directory of manifests as a source, with real files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sheave::cluster::manifest::{Manifests, watch};
use sheave::cluster::{Event, Object, ObjectKey, Problem, Severity};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n  - port: {port}\n"
    )
}

/// What events come to: Services with their first port, and problems.
#[derive(Default)]
struct Seen {
    services: BTreeMap<String, u16>,
    problems: Vec<Problem>,
    synced: bool,
}

impl Seen {
    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Apply(Object::Service(service)) => {
                    self.services.insert(service.name.name.to_string(), service.ports[0].port);
                }
                Event::Delete(ObjectKey::Service(name)) => {
                    self.services.remove(&*name.name);
                }
                Event::Apply(_) | Event::Delete(_) | Event::Watch(_) | Event::TriggeredAt(_) => {}
                Event::Synced => self.synced = true,
                Event::Problems(problems) => self.problems = problems,
            }
        }
    }

    fn services(&self) -> Vec<(&str, u16)> {
        self.services.iter().map(|(name, port)| (&**name, *port)).collect()
    }

    fn problems(&self, directory: &Path) -> Vec<String> {
        let strip = |problem: &Problem| problem.to_string().replace(&format!("{}/", directory.display()), "");
        self.problems.iter().map(strip).collect()
    }
}

/// A directory that is scanned by hand.
struct Scanned {
    directory: tempfile::TempDir,
    manifests: Manifests,
    seen: Seen,
}

impl Scanned {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manifests = Manifests::new(directory.path());
        Self { directory, manifests, seen: Seen::default() }
    }

    fn write(&mut self, file: &str, text: &str) -> &mut Self {
        fs::write(self.directory.path().join(file), text).unwrap();
        self
    }

    fn remove(&mut self, file: &str) -> &mut Self {
        fs::remove_file(self.directory.path().join(file)).unwrap();
        self
    }

    fn scan(&mut self) -> (Vec<(&str, u16)>, Vec<String>) {
        self.seen.take(self.manifests.scan().unwrap());
        (self.seen.services(), self.seen.problems(self.directory.path()))
    }
}

#[test]
fn the_first_scan_ends_with_synced() {
    let directory = tempfile::tempdir().unwrap();
    let mut manifests = Manifests::new(directory.path());
    assert_eq!(manifests.scan().unwrap(), [Event::Synced]);
    assert_eq!(manifests.scan().unwrap(), []);
}

#[test]
fn what_is_wrong_costs_itself_alone() {
    const PORT: &str = "spec.ports[0].port: 0 is not a port: expected 1 to 65535";
    const PORTS: &str = "spec.ports is missing: a Service has at least one port, unless it is headless";
    const CUT: &str = "it may be cut short here";
    const ELSE: &str = "what else the file said before stays in force";
    let list = |services: &[(&str, u16)]| {
        let item = |(name, port): &(&str, u16)| {
            format!(
                "- kind: Service\n  apiVersion: v1\n  metadata: {{name: {name}}}\n  spec:\n    clusterIP: 10.96.0.1\n    ports:\n    \
                 - port: {port}\n"
            )
        };
        format!("apiVersion: v1\nkind: List\nitems:\n{}", services.iter().map(item).collect::<String>())
    };
    let documents = |services: &[(&str, u16)]| {
        services.iter().map(|(name, port)| service(name, *port) + "---\n").collect::<String>()
    };
    // Cut short in the middle of a Service.
    let cut = |text: &str| text[..text.len() - 12].to_owned();
    let good = [("a", 80), ("b", 81), ("c", 82)];
    let before = documents(&good);
    for (case, before, now, services, problems) in [
        (
            "one of a list",
            &before,
            list(&[("a", 90), ("b", 0), ("c", 92)]),
            vec![("a", 90), ("b", 81), ("c", 92)],
            vec![format!("x.yaml:17: items[1].{PORT}; Service default/b stays as it was")],
        ),
        (
            "one of several documents",
            &before,
            documents(&[("a", 90), ("b", 0), ("c", 92)]),
            vec![("a", 90), ("b", 81), ("c", 92)],
            vec![format!("x.yaml:15: {PORT}; Service default/b stays as it was")],
        ),
        (
            "one that is new",
            &before,
            list(&[("a", 80), ("b", 81), ("d", 0), ("c", 82)]),
            good.to_vec(),
            vec![format!("x.yaml:24: items[2].{PORT}; Service default/d is not used")],
        ),
        (
            "another is gone meanwhile",
            &before,
            list(&[("a", 0), ("b", 91)]),
            vec![("a", 80), ("b", 91)],
            vec![format!("x.yaml:10: items[0].{PORT}; Service default/a stays as it was")],
        ),
        (
            "each is named",
            &String::new(),
            list(&[("a", 0), ("b", 81), ("c", 0)]) + "---\n" + &list(&[("d", 0), ("e", 84)]),
            vec![("b", 81), ("e", 84)],
            vec![
                format!("x.yaml:10: items[0].{PORT}; Service default/a is not used"),
                format!("x.yaml:24: items[2].{PORT}; Service default/c is not used"),
                format!("x.yaml:35: items[0].{PORT}; Service default/d is not used"),
            ],
        ),
        (
            "wrong and right in one file",
            &before,
            documents(&[("a", 0), ("a", 90)]),
            vec![("a", 90)],
            vec![format!("x.yaml:7: {PORT}; Service default/a is in the file once more, and right")],
        ),
        (
            "no YAML: a key that is there twice",
            &before,
            list(&[("a", 90), ("b", 91)]) + "  spec: {}\n---\n" + &service("c", 92),
            vec![("a", 80), ("b", 81), ("c", 92)],
            vec![format!("x.yaml:18: items[1]: duplicate mapping key: spec; {ELSE}")],
        ),
        (
            "one without a name might be any",
            &before,
            list(&[("a", 90)]) + "- kind: Service\n  apiVersion: v1\n  spec: {}\n",
            vec![("a", 90), ("b", 81), ("c", 82)],
            vec![format!("x.yaml:13: items[1]: missing field `metadata`; {ELSE}")],
        ),
        (
            "half of a document",
            &before,
            documents(&[("a", 90)]) + "kind: [",
            vec![("a", 90), ("b", 81), ("c", 82)],
            vec![format!("x.yaml:9: kind: unclosed bracket '['; {ELSE}")],
        ),
        (
            "half of a list, which may look like YAML",
            &before,
            cut(&list(&[("a", 90), ("b", 91), ("c", 92)])),
            vec![("a", 90), ("b", 91), ("c", 82)],
            vec![format!("x.yaml:18: items[2]: {PORTS}; Service default/c stays as it was")],
        ),
        (
            "what comes after the half is not gone",
            &before,
            cut(&list(&[("a", 90)])),
            good.to_vec(),
            vec![format!("x.yaml:4: items[0]: {PORTS}; Service default/a stays as it was; {ELSE}: {CUT}")],
        ),
        (
            "emptied",
            &before,
            String::new(),
            good.to_vec(),
            vec![format!("x.yaml: is empty; delete the file to remove what it said; {ELSE}")],
        ),
        (
            "another kind, as far as one can tell",
            &before,
            "apiVersion: v1\nkind: Serv".into(),
            vec![],
            vec![],
        ),
    ] {
        let mut dir = Scanned::new();
        if !before.is_empty() {
            dir.write("x.yaml", before);
            assert_eq!(dir.scan(), (good.to_vec(), vec![]), "{case}");
        }
        dir.write("x.yaml", &now);
        assert_eq!(dir.scan(), (services.clone(), problems.clone()), "{case}");
        assert!(dir.seen.problems.iter().all(|problem| problem.severity == Severity::Error), "{case}");
        assert_eq!(dir.scan(), (services, problems), "{case}, once more");
        dir.write("x.yaml", &documents(&[("b", 81)]));
        assert_eq!(dir.scan(), (vec![("b", 81)], vec![]), "{case}, mended");
    }
}

#[test]
fn a_list_with_too_much_that_is_wrong_is_left_alone() {
    let mut text = "apiVersion: v1\nkind: ServiceList\nitems:\n".to_owned();
    for number in 0..33 {
        text.push_str(&format!("- {{metadata: {{name: a{number}}}, spec: {{ports: [{{port: 0}}]}}}}\n"));
    }
    let good = "- {metadata: {name: b}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n";
    let mut dir = Scanned::new();
    dir.write("x.yaml", &(text.clone() + good));
    let (services, problems) = dir.scan();
    assert_eq!((services.len(), problems.len()), (0, 34));
    let last = "x.yaml:1: items: more than 32 objects are wrong: nothing of this document is used";
    assert_eq!(problems.last().map(String::as_str), Some(last));
    let few: String = text.lines().take(3 + 32).map(|line| format!("{line}\n")).collect();
    dir.write("x.yaml", &(few + good));
    assert_eq!(dir.scan().0, [("b", 80)]);
    dir.write("x.yaml", &text);
    assert_eq!(dir.scan().0, [("b", 80)], "stays as it was");
}

#[test]
fn files_come_and_go() {
    let mut dir = Scanned::new();
    dir.write("a.yaml", &format!("{}---\n{}", service("a", 80), service("b", 81)));
    dir.write(
        "c.json",
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c"},
        "spec": {"clusterIP": "10.96.0.3", "ports": [{"port": 82}]}}"#,
    );
    dir.write(".hidden.yaml", &service("hidden", 83))
        .write("notes.txt", "none")
        .write("a.yaml~", &service("d", 84));
    assert_eq!(dir.scan(), (vec![("a", 80), ("b", 81), ("c", 82)], vec![]));
    dir.write("a.yaml", &service("b", 81));
    assert_eq!(dir.scan(), (vec![("b", 81), ("c", 82)], vec![]));
    dir.remove("c.json");
    assert_eq!(dir.scan(), (vec![("b", 81)], vec![]));
}

#[test]
fn of_two_files_the_first_has_the_object() {
    let mut dir = Scanned::new();
    dir.write("b.yaml", &service("web", 81));
    assert_eq!(dir.scan(), (vec![("web", 81)], vec![]));
    dir.write("a.yaml", &service("web", 80));
    let warning = "b.yaml: Service default/web is in a.yaml too, which counts";
    assert_eq!(dir.scan(), (vec![("web", 80)], vec![warning.into()]));
    assert_eq!(dir.seen.problems[0].severity, Severity::Warning);
    dir.remove("a.yaml");
    assert_eq!(dir.scan(), (vec![("web", 81)], vec![]));
}

#[test]
fn problems_have_line_and_field() {
    for (text, expected) in [
        ("kind: Service\n  x: 1\n", "x.yaml:2: mapping values are not allowed in this context"),
        ("a: 1\n", "x.yaml:1: kind: missing: every document needs apiVersion and kind"),
        ("# c\n---\n- 1\n", "x.yaml:2: kind: missing: every document needs apiVersion and kind"),
        ("---\n# c\n---\napiVersion: v1\nkind: Service\nspec: {}\n", "x.yaml:6: missing field `metadata`"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  clusterIP: 10.96.0.300\n",
            "x.yaml:5: spec.clusterIP: `10.96.0.300` is not an IP address; Service default/a is not used",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  loadBalancerSourceRanges:\n  - 10.0.0.0/33\n",
            "x.yaml:6: spec.loadBalancerSourceRanges[0]: `10.0.0.0/33` is not a CIDR such as 10.0.0.0/8; Service default/a is not used",
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints:\n\
             - addresses: [10.0.0.1]\n- addresses: [10.0.0.256]\n",
            "x.yaml:7: endpoints[1].addresses[0]: `10.0.0.256` is not an IP address; EndpointSlice default/a is not used",
        ),
        (
            "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n  spec:\n    clusterIP: 10.96.0.1\n    ports:\n",
            "x.yaml:4: items[0]: spec.ports is missing: a Service has at least one port, unless it is headless; \
             Service default/a is not used",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, creationTimestamp: yesterday}\nspec: {}\n",
            "x.yaml:3: metadata.creationTimestamp: `yesterday` is not a UTC time (RFC 3339) such as \
             2026-01-31T12:00:00Z; Service default/a is not used",
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nstatus:\n  addresses:\n  - {type: Hostname, address: '42'}\n\
             \x20 - {type: InternalIP, address: 192.0.2}\n",
            "x.yaml:7: status.addresses[1]: `192.0.2` is not an IP address; Node a is not used",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  type: Loadbalancer\n",
            "x.yaml:5: spec.type: unknown variant `Loadbalancer`, expected one of ClusterIP, NodePort, \
             LoadBalancer, ExternalName; Service default/a is not used",
        ),
    ] {
        let mut dir = Scanned::new();
        dir.write("x.yaml", text);
        assert_eq!(dir.scan().1, [expected], "{text}");
    }
}

#[test]
fn kinds_of_no_interest_may_look_like_anything() {
    let mut dir = Scanned::new();
    dir.write(
        "x.yaml",
        "%YAML 1.2\n---\nkind: Thing\nspec: {ports: none}\nitems: {a: 1}\n---\nkind: Other\nitems: [1, [x], null]\n---\n\
         apiVersion: v1\nkind: ServiceList\nitems:\n- {metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n\
         ---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: theirs}\nspec: {template: {}}\n...\n",
    );
    assert_eq!(dir.scan(), (vec![("a", 80)], vec![]));
}

#[test]
fn what_is_left_out_means_what_the_api_says() {
    let directory = tempfile::tempdir().unwrap();
    let text = "apiVersion: v1\nkind: Node\nmetadata:\n  name: a\n  labels:\n    topology.kubernetes.io/zone: z\n    \
                node.kubernetes.io/exclude-from-external-load-balancers: ''\n---\napiVersion: v1\nkind: Node\nmetadata: \
                {name: b}\nspec: {taints: [{key: k, value: null, effect: null}, {key: l}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: \
                {kubernetes.io/service-name: web}}\naddressType: IPv4\nendpoints:\n- addresses: [10.244.1.1]\n- \
                addresses: [10.244.1.2]\n  conditions: {ready: false, terminating: true}\n";
    fs::write(directory.path().join("a.yaml"), text).unwrap();
    let (mut nodes, mut endpoints) = (Vec::new(), Vec::new());
    for event in Manifests::new(directory.path()).scan().unwrap() {
        match event {
            Event::Apply(Object::Node(node)) => {
                let taints: Vec<String> = node.taints.iter().map(ToString::to_string).collect();
                nodes.push((node.zone.clone(), node.excluded_from_load_balancers, taints.join(" ")));
            }
            Event::Apply(Object::EndpointSlice(slice)) => {
                endpoints.extend(slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)));
            }
            _ => {}
        }
    }
    // In any order.
    nodes.sort();
    assert_eq!(nodes, [(None, false, "k: l:".into()), (Some("z".into()), true, String::new())]);
    assert_eq!(endpoints, [(true, true, false), (false, true, true)]);
}

/// Waits until what was told so far is as expected.
fn wait_for(
    seen: &mut Seen,
    events: &mut UnboundedReceiver<Vec<Event>>,
    what: &str,
    expected: impl Fn(&Seen) -> bool,
) -> Duration {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    while !expected(seen) {
        let left = Duration::from_secs(10).saturating_sub(start.elapsed());
        let next = runtime.block_on(async { tokio::time::timeout(left, events.recv()).await });
        seen.take(
            next.unwrap_or_else(|_| panic!("nothing of this for 10 s: {what}")).expect("still watched"),
        );
    }
    start.elapsed()
}

#[test]
fn a_watched_directory_tells_changes() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("a.yaml"), service("a", 80)).unwrap();
    let (sender, mut events) = unbounded_channel();
    let thread = watch(Manifests::new(directory.path()), sender).unwrap();
    let mut seen = Seen::default();
    wait_for(&mut seen, &mut events, "start", |seen| seen.synced && seen.services() == [("a", 80)]);

    fs::write(file("a.yaml"), service("a", 81)).unwrap();
    let took = wait_for(&mut seen, &mut events, "edit", |seen| seen.services() == [("a", 81)]);
    assert!(took < Duration::from_secs(1), "{took:?}");

    let mut half = fs::File::create(file("a.yaml")).unwrap();
    fs::write(file("z.yaml"), service("z", 90)).unwrap();
    wait_for(&mut seen, &mut events, "another file", |seen| seen.services.contains_key("z"));
    assert_eq!(seen.services(), [("a", 81), ("z", 90)], "a.yaml is empty only because it is being written");
    std::io::Write::write_all(&mut half, service("a", 82).as_bytes()).unwrap();
    drop(half);
    fs::remove_file(file("z.yaml")).unwrap();
    wait_for(&mut seen, &mut events, "closed", |seen| seen.services() == [("a", 82)]);

    fs::write(file(".b.swp"), service("b", 82)).unwrap();
    fs::rename(file(".b.swp"), file("b.yaml")).unwrap();
    wait_for(&mut seen, &mut events, "renamed into place", |seen| seen.services() == [("a", 82), ("b", 82)]);

    fs::write(file("a.yaml"), "kind: [").unwrap();
    wait_for(&mut seen, &mut events, "broken", |seen| !seen.problems.is_empty());
    assert_eq!(seen.services(), [("a", 82), ("b", 82)]);

    fs::remove_file(file("a.yaml")).unwrap();
    wait_for(&mut seen, &mut events, "removed", |seen| {
        seen.services() == [("b", 82)] && seen.problems.is_empty()
    });

    let moved = directory.path().with_extension("moved");
    fs::rename(directory.path(), &moved).unwrap();
    wait_for(&mut seen, &mut events, "directory gone", |seen| !seen.problems.is_empty());
    assert_eq!(seen.services(), [("b", 82)]);
    fs::write(moved.join("c.yaml"), service("c", 83)).unwrap();
    fs::rename(&moved, directory.path()).unwrap();
    wait_for(&mut seen, &mut events, "directory back", |seen| {
        seen.services() == [("b", 82), ("c", 83)] && seen.problems.is_empty()
    });

    drop(events);
    thread.join().expect("ends when nobody listens");
}
