//! The v2 command `object-info`: sizes of objects without the objects.
//!
//! Follows git's `protocol-caps.c` (2.47: an unknown object has no size behind its id).
//! Relies on: nothing. Elsewhere: the frame of the request (`request`), the sizes (`pack`).

use super::args::{BadRequest, RequestLimits, push};
use super::{line, pkt};
use bstr::ByteSlice;
use gix_hash::{Kind as HashKind, ObjectId};

/// The arguments of `object-info`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObjectInfo {
    /// Whether sizes are asked for.
    pub size: bool,
    /// The objects, in order, repeated ones included.
    pub oids: Vec<ObjectId>,
}

impl ObjectInfo {
    /// Takes the argument lines of a request, as `line::text` gives them.
    pub fn parse<'a>(
        args: impl IntoIterator<Item = &'a [u8]>,
        limits: &RequestLimits,
        hash: HashKind,
    ) -> Result<Self, BadRequest> {
        let mut request = Self::default();
        for arg in args {
            if arg == b"size" {
                request.size = true;
                continue;
            }
            let unexpected =
                || BadRequest::Protocol(format!("object-info: unexpected line: '{}'", arg.as_bstr()));
            let hex = arg.strip_prefix(b"oid ").ok_or_else(unexpected)?;
            let bad = || {
                let words = "object-info: protocol error, expected to get oid, not";
                BadRequest::Protocol(format!("{words} '{}'", hex.as_bstr()))
            };
            let (oid, _) = line::oid(hex, hash).ok_or_else(bad)?;
            push(&mut request.oids, oid, "oid", limits.max_oids)?;
        }
        Ok(request)
    }

    /// Appends the argument lines.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if self.size {
            pkt::text(out, "size");
        }
        for oid in &self.oids {
            pkt::text(out, format!("oid {oid}"));
        }
    }

    /// Appends git's answer, flush included; `size` gives the size in bytes of an object that we have.
    pub fn answer(&self, mut size: impl FnMut(&ObjectId) -> Option<u64>, out: &mut Vec<u8>) {
        if self.size && !self.oids.is_empty() {
            pkt::data(out, b"size");
        }
        for oid in &self.oids {
            let text = match (self.size, self.size.then(|| size(oid)).flatten()) {
                (false, _) => oid.to_string(),
                (true, None) => format!("{oid} "),
                (true, Some(size)) => format!("{oid} {size}"),
            };
            pkt::data(out, text.as_bytes());
        }
        out.extend_from_slice(pkt::FLUSH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::refs::tests::oid;

    fn parse(args: &[&str]) -> Result<ObjectInfo, BadRequest> {
        let limits = RequestLimits { max_oids: 2, ..RequestLimits::default() };
        ObjectInfo::parse(args.iter().map(|arg| arg.as_bytes()), &limits, HashKind::Sha1)
    }

    #[test]
    fn reads_and_refuses_as_git_does() {
        let line = format!("oid {}", oid(1));
        let want = ObjectInfo { size: true, oids: vec![oid(1), oid(1)] };
        assert_eq!(parse(&["size", &line, &line]), Ok(want));
        assert!(matches!(parse(&[&line, &line, &line]), Err(BadRequest::TooMany { what: "oid", limit: 2 })));
        assert_eq!(parse(&["type"]).unwrap_err().to_string(), "object-info: unexpected line: 'type'");
        let words = "object-info: protocol error, expected to get oid, not '12'";
        assert_eq!(parse(&["oid 12"]).unwrap_err().to_string(), words);
    }

    #[test]
    fn answers_as_git_does() {
        let answer = |size, oids: &[u8]| {
            let request = ObjectInfo { size, oids: oids.iter().map(|fill| oid(*fill)).collect() };
            let mut out = Vec::new();
            request.answer(|id| (*id == oid(1)).then_some(42), &mut out);
            out.to_str().unwrap().replace(&oid(1).to_string(), "1").replace(&oid(2).to_string(), "2")
        };
        assert_eq!(answer(true, &[1, 2]), "0008size002f1 42002d2 0000");
        assert_eq!(answer(false, &[1]), "002c10000");
        assert_eq!(answer(true, &[]), "0000");
    }
}
