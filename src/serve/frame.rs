//! How pack bytes are framed for a client: side-band packets, or nothing around them.

use bytes::Bytes;

use crate::git::pkt;

/// How pack bytes are framed for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Side-band packets of at most so many payload bytes.
    Band(usize),
    /// The bare pack, as clients without side-band want it.
    Bare,
}

/// The piece of an answer that is being filled.
#[derive(Debug)]
pub struct Frame {
    framing: Framing,
    piece: Vec<u8>,
    /// Where the last packet of pack bytes starts in `piece`, if more of them belong to it.
    open: Option<usize>,
    /// Pack bytes framed so far, those of earlier pieces included.
    pub framed: u64,
}

impl Frame {
    /// An empty piece.
    pub fn new(framing: Framing) -> Self {
        Self { framing, piece: Vec::new(), open: None, framed: 0 }
    }

    /// Appends bytes of the pack.
    pub fn pack(&mut self, bytes: &[u8]) {
        match self.framing {
            Framing::Band(max) => pkt::extend_band(&mut self.piece, &mut self.open, 1, bytes, max),
            Framing::Bare => self.piece.extend_from_slice(bytes),
        }
        self.framed += bytes.len() as u64;
    }

    /// Appends a line for the client's user, on band 2.
    pub fn progress(&mut self, line: &str) {
        self.message(2, line);
    }

    /// Appends the message that ends a pack before its end, on band 3; clients print it and fail.
    pub fn fatal(&mut self, line: &str) {
        self.message(3, line);
    }

    fn message(&mut self, band: u8, line: &str) {
        if let Framing::Band(max) = self.framing {
            self.open = None;
            pkt::band(&mut self.piece, band, line.as_bytes(), max);
        }
    }

    /// Appends bytes outside the framing: section headers before the pack.
    pub fn plain(&mut self, bytes: &[u8]) {
        self.open = None;
        self.piece.extend_from_slice(bytes);
    }

    /// Ends the section, where there is a framing to end.
    pub fn end(&mut self) {
        if self.framing != Framing::Bare {
            self.plain(pkt::FLUSH);
        }
    }

    /// How the pack is framed.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Bytes of the piece so far.
    pub fn len(&self) -> usize {
        self.piece.len()
    }

    /// Says whether nothing was appended since the last piece.
    pub fn is_empty(&self) -> bool {
        self.piece.is_empty()
    }

    /// Makes room for a piece of about `bytes`.
    pub fn reserve(&mut self, bytes: usize) {
        // A packet header in 64 KiB, and what closes the section.
        self.piece.reserve_exact((bytes + bytes / 64).saturating_sub(self.piece.len()));
    }

    /// Gives the piece away and begins the next.
    pub fn take(&mut self) -> Bytes {
        self.open = None;
        std::mem::take(&mut self.piece).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_bytes_are_framed_and_sections_are_not() {
        let mut frame = Frame::new(Framing::Band(999));
        frame.plain(b"000dpackfile\n");
        frame.pack(b"PA");
        frame.pack(b"CK");
        frame.progress("on\n");
        frame.pack(b"x");
        assert_eq!(frame.take(), &b"000dpackfile\n0009\x01PACK0008\x02on\n0006\x01x"[..]);
        frame.pack(b"y");
        frame.end();
        assert_eq!(frame.take(), &b"0006\x01y0000"[..], "a piece holds whole packets");
        assert_eq!(frame.framed, 6);
    }

    #[test]
    fn a_bare_pack_is_nothing_but_the_pack() {
        let mut frame = Frame::new(Framing::Bare);
        frame.progress("on\n");
        frame.pack(b"PACK");
        frame.fatal("off\n");
        frame.end();
        assert_eq!(frame.take(), "PACK");
    }
}
