//! HTTP and pkt-lines by hand: for requests that no decent client would send, and to read answers byte by byte.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// An HTTP answer, its body complete and without chunk framing.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body ended where its framing says; a cut connection leaves false.
    pub complete: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends bytes as they are and reads one answer. An answer that is no HTTP is an error; none at all has status 0.
pub fn raw(address: &str, request: &[u8]) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_nodelay(true)?;
    // A server may answer and close before it has read everything; its answer still counts.
    let _ = stream.write_all(request);
    read_reply(&mut stream, request.starts_with(b"HEAD "))
}

/// Reads one answer from a connection that is closed after it.
pub fn read_reply(stream: &mut TcpStream, no_body: bool) -> std::io::Result<Reply> {
    let mut all = Vec::new();
    let mut chunk = [0u8; 16 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
            // A read with a timeout is not begun again by itself where the machine was stopped for a moment.
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if whole(&all, no_body).is_some_and(|r| r.complete) {
            break;
        }
    }
    if all.is_empty() {
        return Ok(Reply { status: 0, headers: Vec::new(), body: Vec::new(), complete: false });
    }
    let broken = || std::io::Error::other(format!("no HTTP answer: {}", all.escape_ascii()));
    whole(&all, no_body).ok_or_else(broken)
}

fn whole(all: &[u8], no_body: bool) -> Option<Reply> {
    let end = all.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.trim().to_ascii_lowercase(), v.trim().to_owned()))
        .collect();
    let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let rest = &all[end + 4..];
    let (body, complete) = if no_body || status == 204 || status == 304 {
        (Vec::new(), true)
    } else if find("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        dechunk(rest)
    } else if let Some(length) = find("content-length").and_then(|v| v.parse::<usize>().ok()) {
        (rest[..rest.len().min(length)].to_vec(), rest.len() >= length)
    } else {
        (rest.to_vec(), false)
    };
    Some(Reply { status, headers, body, complete })
}

fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(eol) = rest.windows(2).position(|w| w == b"\r\n") else { return (body, false) };
        let size = String::from_utf8_lossy(&rest[..eol]);
        let Ok(size) = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16) else {
            return (body, false);
        };
        rest = &rest[eol + 2..];
        if size == 0 {
            return (body, true);
        }
        if rest.len() < size + 2 {
            body.extend_from_slice(&rest[..rest.len().min(size)]);
            return (body, false);
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

/// A request of one piece with a body, as git sends them.
pub fn post(address: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Reply> {
    let mut head = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    if let Some(service) = path.rsplit('/').next().filter(|s| s.starts_with("git-")) {
        head.push_str(&format!("Content-Type: application/x-{service}-request\r\n"));
        head.push_str(&format!("Accept: application/x-{service}-result\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut all = head.into_bytes();
    all.extend_from_slice(body);
    raw(address, &all)
}

/// A request without a body.
pub fn get(address: &str, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Reply> {
    let mut head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    raw(address, (head + "\r\n").as_bytes())
}

pub const V2: (&str, &str) = ("Git-Protocol", "version=2");

/// A pkt-line.
pub fn pkt(line: &str) -> String {
    format!("{:04x}{line}", line.len() + 4)
}

/// A protocol v2 request: command, capabilities, arguments.
pub fn command(name: &str, capabilities: &[&str], arguments: &[&str]) -> Vec<u8> {
    let mut out = pkt(&format!("command={name}\n"));
    for capability in capabilities {
        out.push_str(&pkt(&format!("{capability}\n")));
    }
    out.push_str("0001");
    for argument in arguments {
        out.push_str(&pkt(&format!("{argument}\n")));
    }
    out.push_str("0000");
    out.into_bytes()
}

/// One packet of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Flush,
    Delim,
    End,
    Data(Vec<u8>),
}

/// Splits an answer into packets; what follows the last whole packet is returned beside them.
pub fn packets(mut body: &[u8]) -> (Vec<Packet>, &[u8]) {
    let mut found = Vec::new();
    while let Some(head) = body.get(..4) {
        let length = std::str::from_utf8(head).ok().and_then(|h| usize::from_str_radix(h, 16).ok());
        let (packet, used) = match length {
            Some(0) => (Packet::Flush, 4),
            Some(1) => (Packet::Delim, 4),
            Some(2) => (Packet::End, 4),
            Some(n) if n >= 4 && body.len() >= n => (Packet::Data(body[4..n].to_vec()), n),
            _ => break,
        };
        found.push(packet);
        body = &body[used..];
    }
    (found, body)
}

/// An upload-pack answer taken apart: the lines before the pack, and the pack without its side band.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    pub lines: Vec<String>,
    pub pack: Vec<u8>,
    /// Text of band 3.
    pub error: String,
}

/// Takes a v2 or v0 upload-pack answer apart. `banded`: the pack comes in side-band packets (always so in v2).
pub fn fetched(body: &[u8], banded: bool) -> Fetched {
    let mut out = Fetched::default();
    let mut rest = body;
    while !rest.is_empty() {
        if rest.starts_with(b"PACK") && !banded {
            out.pack = rest.to_vec();
            return out;
        }
        let (found, _) = packets(&rest[..rest.len().min(4)]);
        let used = match found.first() {
            Some(Packet::Flush) => {
                out.lines.push("0000".into());
                4
            }
            Some(Packet::Delim) => {
                out.lines.push("0001".into());
                4
            }
            Some(Packet::End) => {
                out.lines.push("0002".into());
                4
            }
            _ => {
                let size = std::str::from_utf8(&rest[..rest.len().min(4)]).unwrap_or("");
                let size = usize::from_str_radix(size, 16).unwrap_or(0);
                if size < 4 || rest.len() < size {
                    out.lines.push(format!("!broken: {}", rest[..rest.len().min(40)].escape_ascii()));
                    return out;
                }
                let data = &rest[4..size];
                match data.first() {
                    Some(1) if banded => {
                        out.pack.extend_from_slice(&data[1..]);
                    }
                    Some(2) if banded => {}
                    Some(3) if banded => out.error.push_str(&String::from_utf8_lossy(&data[1..])),
                    _ => out.lines.push(String::from_utf8_lossy(data).trim_end_matches('\n').to_owned()),
                }
                size
            }
        };
        rest = &rest[used..];
    }
    out
}
