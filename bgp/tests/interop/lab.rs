//! Two network namespaces with a link between them: a daemon in one, this test's thread in the other.

use std::ffi::OsStr;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, fs, process, thread};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::time::Instant;

/// How long anything may take that a daemon has to do.
const LIMIT: Duration = Duration::from_secs(30);

/// Why these tests cannot run here, if they cannot: without root, or without one of `programs`.
pub(crate) fn missing(programs: &[&str]) -> Option<String> {
    let exists = |program: &&&str| {
        let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        path.split(':').any(|directory| Path::new(directory).join(program).exists())
    };
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to make network namespaces".to_owned());
    }
    let program = ["ip"].iter().chain(programs).find(|program| !exists(program))?;
    Some(format!("needs {program} (`integration/lab` installs it)"))
}

/// The namespaces and what runs in them. Dropping it removes all of it.
pub(crate) struct Lab {
    name: String,
    directory: PathBuf,
    program: Vec<String>,
    daemon: Option<Child>,
    /// What runs beside it.
    others: Vec<Child>,
}

fn run(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Lab {
    /// Addresses of the speaker, then of the daemon.
    pub(crate) const V4: [IpAddr; 2] = [ip4(1), ip4(2)];
    /// Likewise.
    pub(crate) const V6: [IpAddr; 2] = [ip6(0xfd00, 1), ip6(0xfd00, 2)];
    /// Likewise.
    pub(crate) const LINK_LOCAL: [IpAddr; 2] = [ip6(0xfe80, 1), ip6(0xfe80, 2)];
    /// A second address at the daemon's end.
    pub(crate) const THIRD: IpAddr = ip4(3);

    pub(crate) fn new() -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sheave-bgp-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = env::temp_dir().join(&name);
        fs::create_dir(&directory).unwrap();
        let lab = Lab { name, directory, program: Vec::new(), daemon: None, others: Vec::new() };
        let (us, peer) = (lab.namespace("us"), lab.namespace("peer"));
        run(&format!("netns add {us}"));
        run(&format!("netns add {peer}"));
        run(&format!("-n {us} link add link0 type veth peer name link0 netns {peer}"));
        for (side, namespace) in [&us, &peer].into_iter().enumerate() {
            let [v4, v6, link_local] = [Lab::V4, Lab::V6, Lab::LINK_LOCAL].map(|addresses| addresses[side]);
            run(&format!("-n {namespace} link set lo up"));
            run(&format!("-n {namespace} addr add {v4}/24 dev link0"));
            run(&format!("-n {namespace} addr add {v6}/64 dev link0 nodad"));
            run(&format!("-n {namespace} addr add {link_local}/64 dev link0 nodad"));
            run(&format!("-n {namespace} link set link0 up"));
        }
        run(&format!("-n {peer} addr add {}/24 dev link0", Lab::THIRD));
        lab
    }

    fn namespace(&self, side: &str) -> String {
        format!("{}-{side}", self.name)
    }

    /// Takes the configured addresses from both ends of the link: what is left are the link-local ones of the kernel's.
    pub(crate) fn unnumber(&self) {
        for (side, namespace) in ["us", "peer"].map(|side| self.namespace(side)).iter().enumerate() {
            run(&format!("-n {namespace} addr flush dev link0 scope global"));
            run(&format!("-n {namespace} addr del {}/64 dev link0", Lab::LINK_LOCAL[side]));
        }
    }

    /// Puts one link-local address of the peer's in place of another.
    pub(crate) fn move_peer(&self, from: IpAddr, to: IpAddr) {
        let peer = self.namespace("peer");
        run(&format!("-n {peer} addr del {from}/64 dev link0"));
        run(&format!("-n {peer} addr add {to}/64 dev link0 nodad"));
    }

    /// Makes every address of the first range one of ours, and of the second one of the daemon's.
    pub(crate) fn route_ranges(&self, ranges: [&str; 2]) {
        for (side, namespace) in ["us", "peer"].map(|side| self.namespace(side)).iter().enumerate() {
            let via = Lab::V4[1 - side];
            run(&format!("-n {namespace} route add local {} dev lo", ranges[side]));
            run(&format!("-n {namespace} route add {} via {via} dev link0", ranges[1 - side]));
        }
    }

    /// Gives our side of the link another IPv4 address.
    pub(crate) fn add_address(&self, address: IpAddr) {
        run(&format!("-n {} addr add {address}/24 dev link0", self.namespace("us")));
    }

    /// Gives the daemon's side other addresses.
    pub(crate) fn add_addresses_at_peer(&self, addresses: [IpAddr; 2]) {
        for address in addresses {
            let (length, option) = if address.is_ipv4() { (24, "") } else { (64, " nodad") };
            run(&format!("-n {} addr replace {address}/{length} dev link0{option}", self.namespace("peer")));
        }
    }

    /// Runs `test` on a thread of its own within the speaker's namespace. The thread ends with it, so that no
    /// other code runs there by mistake.
    pub(crate) fn enter<F: Future<Output = ()>>(self, test: impl FnOnce(Lab) -> F + Send + 'static) {
        let result = thread::spawn(move || {
            self.join("us");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test(self));
        })
        .join();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    fn join(&self, side: &str) {
        let namespace = File::open(Path::new("/run/netns").join(self.namespace(side))).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// What `work` makes of the daemon's namespace: a socket made there stays there.
    pub(crate) fn at_peer<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entered = || {
            self.join("peer");
            work()
        };
        thread::scope(|scope| scope.spawn(entered).join()).unwrap()
    }

    /// Where a file of the daemon's is.
    pub(crate) fn path(&self, file: &str) -> String {
        self.directory.join(file).to_str().unwrap().to_owned()
    }

    /// Writes a file of the daemon's and says where it is.
    pub(crate) fn write(&self, file: &str, text: &str) -> String {
        fs::write(self.directory.join(file), text).unwrap();
        self.path(file)
    }

    /// What is in a file of the daemon's; nothing while there is none.
    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }

    /// Starts the daemon, which must stay in the foreground.
    pub(crate) fn start(&mut self, program: &[&str]) {
        self.program = program.iter().map(|&word| word.to_owned()).collect();
        self.restart();
    }

    /// Kills the daemon if it runs, without a word to its peer, and starts it again.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.daemon = Some(self.spawn(&self.program));
    }

    /// Starts a program that the daemon needs, which must stay in the foreground too.
    pub(crate) fn start_beside(&mut self, program: &[&str]) {
        let child = self.spawn(program);
        self.others.push(child);
    }

    fn spawn(&self, program: &[impl AsRef<OsStr>]) -> Child {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace("peer")])
            .args(program)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        child.unwrap()
    }

    /// Kills the daemon if it runs, without a word to its peer.
    pub(crate) fn kill(&mut self) {
        // `ip netns exec` becomes the daemon, so this is its process.
        if let Some(child) = self.daemon.take() {
            end(child);
        }
    }

    /// Stops the daemon's process and lets it go on. Its kernel still takes connections and acknowledges bytes.
    pub(crate) fn freeze(&self, frozen: bool) {
        let child = self.daemon.as_ref().expect("a daemon was started");
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// What a program answers, beside the daemon.
    pub(crate) fn ask(&self, program: &[&str]) -> String {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace("peer")]).args(program);
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The sum of the counters of both kernels whose names begin so, in a file like `/proc/net/netstat`.
    fn counted(&self, sides: &[&str], file: &str, counters: &str) -> u64 {
        let text = |side: &&str| {
            let command = ["netns", "exec", &self.namespace(side), "cat", file];
            let output = Command::new("ip").args(command).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let sum = |text: String| -> u64 {
            let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
            let columns = rows.chunks(2).flat_map(|pair| pair[0].iter().zip(&pair[1]));
            let named = columns.filter(|(name, _)| name.starts_with(counters));
            named.map(|(_, count)| count.parse::<u64>().unwrap()).sum()
        };
        sides.iter().map(text).map(sum).sum()
    }

    /// How many segments both kernels have dropped, by the counters of that name: `TCPMD5` are those for their signature or
    /// for lack of one, `TCPMinTTLDrop` those from too far away.
    pub(crate) fn dropped(&self, counters: &str) -> u64 {
        self.counted(&["us", "peer"], "/proc/net/netstat", counters)
    }

    /// Whether the daemon takes connections.
    pub(crate) fn daemon_listens(&self) -> bool {
        self.ask(&["ss", "-Hltn", "sport = :179"]).contains("LISTEN")
    }

    /// How many BGP connections the daemon has.
    pub(crate) fn connections(&self) -> usize {
        let filter = ["state", "established", "( sport = :179 or dport = :179 )"];
        self.ask(&[&["ss", "-Htn"][..], &filter].concat()).lines().count()
    }

    /// How many connections the daemon has made to the speaker.
    pub(crate) fn accepted(&self) -> u64 {
        self.counted(&["us"], "/proc/net/snmp", "PassiveOpens")
    }

    /// Waits until `condition` holds; `state` tells what is there if it does not in time.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn() -> bool, state: impl Fn() -> String) {
        let deadline = Instant::now() + LIMIT;
        while !condition() {
            assert!(
                Instant::now() < deadline,
                "waited in vain for: {what}\n{}\nlog:\n{}",
                state(),
                self.read("log")
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill();
        self.others.drain(..).for_each(end);
        for side in ["us", "peer"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(side)])
                .stderr(Stdio::null())
                .status();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

const fn ip4(host: u8) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, host))
}

const fn ip6(net: u16, host: u16) -> IpAddr {
    IpAddr::V6(std::net::Ipv6Addr::new(net, 0, 0, 0, 0, 0, 0, host))
}
