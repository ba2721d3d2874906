//! A client that costs nearly nothing: one request a connection, the answer read, checked for its form and dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::Result;

/// The longest silence of a server.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is asked of a server.
#[derive(Debug, Clone)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// The body of a `git-upload-pack` request; without one it is a GET.
    pub body: Option<Vec<u8>>,
}

/// What came back.
#[derive(Debug, Default)]
pub struct Answer {
    /// Until the first byte of the pack, or of the answer where it has none.
    pub first: Duration,
    pub total: Duration,
    /// Bytes of the body, without HTTP's framing.
    pub bytes: u64,
    pub pack_bytes: u64,
    /// Objects of the pack, as its header counts them.
    pub objects: Option<u32>,
    /// Lines outside of the pack.
    pub lines: u64,
    /// `shallow` lines of the answer.
    pub shallow: Vec<String>,
    /// The head of the HTTP answer, in lower case.
    pub head: String,
}

/// Sends `request` and reads the answer to its end. With `keep`, the pack is kept there.
pub fn ask(address: &str, request: &Request, keep: Option<&mut Vec<u8>>) -> Result<Answer> {
    let start = Instant::now();
    let mut lines = Lines { keep, ..Lines::new(start) };
    let mut first = None;
    let (head, bytes) = http(address, request, &mut |data| {
        first.get_or_insert_with(|| start.elapsed());
        lines.feed(data)
    })?;
    if !lines.ended || lines.left > 0 || lines.head_len > 0 {
        return Err("the answer has no end".into());
    }
    let objects = match lines.in_pack {
        true if lines.pack_bytes < 32 || !lines.pack_head.starts_with(b"PACK\0\0\0\x02") => {
            return Err("the answer is no pack".into());
        }
        true => Some(u32::from_be_bytes(lines.pack_head[8..12].try_into()?)),
        false => None,
    };
    Ok(Answer {
        first: lines.pack_at.or(first).unwrap_or_default(),
        total: start.elapsed(),
        bytes,
        pack_bytes: lines.pack_bytes,
        objects,
        lines: lines.count,
        shallow: lines.shallow,
        head,
    })
}

/// Fetches a page as text.
pub fn page(address: &str, path: &str) -> Result<String> {
    let mut text = Vec::new();
    http(address, &Request { path: path.to_owned(), body: None }, &mut |data| {
        text.extend_from_slice(data);
        Ok(())
    })?;
    Ok(String::from_utf8(text)?)
}

type Feed<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// A request as it is written.
pub fn written(address: &str, request: &Request) -> Vec<u8> {
    let method = if request.body.is_some() { "POST" } else { "GET" };
    let mut sent = format!(
        "{method} {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nGit-Protocol: version=2\r\n\
         User-Agent: git/2.47.3\r\nAccept: */*\r\n",
        request.path
    );
    if let Some(body) = &request.body {
        sent += "Content-Type: application/x-git-upload-pack-request\r\n";
        sent += &format!("Content-Length: {}\r\n", body.len());
    }
    sent += "\r\n";
    let mut sent = sent.into_bytes();
    sent.extend_from_slice(request.body.as_deref().unwrap_or_default());
    sent
}

/// One exchange; gives the head and how many bytes the body had.
fn http(address: &str, request: &Request, feed: Feed) -> Result<(String, u64)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&written(address, request))?;
    let mut from = BufReader::with_capacity(1 << 18, stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head)? == 0 {
            return Err("the server hung up".into());
        }
    }
    head.make_ascii_lowercase();
    if head.split(' ').nth(1) != Some("200") {
        let mut said = String::new();
        let _ = from.take(1000).read_to_string(&mut said);
        return Err(format!("{}: {head}{said}", request.path).into());
    }
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let bytes = if value("transfer-encoding:") == Some("chunked") {
        chunked(&mut from, feed)?
    } else {
        let length = value("content-length:").ok_or("an answer without a length")?.parse()?;
        pass(&mut from, length, feed)?;
        length
    };
    Ok((head, bytes))
}

fn chunked(from: &mut BufReader<TcpStream>, feed: Feed) -> Result<u64> {
    let (mut bytes, mut line) = (0, String::new());
    loop {
        line.clear();
        from.read_line(&mut line)?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(|_| "the answer is cut off")?;
        pass(from, size, feed)?;
        from.read_line(&mut line)?;
        if size == 0 {
            return Ok(bytes);
        }
        bytes += size;
    }
}

fn pass(from: &mut BufReader<TcpStream>, mut left: u64, feed: Feed) -> Result<()> {
    while left > 0 {
        let buffer = from.fill_buf()?;
        if buffer.is_empty() {
            return Err("the answer is cut off".into());
        }
        let n = buffer.len().min(usize::try_from(left)?);
        feed(&buffer[..n])?;
        from.consume(n);
        left -= n as u64;
    }
    Ok(())
}

/// Takes pkt-lines and the side bands apart as they come.
struct Lines<'a> {
    start: Instant,
    head: [u8; 4],
    head_len: usize,
    /// Bytes of the present line that are still to come.
    left: usize,
    band: Option<u8>,
    line: Vec<u8>,
    count: u64,
    shallow: Vec<String>,
    in_pack: bool,
    /// The last line was a flush.
    ended: bool,
    pack_at: Option<Duration>,
    pack_bytes: u64,
    pack_head: Vec<u8>,
    keep: Option<&'a mut Vec<u8>>,
}

impl Lines<'_> {
    fn new(start: Instant) -> Self {
        Lines {
            start,
            head: [0; 4],
            head_len: 0,
            left: 0,
            band: None,
            line: Vec::new(),
            count: 0,
            shallow: Vec::new(),
            in_pack: false,
            ended: false,
            pack_at: None,
            pack_bytes: 0,
            pack_head: Vec::new(),
            keep: None,
        }
    }

    fn feed(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            if self.left == 0 {
                let n = data.len().min(4 - self.head_len);
                self.head[self.head_len..self.head_len + n].copy_from_slice(&data[..n]);
                self.head_len += n;
                data = &data[n..];
                if self.head_len == 4 {
                    self.open()?;
                }
                continue;
            }
            let n = data.len().min(self.left);
            self.left -= n;
            self.take(&data[..n]);
            data = &data[n..];
            if self.left == 0 {
                self.close()?;
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        self.head_len = 0;
        let length = usize::from_str_radix(std::str::from_utf8(&self.head)?, 16)?;
        self.ended = length == 0;
        self.left = length.saturating_sub(4);
        self.band = None;
        self.line.clear();
        Ok(())
    }

    fn take(&mut self, mut data: &[u8]) {
        if !self.in_pack {
            self.line.extend_from_slice(data);
            return;
        }
        if self.band.is_none() {
            self.band = data.first().copied();
            data = &data[1..];
        }
        if self.band != Some(1) {
            self.line.extend_from_slice(data);
        } else if !data.is_empty() {
            self.pack_at.get_or_insert_with(|| self.start.elapsed());
            self.pack_bytes += data.len() as u64;
            let missing = 12 - self.pack_head.len();
            self.pack_head.extend_from_slice(&data[..missing.min(data.len())]);
            if let Some(keep) = &mut self.keep {
                keep.extend_from_slice(data);
            }
        }
    }

    fn close(&mut self) -> Result<()> {
        if self.band == Some(3) || self.line.starts_with(b"ERR ") {
            return Err(String::from_utf8_lossy(&self.line).into_owned().into());
        }
        if !self.in_pack {
            self.count += 1;
            self.in_pack = self.line == b"packfile\n";
            if self.line.starts_with(b"shallow ") {
                self.shallow.push(String::from_utf8_lossy(&self.line[8..]).trim().to_owned());
            }
        }
        Ok(())
    }
}
