//! Where each HTTP/1 request begins and ends, read strictly, before hyper reads the same bytes.
//!
//! A request is smuggled where two readers in a row cut one stream of bytes differently. hyper is lenient in places (it
//! drops `Content-Length` beside `Transfer-Encoding`, takes bare line feeds, skips what stands behind a chunk's size),
//! so nothing reaches it but requests that can be cut in only one way: RFC 9112 by the letter, without the parts that no
//! Git client uses (obsolete folds, chunk extensions, trailers).
//! Pure: bytes in, verdicts out. Elsewhere: the connection the bytes come from (`wire`), what headers mean (`primary`).

/// The most bytes of a request's head.
pub const MOST_HEAD: usize = 48 << 10;
/// The most header lines of a request.
const MOST_LINES: usize = 100;
/// The most bytes of a request line.
const MOST_LINE: usize = 8 << 10;
/// The method of the request that takes the place of a refused one: no client can send it, since it is refused too.
pub const REFUSED: &str = "REFUSED";

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// The first line is not `METHOD /path HTTP/1.1`.
    #[error("the request line is malformed")]
    RequestLine,
    /// CONNECT, and methods that HTTP does not know.
    #[error("this method is not for Git")]
    Method,
    /// A header line is not `name: value`, or is folded, or has control characters in it.
    #[error("a header line is malformed")]
    HeaderLine,
    /// No `Host`, or several.
    #[error("the request needs exactly one Host header")]
    Host,
    /// `Content-Length` twice or not a number, or `Transfer-Encoding` that is not just `chunked`.
    #[error("the request does not give its length in the one way that HTTP knows")]
    Length,
    /// `Content-Length` and `Transfer-Encoding`.
    #[error("the request gives its length in two ways")]
    TwoLengths,
    /// GET or HEAD with a body.
    #[error("a GET or HEAD request must not have a body")]
    Body,
    /// `Expect` other than `100-continue`.
    #[error("this expectation cannot be met")]
    Expect,
    /// Above [`MOST_HEAD`] or [`MOST_LINES`].
    #[error("the request's headers are too large")]
    TooLarge,
    /// Above [`MOST_LINE`].
    #[error("the request's path is too long")]
    TooLong,
    /// A chunk's size is not a hexadecimal number, or the chunk is not as long as it says.
    #[error("a chunk of the body is malformed")]
    Chunk,
}

impl Bad {
    /// All, for reading one back from its status and place.
    pub const ALL: [Self; 11] = [
        Self::RequestLine,
        Self::Method,
        Self::HeaderLine,
        Self::Host,
        Self::Length,
        Self::TwoLengths,
        Self::Body,
        Self::Expect,
        Self::TooLarge,
        Self::TooLong,
        Self::Chunk,
    ];

    /// The status that says so.
    pub fn status(self) -> u16 {
        match self {
            Self::Expect => 417,
            Self::TooLarge => 431,
            Self::TooLong => 414,
            _ => 400,
        }
    }

    /// The request that hyper gets instead, so that the refusal is answered when its turn comes.
    pub fn stand_in(self) -> Vec<u8> {
        let at = Self::ALL.iter().position(|bad| *bad == self).unwrap_or_default();
        format!("{REFUSED} /{at} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes()
    }

    /// What a stand-in stands for, by its path.
    pub fn of_stand_in(path: &str) -> Self {
        let at = path.strip_prefix('/').and_then(|at| at.parse::<usize>().ok());
        at.and_then(|at| Self::ALL.get(at)).copied().unwrap_or(Self::Method)
    }
}

/// Where in the stream of requests a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before or in a head.
    Head,
    /// In a body with so many bytes left.
    Body(u64),
    /// In a chunk's size: its value so far and its digits.
    Size(u64, u8),
    /// Behind a chunk's size; the chunk has so many bytes.
    SizeEnd(u64),
    /// In a chunk with so many bytes left.
    Chunk(u64),
    /// Behind a chunk, with so many bytes of its line end left.
    ChunkEnd(u8),
    /// Behind the last chunk's size line, with so many bytes of the empty line left.
    LastEnd(u8),
}

/// Reads one connection's requests.
#[derive(Debug)]
pub struct Framing {
    at: At,
    /// Bytes of the head that were already searched for its end.
    searched: usize,
}

/// What is to be done with the bytes at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many bytes from the front are fine.
    Pass(usize),
    /// So many bytes from the front are no request's and are left out.
    Skip(usize),
    /// More bytes are needed.
    More,
}

impl Default for Framing {
    fn default() -> Self {
        Self { at: At::Head, searched: 0 }
    }
}

impl Framing {
    /// Whether the next bytes belong to a head, or to nothing yet.
    pub fn is_in_head(&self) -> bool {
        self.at == At::Head
    }

    /// How many of the next bytes belong to a body and may pass unseen; they are to be told with [`Self::passed`].
    pub fn unseen(&self) -> u64 {
        match self.at {
            At::Body(left) | At::Chunk(left) => left,
            _ => 0,
        }
    }

    /// Counts bytes of a body that passed.
    pub fn passed(&mut self, n: u64) {
        self.at = match self.at {
            At::Body(left) if n >= left => At::Head,
            At::Body(left) => At::Body(left - n),
            At::Chunk(left) if n >= left => At::ChunkEnd(2),
            At::Chunk(left) => At::Chunk(left - n),
            other => other,
        };
    }

    /// Reads on at the front of `bytes`.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Bad> {
        match self.at {
            At::Head => self.head(bytes),
            At::Body(left) | At::Chunk(left) => {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.passed(n as u64);
                Ok(if n == 0 { Step::More } else { Step::Pass(n) })
            }
            _ => {
                let mut n = 0;
                while let Some(byte) = bytes.get(n)
                    && !matches!(self.at, At::Head | At::Body(_) | At::Chunk(_))
                {
                    self.at = between_chunks(self.at, *byte)?;
                    n += 1;
                }
                Ok(if n == 0 { Step::More } else { Step::Pass(n) })
            }
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Step, Bad> {
        // An empty line before a request is to be ignored (RFC 9112, 2.2).
        if bytes.starts_with(b"\r\n") {
            return Ok(Step::Skip(2));
        }
        let from = self.searched.min(bytes.len());
        let end = bytes[from..].windows(4).position(|four| four == b"\r\n\r\n").map(|at| from + at);
        match end {
            Some(end) if end + 4 <= MOST_HEAD => {
                self.searched = 0;
                self.at = read_head(&bytes[..end + 2])?;
                Ok(Step::Pass(end + 4))
            }
            // What can never become a head is refused now, not when its end comes.
            None if bytes.len() < MOST_HEAD => {
                check_lines(bytes, from)?;
                self.searched = bytes.len().saturating_sub(3);
                Ok(Step::More)
            }
            _ if !bytes[..MOST_HEAD.min(bytes.len())].contains(&b'\n') => Err(Bad::TooLong),
            _ => Err(Bad::TooLarge),
        }
    }
}

fn between_chunks(at: At, byte: u8) -> Result<At, Bad> {
    Ok(match (at, byte) {
        (At::Size(size, digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < 15 => {
            let digit = (byte as char).to_digit(16).ok_or(Bad::Chunk)?;
            At::Size(size << 4 | u64::from(digit), digits + 1)
        }
        (At::Size(size, 1..), b'\r') => At::SizeEnd(size),
        (At::SizeEnd(0), b'\n') => At::LastEnd(2),
        (At::SizeEnd(size), b'\n') => At::Chunk(size),
        (At::ChunkEnd(2), b'\r') => At::ChunkEnd(1),
        (At::ChunkEnd(1), b'\n') => At::Size(0, 0),
        (At::LastEnd(2), b'\r') => At::LastEnd(1),
        (At::LastEnd(1), b'\n') => At::Head,
        _ => return Err(Bad::Chunk),
    })
}

/// Refuses line ends that some servers take for others: a line feed alone, a carriage return alone.
fn check_lines(head: &[u8], from: usize) -> Result<(), Bad> {
    let wrong = |at: usize| match head[at] {
        b'\n' => at == 0 || head[at - 1] != b'\r',
        b'\r' => head.get(at + 1).is_some_and(|next| *next != b'\n'),
        b'\t' | b' '.. => false,
        _ => true,
    };
    match (from..head.len()).find(|at| wrong(*at)) {
        Some(at) if head[..at].contains(&b'\n') => Err(Bad::HeaderLine),
        Some(_) => Err(Bad::RequestLine),
        None => Ok(()),
    }
}

/// Reads a whole head, with its last line's end, and says what follows it.
fn read_head(head: &[u8]) -> Result<At, Bad> {
    check_lines(head, 0)?;
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let (method, modern) = request_line(lines.next().unwrap_or_default())?;
    let (mut hosts, mut lengths, mut codings, mut count) = (0, Vec::new(), Vec::new(), 0);
    for line in lines.filter(|line| !line.is_empty()) {
        count += 1;
        let (name, value) = header_line(line)?;
        match name.to_ascii_lowercase().as_slice() {
            b"host" => hosts += 1,
            b"content-length" => lengths.push(value),
            b"transfer-encoding" => codings.push(value),
            b"expect" if !value.eq_ignore_ascii_case(b"100-continue") => return Err(Bad::Expect),
            _ => {}
        }
    }
    if count > MOST_LINES {
        return Err(Bad::TooLarge);
    }
    // HTTP/1.0 knows no Host; two of them two servers may read differently.
    if hosts > 1 || (modern && hosts == 0) {
        return Err(Bad::Host);
    }
    let bodiless = matches!(method, b"GET" | b"HEAD");
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Ok(At::Head),
        ([length], []) => match length_of(length)? {
            0 => Ok(At::Head),
            _ if bodiless => Err(Bad::Body),
            length => Ok(At::Body(length)),
        },
        ([], [coding]) if modern && coding.eq_ignore_ascii_case(b"chunked") => {
            if bodiless {
                Err(Bad::Body)
            } else {
                Ok(At::Size(0, 0))
            }
        }
        ([_, ..], [_, ..]) => Err(Bad::TwoLengths),
        _ => Err(Bad::Length),
    }
}

/// `METHOD target HTTP/1.x`: the method, and whether it is 1.1.
fn request_line(line: &[u8]) -> Result<(&[u8], bool), Bad> {
    if line.len() > MOST_LINE {
        return Err(Bad::TooLong);
    }
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Bad::RequestLine);
    };
    let modern = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err(Bad::RequestLine),
    };
    if method.is_empty() || target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(Bad::RequestLine);
    }
    match method {
        b"GET" | b"HEAD" | b"POST" | b"PUT" | b"DELETE" | b"OPTIONS" | b"PATCH" | b"TRACE" => {
            Ok((method, modern))
        }
        _ => Err(Bad::Method),
    }
}

/// `name: value` (RFC 9110, 5.6.2 and 5.5), the value without the white space around it.
fn header_line(line: &[u8]) -> Result<(&[u8], &[u8]), Bad> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Bad::HeaderLine)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let of_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let of_value = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    if name.is_empty() || !name.iter().all(of_token) || !value.iter().all(of_value) {
        return Err(Bad::HeaderLine);
    }
    let start = value.iter().position(|byte| !b" \t".contains(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !b" \t".contains(byte)).map_or(start, |at| at + 1);
    Ok((name, &value[start..end]))
}

/// Reads `Content-Length`: digits and nothing else.
fn length_of(value: &[u8]) -> Result<u64, Bad> {
    let text = std::str::from_utf8(value).map_err(|_| Bad::Length)?;
    if text.is_empty() || text.len() > 18 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Bad::Length);
    }
    text.parse().map_err(|_| Bad::Length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` in pieces of `size`; gives the lengths of the requests, or the refusal and where it came.
    fn cut(bytes: &[u8], size: usize) -> Result<(Vec<u8>, bool), Bad> {
        let mut framing = Framing::default();
        let (mut held, mut passed) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(size) {
            held.extend_from_slice(piece);
            loop {
                match framing.step(&held)? {
                    Step::Pass(n) => passed.extend(held.drain(..n)),
                    Step::Skip(n) => drop(held.drain(..n)),
                    Step::More => break,
                }
            }
        }
        Ok((passed, framing.at == At::Head && held.is_empty()))
    }

    #[test]
    fn what_clients_send_passes_as_it_is() {
        let whole: [&[u8]; 7] = [
            b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /a?b=c HTTP/1.0\r\n\r\n",
            b"HEAD /a HTTP/1.1\r\nhost:x\r\nContent-Length: 0\r\nX: \xc3\xbc\t y \r\n\r\n",
            b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcPOST /b HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:  Chunked\r\n\r\n3\r\nabc\r\n00a\r\n0123456789\r\n0\r\n\r\n",
            b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\nx",
            b"PUT http://y/a HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n",
        ];
        for bytes in whole {
            for size in [1, 2, 3, 7, 1000] {
                let shown = bytes.escape_ascii();
                assert_eq!(cut(bytes, size), Ok((bytes.to_vec(), true)), "{shown} by {size}");
            }
        }
        let (passed, _) =
            cut(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 5).unwrap();
        assert_eq!(passed.len(), 2 * 27, "an empty line between requests is left out");
    }

    #[test]
    fn what_could_be_cut_in_two_ways_does_not_pass() {
        let cases: [(&[u8], Bad); 51] = [
            (b"Content-Length: 3\r\nTransfer-Encoding: chunked", Bad::TwoLengths),
            (b"Transfer-Encoding: chunked\r\nContent-Length: 3", Bad::TwoLengths),
            (b"Transfer-Encoding: identity\r\nContent-Length: 3", Bad::TwoLengths),
            (b"Content-Length: 3\r\nContent-Length: 3", Bad::Length),
            (b"Content-Length: 3\r\nContent-Length: 4", Bad::Length),
            (b"Content-Length: 3, 3", Bad::Length),
            (b"Content-Length: +3", Bad::Length),
            (b"Content-Length: -3", Bad::Length),
            (b"Content-Length: 0x3", Bad::Length),
            (b"Content-Length: 3 ;", Bad::Length),
            (b"Content-Length: 3.0", Bad::Length),
            (b"Content-Length: 1_0", Bad::Length),
            (b"Content-Length: ", Bad::Length),
            (b"Content-Length: \xd9\xa3", Bad::Length),
            (b"Content-Length: 9999999999999999999999", Bad::Length),
            (b"Content-Length : 3", Bad::HeaderLine),
            (b"Content-Length\t: 3", Bad::HeaderLine),
            (b" Content-Length: 3", Bad::HeaderLine),
            (b"\tContent-Length: 3", Bad::HeaderLine),
            (b"X: a\r\n Content-Length: 3", Bad::HeaderLine),
            (b"X: a\r\n\tb", Bad::HeaderLine),
            (b"Transfer-Encoding: xchunked", Bad::Length),
            (b"Transfer-Encoding: chunked, identity", Bad::Length),
            (b"Transfer-Encoding: identity, chunked", Bad::Length),
            (b"Transfer-Encoding: gzip, chunked", Bad::Length),
            (b"Transfer-Encoding: chunked, chunked", Bad::Length),
            (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Bad::Length),
            (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x", Bad::Length),
            (b"Transfer-Encoding: \x0bchunked", Bad::HeaderLine),
            (b"Transfer-Encoding: chunked\x00", Bad::HeaderLine),
            (b"Transfer-Encoding: \"chunked\"", Bad::Length),
            (b"Transfer-Encoding: chunked;a=b", Bad::Length),
            (b"Transfer-Encoding:", Bad::Length),
            (b"Transfer-Encoding : chunked", Bad::HeaderLine),
            (b"Transfer\xc4\xb1ng: chunked", Bad::HeaderLine),
            (b"X: a\nContent-Length: 3", Bad::HeaderLine),
            (b"X: a\rContent-Length: 3", Bad::HeaderLine),
            (b"X: a\r\r\nContent-Length: 3", Bad::HeaderLine),
            (b"X: a\x00b", Bad::HeaderLine),
            (b"X", Bad::HeaderLine),
            (b": x", Bad::HeaderLine),
            (b"X(: x", Bad::HeaderLine),
            (b"Host: y", Bad::Host),
            (b"Expect: 200-ok", Bad::Expect),
            (b"Content-Length: 3\n", Bad::HeaderLine),
            (b"Content-Length: 3\n\r\n", Bad::HeaderLine),
            (b"Content-Length: 3\r\n\n", Bad::HeaderLine),
            (b"X: a\x7fb", Bad::HeaderLine),
            (b"X Y: a", Bad::HeaderLine),
            (b"{X}: a", Bad::HeaderLine),
            (b"X@: a", Bad::HeaderLine),
        ];
        for (headers, bad) in cases {
            let bytes = [
                b"POST /a HTTP/1.1\r\nHost: x\r\n",
                headers,
                b"\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
            ]
            .concat();
            for size in [1, 5, 1000] {
                assert_eq!(cut(&bytes, size).unwrap_err(), bad, "{} by {size}", headers.escape_ascii());
            }
        }
    }

    #[test]
    fn request_lines_are_read_by_the_letter() {
        let cases: [(&[u8], Bad); 19] = [
            (b"GET  /a HTTP/1.1", Bad::RequestLine),
            (b"GET /a  HTTP/1.1", Bad::RequestLine),
            (b" GET /a HTTP/1.1", Bad::RequestLine),
            (b"GET /a HTTP/1.1 ", Bad::RequestLine),
            (b"GET\t/a HTTP/1.1", Bad::RequestLine),
            (b"GET /a b HTTP/1.1", Bad::RequestLine),
            (b"GET /\xc3\xbc HTTP/1.1", Bad::RequestLine),
            (b"GET /a HTTP/1.2", Bad::RequestLine),
            (b"GET /a HTTP/2.0", Bad::RequestLine),
            (b"GET /a http/1.1", Bad::RequestLine),
            (b"GET /a HTTP/01.1", Bad::RequestLine),
            (b"GET /a", Bad::RequestLine),
            (b"GET", Bad::RequestLine),
            (b"get /a HTTP/1.1", Bad::Method),
            (b"CONNECT a:1 HTTP/1.1", Bad::Method),
            (b"REFUSED /0 HTTP/1.1", Bad::Method),
            (b"G@T /a HTTP/1.1", Bad::Method),
            (b"PRI * HTTP/1.1", Bad::Method),
            (b"GET /a\x01 HTTP/1.1", Bad::RequestLine),
        ];
        for (line, bad) in cases {
            let bytes = [line, b"\r\nHost: x\r\n\r\n"].concat();
            assert_eq!(cut(&bytes, 4).unwrap_err(), bad, "{}", line.escape_ascii());
        }
        assert_eq!(cut(b"GET / HTTP/1.1\r\n\r\n", 3).unwrap_err(), Bad::Host);
        for length in ["Content-Length: 1", "Transfer-Encoding: chunked"] {
            for method in ["GET", "HEAD"] {
                let bytes = format!("{method} / HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n");
                assert_eq!(cut(bytes.as_bytes(), 100).unwrap_err(), Bad::Body);
            }
        }
        let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(cut(old, 100).unwrap_err(), Bad::Length);
    }

    #[test]
    fn chunks_are_read_by_the_letter() {
        let bodies: [&[u8]; 19] = [
            b"\r\n",
            b";\r\n",
            b"3;a=b\r\nabc\r\n0\r\n\r\n",
            b"3 \r\nabc\r\n0\r\n\r\n",
            b" 3\r\nabc\r\n0\r\n\r\n",
            b"3\nabc\r\n0\r\n\r\n",
            b"3\rXabc\r\n0\r\n\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nab\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"3\r\nabc0\r\n\r\n",
            b"0x3\r\nabc\r\n",
            b"+3\r\nabc\r\n",
            b"-1\r\n",
            b"g\r\n",
            b"1000000000000003\r\nabc\r\n0\r\n\r\n",
            b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
            b"0\r\nX: y\r\n\r\n",
            b"0\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        ];
        for body in bodies {
            let bytes = [b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", body].concat();
            for size in [1, 1000] {
                assert_eq!(cut(&bytes, size).unwrap_err(), Bad::Chunk, "{} by {size}", body.escape_ascii());
            }
        }
    }

    #[test]
    fn heads_are_bounded() {
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(MOST_LINES));
        assert_eq!(cut(many.as_bytes(), 1000).unwrap_err(), Bad::TooLarge);
        let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "y".repeat(MOST_HEAD));
        assert_eq!(cut(long.as_bytes(), 1000).unwrap_err(), Bad::TooLarge);
        let path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "y".repeat(MOST_LINE));
        assert_eq!(cut(path.as_bytes(), 1000).unwrap_err(), Bad::TooLong);
        assert_eq!(cut(&b"x".repeat(MOST_HEAD), 1000).unwrap_err(), Bad::TooLong);
        for bad in Bad::ALL {
            let text = String::from_utf8(bad.stand_in()).unwrap();
            assert_eq!(Bad::of_stand_in(text.split(' ').nth(1).unwrap()), bad);
        }
    }

    proptest::proptest! {
        #![proptest_config(crate::seed::cases(256))]

        /// However bytes are cut into pieces, the verdict is the same, and nothing passes but what came.
        #[test]
        fn pieces_change_nothing(
            parts in proptest::collection::vec(proptest::sample::select(vec![
                "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\n", "Content-Length: 5\r\n",
                "Transfer-Encoding: chunked\r\n", "\r\n", "5\r\nabcde\r\n", "0\r\n\r\n", "abcde", "\n", "\r", ":", " ", "a",
            ]), 0..12),
            size in 1usize..20,
        ) {
            let bytes = parts.concat().into_bytes();
            let (whole, pieces) = (cut(&bytes, usize::MAX), cut(&bytes, size));
            proptest::prop_assert_eq!(whole.is_ok(), pieces.is_ok());
        }
    }
}
