//! What is not Git, and the mirror under the primary's own name: pages, uploads, events and WebSockets pass as they are,
//! requests that come back are ended, and the primary is told where clients are.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::git::git;
use crate::node::Setup;
use crate::oracle::mirrored;
use crate::primary::{Primary, Seen};
use crate::wire::{self, Reply};
use crate::world::{SOON, World, eventually};
use crate::{mirror_only, shapes};

/// A host's web side: `/echo…` answers with the request as it came, `/events` with events as they are allowed, `/ws` is a
/// WebSocket that sends everything back, `/long` is a body without a known length.
struct Site {
    url: String,
    address: String,
    /// How many more events may go out.
    events: std::sync::mpsc::Sender<()>,
    /// Bytes of bodies that have arrived.
    arrived: Arc<AtomicUsize>,
}

impl Site {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (events, allowed) = std::sync::mpsc::channel();
        let (allowed, arrived) = (Arc::new(Mutex::new(allowed)), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&arrived);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (allowed, count) = (Arc::clone(&allowed), Arc::clone(&count));
                std::thread::spawn(move || site(stream, &allowed, &count));
            }
        });
        Self { url: format!("http://{address}"), address, events, arrived }
    }
}

/// Serves one request. A connection that breaks is the other side's business.
fn site(
    mut stream: TcpStream,
    allowed: &Mutex<std::sync::mpsc::Receiver<()>>,
    arrived: &AtomicUsize,
) -> std::io::Result<()> {
    // A WebSocket's server reads the head itself.
    let mut head = [0; 16 << 10];
    let seen = stream.peek(&mut head)?;
    if head[..seen].starts_with(b"GET /ws") {
        let Ok(mut socket) = tungstenite::accept(stream) else { return Ok(()) };
        while let Ok(message) = socket.read() {
            let is_end = message.is_close();
            let sent = if is_end { Ok(()) } else { socket.send(message) };
            if is_end || sent.is_err() {
                let _ = socket.flush();
                break;
            }
        }
        return Ok(());
    }
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line)? > 2 {
        head.push_str(&line);
        line.clear();
    }
    let header = |name: &str| {
        let found = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        found.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    let mut body = Vec::new();
    if let Some(length) = header("content-length") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body)?;
    } else if header("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            arrived.fetch_add(size, Ordering::SeqCst);
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    if path == "/events" {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        while allowed.lock().unwrap().recv().is_ok() {
            stream.write_all(b"d\r\ndata: event\n\n\r\n")?;
        }
        return Ok(());
    }
    let mut answer = head.clone().into_bytes();
    answer.extend_from_slice(b"\r\n");
    answer.extend_from_slice(&body);
    let more = "Strict-Transport-Security: max-age=9\r\nSet-Cookie: a=1; Path=/; HttpOnly\r\nSet-Cookie: b=2\r\nLocation: https://git.example.com/next?x=%2F\r\n";
    let status = if path.starts_with("/echo/303") { "303 See Other" } else { "200 OK" };
    let length = answer.len();
    write!(stream, "HTTP/1.1 {status}\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
    if !head.starts_with("HEAD ") {
        stream.write_all(&answer)?;
    }
    Ok(())
}

fn pass(world: &World, primary: &str) -> Setup {
    Setup::new(world, primary).set("other_paths = \"pass\"")
}

fn browser(address: &str, path: &str, more: &[(&str, &str)]) -> Reply {
    let mut headers = vec![("Accept", "text/html,application/xhtml+xml")];
    headers.extend_from_slice(more);
    wire::get(address, path, &headers).expect("an answer")
}

#[test]
fn what_is_not_git_is_sent_to_the_primary_and_nowhere_else() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let node = world.node(&primary);
    let to = |path: &str| format!("{}{path}", primary.url);
    for path in [
        "/team/app",
        "/team/app/archive/main.tar.gz?x=%2F&y=a+b",
        "/api/v4/projects/team%2Fapp",
        "/team/app?go-get=1",
        "//evil.example/x",
        "/@evil.example/",
        "/%5C%5Cevil.example",
        "/raw/%E9%25%C3%BC",
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let text =
                format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", node.address());
            let reply = wire::raw(node.address(), text.as_bytes()).unwrap();
            assert_eq!(reply.status, 307, "{method} {path}: {}", reply.text());
            assert_eq!(reply.header("location"), Some(&*to(path)), "{method} {path}");
        }
    }
    for (path, status) in [
        ("/../x", 400),
        ("/a/%2e%2e/x", 400),
        ("/a\\..\\x", 400),
        ("/a%0d%0aLocation:%20x", 400),
        ("/a%2finfo%2frefs", 400),
        ("/a/info/refs?service=git-evil", 403),
    ] {
        let reply = wire::get(node.address(), path, &[]).unwrap();
        assert_eq!((reply.status, reply.header("location")), (status, None), "{path}");
    }
    let trace = format!("TRACE / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", node.address());
    assert_eq!(wire::raw(node.address(), trace.as_bytes()).unwrap().status, 405);
    assert!(primary.log().is_empty(), "nothing of it reached the primary: {:?}", primary.log());

    // By the primary's own name the way to it would lead here again.
    let own = format!("GET /x HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", primary.address());
    let reply = wire::raw(node.address(), own.as_bytes()).unwrap();
    assert_eq!(reply.status, 508);
    assert!(reply.text().contains("other_paths = \"pass\"") && reply.text().contains("primary_address"));
}

#[test]
fn where_there_is_no_web_side_it_is_said() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let directory = primary.root().to_str().unwrap().to_owned();
    for mode in ["redirect", "pass"] {
        let node = Setup::new(&world, &directory).set(&format!("other_paths = \"{mode}\"")).start();
        let reply = wire::get(node.address(), "/team/app", &[]).unwrap();
        assert_eq!(reply.status, 404, "{mode}");
        assert!(reply.text().contains("directory"), "{}", reply.text());
    }
    let node = Setup::new(&world, &primary.url).set("other_paths = \"refuse\"").start();
    let reply = wire::get(node.address(), "/team/app", &[]).unwrap();
    assert_eq!(reply.status, 404);
    assert!(reply.text().contains("not a path of a git repository"), "{}", reply.text());
    assert!(primary.log().is_empty());
}

#[test]
fn a_browser_at_the_root_is_told_what_this_is() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    for mode in ["redirect", "refuse"] {
        let node = Setup::new(&world, &primary.url).set(&format!("other_paths = \"{mode}\"")).start();
        let page = browser(node.address(), "/", &[]);
        assert_eq!(page.status, 200, "{mode}");
        let line =
            format!("git config --global url.\"http://{}/\".insteadOf {}/", node.address(), primary.url);
        assert!(page.text().replace("&quot;", "\"").contains(&line), "{}", page.text());
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
        assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
        assert!(!page.text().to_lowercase().contains("<script"));
        let odd = "GET / HTTP/1.1\r\nHost: a\"><script>alert(1)</script>\r\nAccept: text/html\r\nConnection: close\r\n\r\n";
        let page = wire::raw(node.address(), odd.as_bytes()).unwrap();
        assert!(!page.text().contains("script"), "{}", page.text());
        assert_eq!(
            wire::get(node.address(), "/", &[]).unwrap().status,
            if mode == "refuse" { 400 } else { 307 }
        );
    }
}

#[test]
fn a_web_side_passes_as_it_is() {
    mirror_only!();
    let (world, site) = (World::new(), Site::start());
    let node = pass(&world, &site.url).start();
    let address = node.address();
    let page = browser(
        address,
        "/echo/a%2Fb//c/%E9?x=%2F&go-get=1",
        &[
            ("Cookie", "session=1; csrf=2"),
            ("Authorization", "Bearer t"),
            ("X-Forwarded-Host", "evil.example"),
            ("X-Forwarded-Proto", "gopher"),
            ("X-Forwarded-For", "198.51.100.1"),
            ("Connection", "x-hop"),
            ("X-Hop", "1"),
        ],
    );
    assert_eq!(page.status, 200, "{}", page.text());
    let echo = page.text();
    assert!(echo.starts_with("GET /echo/a%2Fb//c/%E9?x=%2F&go-get=1 HTTP/1.1\r\n"), "{echo}");
    let lower = echo.to_ascii_lowercase();
    for want in [
        &*format!("\r\nhost: {}\r\n", site.address),
        "\r\ncookie: session=1; csrf=2\r\n",
        "\r\nauthorization: bearer t\r\n",
        "\r\nx-forwarded-for: 127.0.0.1\r\n",
        "\r\nconnection: close\r\n",
    ] {
        assert!(lower.contains(want), "{want}: {lower}");
    }
    for never in ["evil.example", "gopher", "198.51.100.1", "x-hop"] {
        assert!(!lower.contains(never), "{never}: {lower}");
    }
    let cookies: Vec<_> =
        page.headers.iter().filter(|(name, _)| name == "set-cookie").map(|(_, v)| &**v).collect();
    assert_eq!(cookies, ["a=1; Path=/; HttpOnly", "b=2"]);
    assert_eq!(page.header("location"), Some("https://git.example.com/next?x=%2F"));
    assert_eq!(page.header("strict-transport-security"), None, "it is the primary's name's");
    let own = format!("GET /echo HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", site.address);
    let own = wire::raw(address, own.as_bytes()).unwrap();
    assert_eq!(own.header("strict-transport-security"), Some("max-age=9"));
    assert_eq!(browser(address, "/echo/303", &[]).status, 303);
    assert!(
        browser(address, "/", &[]).text().starts_with("GET / HTTP/1.1"),
        "the front page is the primary's"
    );
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let text = format!(
            "{method} /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nhello"
        );
        let reply = wire::raw(address, text.as_bytes()).unwrap().text();
        assert!(reply.starts_with(&format!("{method} /echo ")) && reply.ends_with("hello"), "{reply}");
    }
    let head = wire::raw(address, b"HEAD /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert!(head.status == 200 && head.body.is_empty() && head.header("content-length") != Some("0"));
    assert_eq!(node.metric("packmirror_answers_total", &["reason=\"not-git\""]), 10.0);
}

#[test]
fn bodies_pass_as_streams_in_both_directions() {
    mirror_only!();
    let (world, site) = (World::new(), Site::start());
    let node = pass(&world, &site.url).start();
    let mut up = TcpStream::connect(node.address()).unwrap();
    up.set_read_timeout(Some(SOON)).unwrap();
    write!(up, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        .unwrap();
    for n in 1..=3 {
        up.write_all(b"4\r\nwxyz\r\n").unwrap();
        eventually("a piece at the primary", || (site.arrived.load(Ordering::SeqCst) == 4 * n).then_some(()));
    }
    up.write_all(b"0\r\n\r\n").unwrap();
    assert!(wire::read_reply(&mut up, false).unwrap().text().ends_with("wxyzwxyzwxyz"));

    let mut events = TcpStream::connect(node.address()).unwrap();
    events.set_read_timeout(Some(SOON)).unwrap();
    write!(events, "GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").unwrap();
    let mut seen = String::new();
    for n in 1..=3 {
        site.events.send(()).unwrap();
        while seen.matches("data: event").count() < n {
            let mut piece = [0; 1000];
            let read = events.read(&mut piece).expect("an event before the next one is made");
            seen.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    }
}

/// A WebSocket through the node.
fn websocket(address: &str, path: &str) -> tungstenite::WebSocket<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let (socket, answer) = tungstenite::client(format!("ws://{address}{path}"), stream).expect("a WebSocket");
    assert_eq!(answer.status(), 101);
    socket
}

#[test]
fn a_websocket_passes_in_both_directions_and_ends_with_either_side() {
    mirror_only!();
    let (world, site) = (World::new(), Site::start());
    let mut node = pass(&world, &site.url).start();
    let mut socket = websocket(node.address(), "/ws?x=1");
    for size in [1, 10, 200_000] {
        let text = "GET / HTTP/1.1\r\n\r\n".repeat(size);
        socket.send(tungstenite::Message::text(text.clone())).unwrap();
        assert_eq!(socket.read().unwrap().into_text().unwrap().as_str(), text);
    }
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    // A server that says no to it answers like to any other request, and the connection goes on.
    let mut stream = TcpStream::connect(node.address()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    for _ in 0..2 {
        write!(stream, "GET /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .unwrap();
        let reply = wire::read_reply(&mut stream, false).unwrap();
        assert_eq!(reply.status, 200);
        assert!(reply.text().to_ascii_lowercase().contains("upgrade: websocket"), "{}", reply.text());
    }
    // Other protocols are nobody's to speak past us.
    write!(stream, "GET /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n").unwrap();
    let reply = wire::read_reply(&mut stream, false).unwrap().text().to_ascii_lowercase();
    assert!(!reply.contains("upgrade"), "{reply}");
    // A node that drains does not wait for it.
    let mut socket = websocket(node.address(), "/ws");
    socket.send(tungstenite::Message::text("x")).unwrap();
    socket.read().unwrap();
    node.signal("TERM");
    assert!(socket.read().is_err());
    assert!(node.ended().success());
}

#[test]
fn a_silent_websocket_is_ended() {
    mirror_only!();
    let (world, site) = (World::new(), Site::start());
    let node = pass(&world, &site.url).set("limits.client_timeout = \"1s\"").start();
    let mut socket = websocket(node.address(), "/ws");
    socket.send(tungstenite::Message::text("x")).unwrap();
    assert_eq!(socket.read().unwrap().into_text().unwrap().as_str(), "x");
    assert!(socket.read().is_err(), "it ends, and not by the test's own patience");
    let mut stream = socket.get_ref();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
}

/// What lasts as long as a client wants leaves room for Git.
#[test]
fn what_is_not_git_takes_half_of_the_places_at_most() {
    mirror_only!();
    let (world, site) = (World::new(), Site::start());
    let node = pass(&world, &site.url).set("limits.connections = 4").start();
    let mut open = [websocket(node.address(), "/ws"), websocket(node.address(), "/ws")];
    let busy = wire::get(node.address(), "/echo", &[]).unwrap();
    assert_eq!(busy.status, 503, "{}", busy.text());
    assert_eq!(wire::get(node.address(), "/livez", &[]).unwrap().status, 200);
    open[0].close(None).unwrap();
    eventually("a place that is free again", || {
        (wire::get(node.address(), "/echo", &[]).unwrap().status == 200).then_some(())
    });
}

/// The same as a browser's HTTP/2, whose cookies come in parts.
#[test]
fn a_web_side_passes_in_http2() {
    mirror_only!();
    let (world, site) = (World::new(), Site::start());
    let node = pass(&world, &site.url).start();
    let (status, text) = crate::world::block_on(async {
        let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
        let request =
            client.post(format!("{}/echo?a=b", node.url)).header("cookie", "a=1").header("cookie", "b=2");
        let reply = request.body("body").send().await.unwrap();
        (reply.status(), reply.text().await.unwrap())
    });
    assert_eq!(status, 200);
    let lower = text.to_ascii_lowercase();
    assert!(lower.contains("\r\ncookie: a=1; b=2\r\n") && text.ends_with("body"), "{text}");
}

#[test]
fn the_primary_is_reached_where_its_name_does_not_lead() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = Setup::new(&world, "http://git.example.test")
        .set("insecure_primary = true")
        .set(&format!("primary_address = \"{}\"", primary.address()))
        .set("other_paths = \"pass\"")
        // Which would look the name up itself, and there is none.
        .env("http_proxy", "http://127.0.0.1:9")
        .start();
    let clone = world.clone_of(&node.repo("team/app.git"), "--mirror");
    assert_eq!(git(&clone).run("rev-parse refs/heads/main").line(), repo.oid("refs/heads/main"));
    eventually("the first generation", || world.store.newest("team/app.git"));
    let log = primary.log();
    assert!(log.iter().all(|seen| seen.header("host") == Some("git.example.test")), "{log:?}");
}

/// Passes connections on to an address that is known only later: the primary's name, which leads to a mirror.
struct Name {
    address: String,
    to: Arc<Mutex<String>>,
    connections: Arc<AtomicUsize>,
}

impl Name {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (to, connections) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicUsize::new(0)));
        let (target, count) = (Arc::clone(&to), Arc::clone(&connections));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let Ok(far) = TcpStream::connect(&*target.lock().unwrap()) else { continue };
                for (mut from, mut to) in [
                    (near.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far.try_clone().unwrap(), near.try_clone().unwrap()),
                ] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Self { address, to, connections }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn leads_to(&self, address: &str) {
        *self.to.lock().unwrap() = address.to_owned();
    }
}

const REFS: &str = "/team/app.git/info/refs?service=git-upload-pack";

#[test]
fn a_mirror_that_is_its_own_primary_says_so() {
    mirror_only!();
    let (world, name) = (World::new(), Name::new());
    let node = pass(&world, &name.url()).start();
    name.leads_to(node.address());
    let fetch =
        wire::command("fetch", &["object-format=sha1"], &[&format!("want {}", "1".repeat(40)), "done"]);
    let ask = || {
        [
            wire::get(node.address(), REFS, &[wire::V2]).unwrap(),
            wire::get(node.address(), "/team/app", &[]).unwrap(),
            wire::post(node.address(), "/team/app.git/git-upload-pack", &[wire::V2], &fetch).unwrap(),
            wire::post(node.address(), "/team/app.git/git-receive-pack", &[], b"0000").unwrap(),
        ]
    };
    for reply in ask() {
        assert_eq!(reply.status, 508, "{}", reply.text());
        assert!(reply.text().contains("Set primary_address"), "{}", reply.text());
    }
    assert!(name.connections.load(Ordering::SeqCst) <= 4 + 1, "each came back once");
    let synced = node.command(&["sync", "team/app.git"]);
    synced.must_fail(&["set primary_address"]);
    assert_eq!(wire::get(node.address(), "/readyz", &[]).unwrap().status, 200);
}

#[test]
fn two_mirrors_that_point_at_each_other_say_so() {
    mirror_only!();
    let (world, other_world, to_one, to_two) = (World::new(), World::new(), Name::new(), Name::new());
    let one = pass(&world, &to_two.url()).start();
    let two = pass(&other_world, &to_one.url()).start();
    to_one.leads_to(one.address());
    to_two.leads_to(two.address());
    for node in [&one, &two] {
        let reply = wire::get(node.address(), REFS, &[wire::V2]).unwrap();
        assert_eq!(reply.status, 508, "{}", reply.text());
        assert!(reply.text().contains("Set primary_address"), "{}", reply.text());
    }
    let turns = to_one.connections.load(Ordering::SeqCst) + to_two.connections.load(Ordering::SeqCst);
    assert!(turns <= 4 + 2, "{turns}");
}

/// A mirror of a mirror is no loop, and a client's own tokens end nobody's requests but its own.
#[test]
fn mirrors_in_a_row_are_no_loop_and_forged_tokens_harm_nobody() {
    mirror_only!();
    let (world, other_world, primary) = (World::new(), World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let far = other_world.node(&primary);
    let near = Setup::new(&world, &far.url).start();
    let clone = world.clone_of(&near.repo("team/app.git"), "--mirror");
    assert_eq!(git(&clone).run("rev-parse refs/heads/main").line(), repo.oid("refs/heads/main"));
    let seen = primary.log().into_iter().find(|seen| seen.path.ends_with("/info/refs")).unwrap();
    let hops = seen.header("packmirror-hops").expect("the tokens of both").to_owned();
    assert_eq!(hops.split(", ").count(), 2, "{hops}");
    for _ in 0..3 {
        let forged = [wire::V2, ("Packmirror-Hops", &*hops)];
        assert_eq!(wire::get(near.address(), REFS, &forged).unwrap().status, 508);
        assert_eq!(wire::get(near.address(), REFS, &[wire::V2]).unwrap().status, 200);
    }
    let long = "x, ".repeat(20) + "x";
    assert_eq!(wire::get(near.address(), REFS, &[("Packmirror-Hops", &long)]).unwrap().status, 508);
}

/// Whether the primary is asked whether a client may read.
fn is_for_grant(seen: &Seen) -> bool {
    String::from_utf8_lossy(&seen.body).contains("refs/packmirror/none/")
}

#[test]
fn the_primary_is_told_where_a_client_is_in_all_that_is_asked_for_it() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let setup = Setup::new(&world, &primary.url).set("freshness = \"bounded\"").set("compare_every = \"1h\"");
    let node = setup.clone().set("max_age = \"1h\"").set("grant_ttl = \"0s\"").start();
    mirrored(&world, &node, &repo);
    primary.forget_log();
    world.clone_of(&node.repo("team/app.git"), "");
    let asked =
        |seen: &Seen| is_for_grant(seen) || !seen.header("user-agent").unwrap().contains("packmirror");
    let log: Vec<_> = primary.log().into_iter().filter(asked).collect();
    assert!(log.iter().any(is_for_grant), "{log:?}");
    for seen in &log {
        assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"), "{seen:?}");
    }
    primary.forget_log();
    node.command(&["sync", "team/app.git"]).must();
    let log = primary.log();
    assert!(!log.is_empty() && log.iter().all(|seen| seen.header("x-forwarded-for").is_none()), "{log:?}");

    // What others say of a client counts only where they are trusted.
    let headers = [
        wire::V2,
        ("X-Forwarded-For", "198.51.100.7"),
        ("X-Forwarded-Proto", "https"),
        ("Forwarded", "for=x"),
    ];
    for (trusted, told, scheme) in [
        ("[]", "127.0.0.1", None),
        ("[\"10.0.0.0/8\"]", "127.0.0.1", None),
        ("[\"127.0.0.0/8\"]", "198.51.100.7, 127.0.0.1", Some("https")),
    ] {
        let node = Setup::new(&world, &primary.url).set(&format!("trusted_proxies = {trusted}")).start();
        primary.forget_log();
        assert_eq!(wire::get(node.address(), REFS, &headers).unwrap().status, 200);
        let seen = &primary.log()[0];
        assert_eq!(seen.header("x-forwarded-for"), Some(told), "{trusted}");
        assert_eq!(seen.header("x-forwarded-proto"), scheme, "{trusted}");
        assert_eq!(seen.header("forwarded"), None);
    }
}

/// A primary may let in some addresses only: its yes for one says nothing about another.
#[test]
fn a_grant_is_not_shared_between_addresses() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let node = Setup::new(&world, &primary.url).set("trusted_proxies = [\"127.0.0.1\"]").start();
    mirrored(&world, &node, &repo);
    primary.forget_log();
    primary.fault(crate::primary::Wrong::Status(403, vec![]), |seen| {
        seen.header("x-forwarded-for").is_some_and(|chain| chain.starts_with("203.0.113."))
    });
    let want = format!("want {}", repo.oid("refs/heads/main"));
    let fetch = wire::command("fetch", &["object-format=sha1"], &[&want, "done"]);
    let ask = |from: &str| {
        let headers = [wire::V2, ("X-Forwarded-For", from)];
        wire::post(node.address(), "/team/app.git/git-upload-pack", &headers, &fetch).unwrap()
    };
    assert_eq!(ask("198.51.100.7").status, 200);
    let refused = ask("203.0.113.1");
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert_eq!(ask("198.51.100.7").status, 200);
    assert_eq!(primary.count(is_for_grant), 2, "each address asked once");
}
