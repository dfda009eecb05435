use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Says what it was asked for.
struct Echo;

impl Site for Echo {
    async fn page(&self, path: &str) -> Option<Page> {
        (path != "/nothing").then(|| Page::json(StatusCode::OK, format!("[{path:?}]")))
    }
}

/// The same, for visitors that stay.
struct Lounge;

impl Site for Lounge {
    const USE: Use = Use::OFTEN;

    async fn page(&self, path: &str) -> Option<Page> {
        Echo.page(path).await
    }
}

/// A port that is free, and stays so: outside of the range that the kernel takes ports from for whoever asks for any.
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() * 101 % 20_000;
    (0..20_000)
        .map(|_| 10_000 + (first + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % 20_000)
        .filter_map(|port| u16::try_from(port).ok())
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one of 20,000 ports is free")
}

/// An answer as it comes over the wire: status, head, body.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Asks, as soon as somebody listens there.
pub async fn ask(method: &str, address: SocketAddr, path: &str) -> Answer {
    let exchange = async {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = tokio::time::timeout(Duration::from_secs(10), exchange).await.expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.into() }
}

/// As [`ask`], with GET.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    ask("GET", address, path).await
}

fn serve(address: SocketAddr) -> Server {
    Server::start(&Handle::current(), "test".into(), address, Arc::new(Echo))
}

/// Waits until it is so; `false` after 10 s.
pub async fn eventually(condition: impl Fn() -> bool) -> bool {
    for _ in 0..1000 {
        if condition() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn get_and_head_of_what_there_is() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let _server = serve(address);
    for (method, path, status, body) in [
        ("GET", "/a", 200, "[\"/a\"]"),
        ("GET", "/a?verbose=1", 200, "[\"/a\"]"),
        ("HEAD", "/a", 200, ""),
        ("GET", "/nothing", 404, "404 page not found\n"),
        ("HEAD", "/nothing", 404, ""),
        ("POST", "/a", 405, "GET and HEAD alone\n"),
        ("DELETE", "/nothing", 405, "GET and HEAD alone\n"),
    ] {
        let answer = ask(method, address, path).await;
        assert_eq!((answer.status, &*answer.body), (status, body), "{method} {path}");
        let content_type = if status == 200 { "application/json" } else { "text/plain; charset=utf-8" };
        assert!(answer.head.contains(&format!("content-type: {content_type}")), "{}", answer.head);
    }
    let answer = get(address, "/a").await;
    assert!(answer.head.contains("content-length: 6") && answer.head.contains("nosniff"), "{}", answer.head);
}

#[tokio::test]
async fn a_taken_port_is_a_problem_until_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let server = serve(address);
    assert!(eventually(|| server.problem().is_some()).await);
    let problem = server.problem().unwrap();
    assert!(problem.contains("another program has this port"), "{problem}");
    drop(taken);
    assert_eq!(get(address, "/").await.status, 200);
    assert!(eventually(|| server.problem().is_none()).await);
}

#[tokio::test]
async fn a_dropped_server_gives_its_port_back() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let server = serve(address);
    assert_eq!(get(address, "/").await.status, 200);
    drop(server);
    let free = || std::net::TcpListener::bind(address).is_ok();
    assert!(eventually(free).await);
}

#[tokio::test]
async fn an_unspecified_address_is_all_of_both_families() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return; // No IPv6 here: there is nothing to show.
    }
    for any in ["0.0.0.0", "::"] {
        let port = free_port();
        let _server = serve(SocketAddr::new(any.parse().unwrap(), port));
        for local in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(local.parse().unwrap(), port);
            assert_eq!(get(address, "/").await.status, 200, "{any} at {address}");
        }
    }
}

/// Connects from an address of this host.
async fn connect_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    socket.connect(address).await.unwrap()
}

/// Asks on a connection that stays open; gives whether an answer came.
async fn ask_and_stay(stream: &mut TcpStream) -> bool {
    let exchange = async {
        stream.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        let mut answer = Vec::new();
        while !answer.ends_with(br#"["/a"]"#) {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        io::Result::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(10), exchange).await.expect("an answer or the end").is_ok()
}

#[tokio::test]
async fn whoever_holds_most_connections_makes_room() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let _server = Server::start(&Handle::current(), "test".into(), address, Arc::new(Lounge));
    assert_eq!(get(address, "/").await.status, 200);
    let mut prober = connect_from([127, 0, 0, 2], address).await;
    assert!(ask_and_stay(&mut prober).await);
    let mut greedy = Vec::new();
    for number in 0..2 * MAX_CONNECTIONS {
        let mut stream = connect_from([127, 0, 0, 3], address).await;
        assert!(ask_and_stay(&mut stream).await, "number {number}");
        greedy.push(stream);
    }
    // Others come in, and who was there stays.
    for source in [[127, 0, 0, 2], [127, 0, 0, 4]] {
        assert!(ask_and_stay(&mut connect_from(source, address).await).await, "{source:?}");
    }
    assert!(ask_and_stay(&mut prober).await);
    assert!(!ask_and_stay(&mut greedy[MAX_CONNECTIONS - 1]).await, "more than there may be");
    assert!(ask_and_stay(&mut greedy[2 * MAX_CONNECTIONS - 1]).await, "the newest");
}

#[tokio::test]
async fn a_connection_for_one_request_ends_with_its_answer() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let _server = serve(address);
    assert_eq!(get(address, "/").await.status, 200);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut text = String::new();
    let read = stream.read_to_string(&mut text);
    tokio::time::timeout(Use::ONCE.head, read).await.expect("the end, before a next request is due").unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("connection: close"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_arrive_ends_its_connection() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let _server = serve(address);
    assert_eq!(get(address, "/").await.status, 200);
    for head in ["", "GET / HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let began = tokio::time::Instant::now();
        let mut left = Vec::new();
        stream.read_to_end(&mut left).await.unwrap();
        assert!(began.elapsed() < Use::ONCE.life, "{head:?}: after {:?}", began.elapsed());
        assert!(!String::from_utf8_lossy(&left).starts_with("HTTP/1.1 200"), "{head:?}");
    }
}
