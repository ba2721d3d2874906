//! All objects a new layer can see: its own and those below, numbered as in the coming stack.
//!
//! Gids below `base()` are those of the stack below; `base() + position` is an object of the new
//! pack. An object that both hold is known by its gid below.
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId, oid};
use gix_object::Kind;
use gix_zlib::Inflate;

use super::entries::Entries;
use super::{BYTES_PER_STEP, BuildError, Damaged, Link, NONE};
use crate::pack::delta;
use crate::pack::entry::kind_from_code;
use crate::pack::layer::decode;
use crate::pack::lru::ByteLru;
use crate::pack::meter::{Held, Meter};
use crate::pack::{Gid, Scratch, Source, Stack};

/// The largest commit, tree or tag that is read. git hosts refuse far smaller ones.
const MAX_OBJECT: u64 = 1 << 30;

pub(super) struct Objects<'a> {
    pack: &'a [u8],
    idx: gix_pack::index::File<Bytes>,
    hash: HashKind,
    entries: Entries,
    below: Option<(&'a Stack, &'a dyn Source)>,
    base: Gid,
    /// Positions of objects that are below too, with their gid there; sorted.
    dups: Vec<(u32, Gid)>,
    /// Decoded trees of the new pack, for all threads: they walk the same part of the history.
    cache: Mutex<ByteLru<()>>,
    /// How many bytes of trees of the new pack are kept.
    own_cache: usize,
    /// How many bytes of objects below one thread keeps.
    below_cache: usize,
    pub meter: &'a dyn Meter,
}

/// What one thread decodes with.
pub(super) struct Hands {
    inflate: Inflate,
    scratch: Scratch,
}

impl<'a> Objects<'a> {
    pub fn new(
        pack: &'a [u8],
        idx: gix_pack::index::File<Bytes>,
        hash: HashKind,
        entries: Entries,
        below: Option<(&'a Stack, &'a dyn Source)>,
        (cache_bytes, threads): (usize, usize),
        meter: &'a dyn Meter,
    ) -> Result<Self, BuildError> {
        let below = below.filter(|(stack, _)| !stack.is_empty());
        let base = below.map_or(0, |(stack, _)| stack.len());
        let count = entries.kinds.len() as u32;
        base.checked_add(count).filter(|&len| len < NONE).ok_or(Damaged::TooMany)?;
        let mut dups = Vec::new();
        if let Some((stack, _)) = below {
            if stack.hash() != hash {
                return Err(Damaged::Mismatch("object hash of two layers").into());
            }
            for (position, &rank) in (0u32..).zip(&entries.ranks) {
                if let Some(gid) = stack.lookup(idx.oid_at_index(rank)) {
                    dups.push((position, gid));
                }
            }
        }
        // What a push touches is mostly below; a first layer has nothing there.
        let below_cache = if below.is_some() { cache_bytes / 2 } else { 0 };
        let own_cache = cache_bytes - below_cache;
        Ok(Self {
            pack,
            idx,
            hash,
            entries,
            below,
            base,
            dups,
            cache: Mutex::new(ByteLru::new(own_cache / 8)),
            own_cache,
            below_cache: below_cache / threads.max(1),
            meter,
        })
    }

    /// Gives what one more thread decodes with.
    pub fn hands(&self) -> Hands {
        Hands { inflate: Inflate::default(), scratch: Scratch::new(self.below_cache, MAX_OBJECT) }
    }

    fn cached(&self, position: u32) -> Option<Bytes> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(position).map(|(bytes, ())| bytes)
    }

    fn keep(&self, position: u32, bytes: &Bytes) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(position, bytes.clone(), ());
    }

    /// Begins to keep trees. Commits are read once, so while they are read little is kept.
    pub fn keep_trees(&mut self) {
        self.cache = Mutex::new(ByteLru::new(self.own_cache));
    }

    /// Drops what is kept.
    pub fn forget(&mut self) {
        self.cache = Mutex::new(ByteLru::new(0));
    }

    pub fn hash(&self) -> HashKind {
        self.hash
    }

    /// The first gid of the new layer.
    pub fn base(&self) -> Gid {
        self.base
    }

    /// The number of objects in the new pack.
    pub fn len(&self) -> u32 {
        self.entries.kinds.len() as u32
    }

    pub fn below(&self) -> Option<&'a Stack> {
        self.below.map(|(stack, _)| stack)
    }

    pub fn dups(&self) -> &[(u32, Gid)] {
        &self.dups
    }

    pub fn into_entries(self) -> Entries {
        self.entries
    }

    /// The position of a gid in the new pack; `None` for one below.
    pub fn position(&self, gid: Gid) -> Option<u32> {
        gid.checked_sub(self.base)
    }

    /// Positions of all new objects of one type, those held below left out.
    pub fn new_of(&self, kind: Kind) -> Vec<u32> {
        let code = crate::pack::entry::kind_code(kind);
        let of_kind = (0u32..).zip(&self.entries.kinds).filter(|&(_, &have)| have == code);
        of_kind.map(|(position, _)| position).filter(|&position| self.dup(position).is_none()).collect()
    }

    fn dup(&self, position: u32) -> Option<Gid> {
        let at = self.dups.binary_search_by_key(&position, |&(position, _)| position).ok()?;
        self.dups.get(at).map(|&(_, gid)| gid)
    }

    /// Finds an object, here or below.
    pub fn find(&self, oid: &oid) -> Option<Gid> {
        match self.idx.lookup(oid) {
            Some(rank) => {
                let position = *self.entries.positions.get(rank as usize)?;
                Some(self.dup(position).unwrap_or(self.base + position))
            }
            None => self.below()?.lookup(oid),
        }
    }

    /// Finds an object that `needed_by` names, which must have type `kind`.
    pub fn need(&self, oid: &oid, kind: Kind, link: Link, needed_by: Gid) -> Result<Gid, BuildError> {
        let needed_by = || self.oid(needed_by);
        let gid = self.find(oid).ok_or_else(|| BuildError::Missing {
            oid: oid.to_owned(),
            needed_by: needed_by(),
            link,
        })?;
        let found = self.kind(gid);
        if found != kind {
            let oid = oid.to_owned();
            return Err(BuildError::WrongKind { oid, found, expected: kind, needed_by: needed_by() });
        }
        Ok(gid)
    }

    pub fn oid(&self, gid: Gid) -> ObjectId {
        match self.position(gid) {
            Some(position) => match self.entries.ranks.get(position as usize) {
                Some(&rank) => self.idx.oid_at_index(rank).to_owned(),
                None => ObjectId::null(self.hash),
            },
            None => self.below().map_or(ObjectId::null(self.hash), |stack| stack.oid(gid)),
        }
    }

    pub fn kind(&self, gid: Gid) -> Kind {
        match self.position(gid) {
            Some(position) => self
                .entries
                .kinds
                .get(position as usize)
                .and_then(|&code| kind_from_code(code))
                .unwrap_or(Kind::Blob),
            None => self.below().map_or(Kind::Blob, |stack| stack.kind(gid)),
        }
    }

    /// Gives the bytes of an object. Whole chains pass through the cache, as in `decode::object`. What it takes on the
    /// way is held on the meter until it returns; what it gives is the caller's to count.
    pub fn bytes(&self, gid: Gid, hands: &mut Hands) -> Result<Bytes, BuildError> {
        let meter = self.meter;
        let Some(position) = self.position(gid) else {
            let (stack, source) = self.below.ok_or(BuildError::Pack("an object is nowhere"))?;
            // A base, a delta and what they make.
            let _held = Held::new(meter, decode::peak(stack, gid, meter)?)?;
            return Ok(decode::object(stack, source, gid, &mut hands.scratch, meter)?.1);
        };
        let mut chain = Vec::new();
        let mut at = position;
        let mut bytes = loop {
            if let Some(bytes) = self.cached(at) {
                break bytes;
            }
            match self.entries.bases[at as usize] {
                NONE => {
                    let _held = self.hold(at, 0)?;
                    let whole = Bytes::from(self.inflate(at, hands)?);
                    self.keep(at, &whole);
                    break whole;
                }
                base => {
                    chain.push(at);
                    at = base;
                }
            }
        };
        let _chain = Held::new(meter, 4 * chain.len() as u64)?;
        while let Some(at) = chain.pop() {
            let _held = self.hold(at, bytes.len() as u64)?;
            let delta = self.inflate(at, hands)?;
            let size = self.entries.sizes[at as usize];
            bytes = delta::apply(&bytes, &delta, size).map_err(|error| BuildError::Pack(error.0))?.into();
            self.keep(at, &bytes);
        }
        Ok(bytes)
    }

    /// Counts what making the object at `at` of a base of `base` bytes takes.
    fn hold(&self, at: u32, base: u64) -> Result<Held<'a>, BuildError> {
        let (entry, size) = (self.entries.entry_sizes[at as usize], self.entries.sizes[at as usize]);
        let made = if base == 0 { size } else { entry.saturating_add(size) };
        self.meter.step(made / BYTES_PER_STEP + 1)?;
        Ok(Held::new(self.meter, made.saturating_add(base))?)
    }

    /// Inflates the data of one entry of the new pack.
    fn inflate(&self, position: u32, hands: &mut Hands) -> Result<Vec<u8>, BuildError> {
        let at = position as usize;
        let size = self.entries.entry_sizes[at];
        if size > MAX_OBJECT || self.entries.sizes[at] > MAX_OBJECT {
            return Err(BuildError::Pack("a commit, tree or tag exceeds 1 GiB"));
        }
        let start = self.entries.offsets[at] + u64::from(self.entries.header_lens[at]);
        let zipped = self.pack.get(start as usize..self.entries.offsets[at + 1] as usize);
        let zipped = zipped.ok_or(BuildError::Pack("an entry is outside the pack"))?;
        delta::inflate(&mut hands.inflate, zipped, size as usize).map_err(|error| BuildError::Pack(error.0))
    }
}
