//! The object columns of a graph, from the entries of the pack in one pass, piece by piece on several threads.
use bytes::Bytes;
use gix_hash::Kind as HashKind;
use gix_zlib::Inflate;

use super::ordered::ordered;
use super::{BuildError, NONE, Progress};
use crate::pack::delta;
use crate::pack::entry::{self, Header, RawKind};

/// The object columns, each as its section says.
pub(super) struct Entries {
    pub offsets: Vec<u64>,
    pub kinds: Vec<u8>,
    pub raws: Vec<u8>,
    pub header_lens: Vec<u8>,
    pub bases: Vec<u32>,
    pub sizes: Vec<u64>,
    pub entry_sizes: Vec<u64>,
    pub ranks: Vec<u32>,
    pub positions: Vec<u32>,
}

/// Entries that are read at once.
const PIECE: usize = 4096;

/// Reads every entry header, and of deltas the size of their result.
pub(super) fn scan(
    pack: &[u8],
    idx: &gix_pack::index::File<Bytes>,
    hash: HashKind,
    threads: usize,
    progress: &Progress<'_>,
) -> Result<Entries, BuildError> {
    let bad = BuildError::Pack;
    let n = idx.num_objects();
    if entry::parse_pack_header(pack) != Ok(n) {
        return Err(bad("the pack header does not agree with the index"));
    }
    let end = pack.len().saturating_sub(hash.len_in_bytes()) as u64;
    let mut order: Vec<(u64, u32)> = (0..n).map(|rank| (idx.pack_offset_at_index(rank), rank)).collect();
    order.sort_unstable();
    let starts_well = order.first().is_none_or(|&(first, _)| first == entry::PACK_HEADER_LEN as u64);
    let distinct = order.is_sorted_by(|a, b| a.0 < b.0);
    if !starts_well || !distinct || order.last().is_some_and(|&(last, _)| last >= end) {
        return Err(bad("the index names impossible offsets"));
    }
    let count = n as usize;
    let mut entries = Entries {
        offsets: order.iter().map(|&(offset, _)| offset).chain([end]).collect(),
        kinds: Vec::with_capacity(count),
        raws: Vec::with_capacity(count),
        header_lens: Vec::with_capacity(count),
        bases: Vec::with_capacity(count),
        sizes: Vec::with_capacity(count),
        entry_sizes: Vec::with_capacity(count),
        ranks: order.iter().map(|&(_, rank)| rank).collect(),
        positions: vec![0; count],
    };
    for (position, &(_, rank)) in (0u32..).zip(&order) {
        super::set(&mut entries.positions, rank, position);
    }
    drop(order);

    let Entries { offsets, positions, kinds, raws, header_lens, bases, sizes, entry_sizes, .. } =
        &mut entries;
    let reader = Reader { pack, idx, hash, offsets, positions };
    let read = |inflate: &mut Inflate, piece: usize| {
        let start = piece * PIECE;
        (start..count.min(start + PIECE)).map(|position| reader.read(position, inflate)).collect()
    };
    let mut take = |piece: Vec<Row>| {
        for row in piece {
            progress.step(raws.len() as u64, 2 * count as u64, raws.len())?;
            kinds.push(row.kind);
            raws.push(row.raw);
            header_lens.push(row.header_len);
            bases.push(row.base);
            sizes.push(row.size);
            entry_sizes.push(row.entry_size);
        }
        Ok(())
    };
    ordered(threads, count.div_ceil(PIECE), &Inflate::default, &read, &mut take)?;
    resolve_kinds(&mut entries)?;
    Ok(entries)
}

/// What the columns say of one entry.
struct Row {
    /// 0 for a delta.
    kind: u8,
    raw: u8,
    header_len: u8,
    base: u32,
    size: u64,
    entry_size: u64,
}

/// Reads entries, each by itself.
struct Reader<'a> {
    pack: &'a [u8],
    idx: &'a gix_pack::index::File<Bytes>,
    hash: HashKind,
    offsets: &'a [u64],
    positions: &'a [u32],
}

impl Reader<'_> {
    fn read(&self, position: usize, inflate: &mut Inflate) -> Result<Row, BuildError> {
        let bad = BuildError::Pack;
        let (offset, end) = (self.offsets[position], self.offsets[position + 1]);
        let bytes =
            self.pack.get(offset as usize..end as usize).ok_or(bad("an entry is outside the pack"))?;
        let decoded = entry::decode(bytes, self.hash).map_err(|error| bad(error.0))?;
        let (kind, base) = match decoded.header {
            Header::Whole(kind) => (entry::kind_code(kind), NONE),
            Header::OfsDelta { distance } => {
                let at = offset.checked_sub(distance).ok_or(bad("a delta base is outside the pack"))?;
                let base = self.offsets[..position].binary_search(&at);
                (0, base.map_err(|_| bad("a delta base is no entry"))? as u32)
            }
            Header::RefDelta { base } => {
                let rank = self.idx.lookup(base).ok_or(bad("a delta base is not in the pack: it is thin"))?;
                (0, self.positions[rank as usize])
            }
        };
        let raw = decoded.header.raw_kind();
        let size = if raw.is_delta() {
            let zipped = bytes.get(decoded.header_len..).unwrap_or_default();
            let mut front = [0u8; delta::MAX_SIZES_LEN];
            let sizes = delta::inflate_front(inflate, zipped, &mut front).and_then(delta::sizes);
            sizes.map_err(|error| bad(error.0))?.1
        } else {
            decoded.size
        };
        let (header_len, entry_size) = (decoded.header_len as u8, decoded.size);
        Ok(Row { kind, raw: raw as u8, header_len, base, size, entry_size })
    }
}

/// Gives every delta the type of the object at the end of its chain.
fn resolve_kinds(entries: &mut Entries) -> Result<(), BuildError> {
    let mut chain = Vec::new();
    for position in 0..entries.kinds.len() {
        let mut at = position;
        while entries.kinds[at] == 0 {
            chain.push(at);
            if chain.len() > entries.kinds.len() {
                return Err(BuildError::Pack("deltas lean on each other in a circle"));
            }
            at = entries.bases[at] as usize;
        }
        let kind = entries.kinds[at];
        for at in chain.drain(..) {
            entries.kinds[at] = kind;
        }
    }
    debug_assert!(
        entries.raws.iter().zip(&entries.bases).all(|(&raw, &base)| {
            RawKind::from_u8(raw).is_some_and(|raw| raw.is_delta() == (base != NONE))
        })
    );
    Ok(())
}
