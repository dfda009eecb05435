//! Two network namespaces with a link between them: BIRD in one, this test's thread in the other.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, fs, process, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::time::Instant;

/// How long anything may take that BIRD has to do.
const LIMIT: Duration = Duration::from_secs(30);

/// Why these tests cannot run here, if they cannot.
pub(crate) fn missing() -> Option<&'static str> {
    let runs = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
        output.is_ok_and(|status| status.success())
    };
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to make network namespaces");
    }
    if !runs("bird", "--version") || !runs("ip", "-V") {
        return Some("needs BIRD 2 and iproute2 (Debian packages bird2, iproute2)");
    }
    None
}

/// The namespaces and what runs in them. Dropping it removes all of it.
pub(crate) struct Lab {
    name: String,
    directory: PathBuf,
    bird: Option<Child>,
}

fn run(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Lab {
    /// Addresses of the speaker, then of BIRD.
    pub(crate) const V4: [IpAddr; 2] = [ip4(1), ip4(2)];
    /// Likewise.
    pub(crate) const V6: [IpAddr; 2] = [ip6(0xfd00, 1), ip6(0xfd00, 2)];
    /// Likewise.
    pub(crate) const LINK_LOCAL: [IpAddr; 2] = [ip6(0xfe80, 1), ip6(0xfe80, 2)];

    pub(crate) fn new() -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sheave-bgp-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = env::temp_dir().join(&name);
        fs::create_dir(&directory).unwrap();
        let lab = Lab { name, directory, bird: None };
        let (us, bird) = (lab.namespace("us"), lab.namespace("bird"));
        run(&format!("netns add {us}"));
        run(&format!("netns add {bird}"));
        run(&format!("-n {us} link add link0 type veth peer name link0 netns {bird}"));
        for (side, namespace) in [&us, &bird].into_iter().enumerate() {
            let [v4, v6, link_local] = [Lab::V4, Lab::V6, Lab::LINK_LOCAL].map(|addresses| addresses[side]);
            run(&format!("-n {namespace} link set lo up"));
            run(&format!("-n {namespace} addr add {v4}/24 dev link0"));
            run(&format!("-n {namespace} addr add {v6}/64 dev link0 nodad"));
            run(&format!("-n {namespace} addr add {link_local}/64 dev link0 nodad"));
            run(&format!("-n {namespace} link set link0 up"));
        }
        lab
    }

    fn namespace(&self, side: &str) -> String {
        format!("{}-{side}", self.name)
    }

    /// Gives a side of the link, `us` or `bird`, another IPv4 address.
    pub(crate) fn add_address(&self, side: &str, address: IpAddr) {
        run(&format!("-n {} addr add {address}/24 dev link0", self.namespace(side)));
    }

    /// Runs `test` on a thread of its own within the speaker's namespace. The thread ends with it, so that no
    /// other code runs there by mistake.
    pub(crate) fn enter<F: Future<Output = ()>>(mut self, test: impl FnOnce(Lab) -> F + Send + 'static) {
        let path = Path::new("/run/netns").join(self.namespace("us"));
        self.bird = None;
        let result = thread::spawn(move || {
            let namespace = File::open(path).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test(self));
        })
        .join();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    /// Starts BIRD with one BGP protocol called `peer`, to which `options` are added.
    pub(crate) fn start_bird(
        &mut self,
        local: IpAddr,
        local_asn: u32,
        peer: IpAddr,
        peer_asn: u32,
        options: &str,
    ) {
        let config = format!(
            "log stderr all;
             router id 10.0.0.2;
             protocol device {{ }}
             protocol direct {{ ipv4; ipv6; }}
             protocol static {{ ipv4; route 198.51.100.0/24 blackhole; route 203.0.113.0/24 blackhole; }}
             protocol bgp peer {{
                 local {local} as {local_asn};
                 neighbor {peer} as {peer_asn};
                 hold time 9;
                 graceful restart on;
                 connect delay time 1; connect retry time 1; error wait time 1, 2;
                 ipv4 {{ import all; export where source = RTS_STATIC; extended next hop on; }};
                 ipv6 {{ import all; export none; }};
                 {options}
             }}"
        );
        fs::write(self.directory.join("bird.conf"), config).unwrap();
        self.restart_bird();
    }

    /// Kills BIRD if it runs, without a word to its peer, and starts it again.
    pub(crate) fn restart_bird(&mut self) {
        self.kill_bird();
        let log = File::create(self.directory.join("bird.log")).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace("bird"), "bird", "-f", "-c"])
            .arg(self.directory.join("bird.conf"))
            .arg("-s")
            .arg(self.directory.join("bird.ctl"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.bird = Some(child.unwrap());
    }

    fn kill_bird(&mut self) {
        // `ip netns exec` becomes BIRD, so this is its process.
        if let Some(mut child) = self.bird.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What `birdc` answers.
    pub(crate) fn birdc(&self, command: &str) -> String {
        let mut birdc = Command::new("birdc");
        birdc.arg("-s").arg(self.directory.join("bird.ctl")).args(command.split_whitespace());
        let output = birdc.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// How many segments both kernels have dropped, by the counters of that name: `TCPMD5` are those for their signature or
    /// for lack of one, `TCPMinTTLDrop` those from too far away.
    pub(crate) fn dropped(&self, counters: &str) -> u64 {
        let netstat = |side| {
            let output = Command::new("ip")
                .args(["netns", "exec", &self.namespace(side), "cat", "/proc/net/netstat"])
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let refused = |text: String| -> u64 {
            let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
            let columns = rows.chunks(2).flat_map(|pair| pair[0].iter().zip(&pair[1]));
            let named = columns.filter(|(name, _)| name.starts_with(counters));
            named.map(|(_, count)| count.parse::<u64>().unwrap()).sum()
        };
        ["us", "bird"].map(netstat).map(refused).into_iter().sum()
    }

    /// Waits until BIRD has logged that.
    pub(crate) async fn wait_for_log(&self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let log = fs::read_to_string(self.directory.join("bird.log")).unwrap_or_default();
            if log.contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "BIRD's log: expected {text}, got\n{log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until BIRD's answer to `command` has all of `parts`.
    pub(crate) async fn wait_for(&self, command: &str, parts: &[&str]) {
        self.wait(command, |answer| parts.iter().all(|part| answer.contains(part)), &format!("{parts:?}"))
            .await;
    }

    /// Waits until BIRD's answer to `command` is as `wanted` says, which `description` puts into words.
    pub(crate) async fn wait(&self, command: &str, wanted: impl Fn(&str) -> bool, description: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.birdc(command);
            if wanted(&answer) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{command}: expected {description}, got\n{answer}\n{}\n{}",
                self.birdc("show protocols all peer"),
                fs::read_to_string(self.directory.join("bird.log")).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill_bird();
        for side in ["us", "bird"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(side)])
                .stderr(Stdio::null())
                .status();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

const fn ip4(host: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, host))
}

const fn ip6(net: u16, host: u16) -> IpAddr {
    IpAddr::V6(std::net::Ipv6Addr::new(net, 0, 0, 0, 0, 0, 0, host))
}
