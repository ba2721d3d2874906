//! From packs to layers to packs: a repository of two layers is made of the input, indexed as a sync does, its graphs
//! are built, and what a client would get is compared with a plain walk over the objects.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};
use gix_object::Kind;

use crate::pack::entry::{self, Header};
use crate::pack::filter::trees::TreeLimits;
use crate::pack::layer::graph::{BuildInput, build};
use crate::pack::layer::{decode, encode};
use crate::pack::meter::Unlimited;
use crate::pack::object::{TreeEntries, commit, tag};
use crate::pack::plan::select::{Query, SelectLimits, select};
use crate::pack::{Gid, Layer, PlanOptions, Reach, Scratch, Source, Stack, plan, write};
use crate::{byte, hash};

/// Objects in one input; their numbers are single bytes.
const MOST: usize = 32;

/// The objects of the input, as whoever made the packs knows them.
struct World {
    hash: HashKind,
    /// Each object with the layer it came in.
    objects: Vec<(ObjectId, Kind, Vec<u8>)>,
    layers: Vec<Packing>,
}

/// A pack under construction.
#[derive(Default)]
struct Packing {
    entries: Vec<u8>,
    /// Number of the object, where its entry starts.
    places: Vec<(usize, usize)>,
    tips: Vec<ObjectId>,
}

struct Packs(Vec<Bytes>);

impl Source for Packs {
    fn read(&self, layer: usize, range: std::ops::Range<u64>) -> std::io::Result<Bytes> {
        let bounds = range.start as usize..range.end as usize;
        let pack = self.0.get(layer).filter(|pack| bounds.end <= pack.len() && bounds.start <= bounds.end);
        pack.map(|pack| pack.slice(bounds)).ok_or_else(|| std::io::Error::other("out of bounds"))
    }
}

/// One target: the first byte chooses the hash and how the client asks, then come the objects.
pub fn run(mut data: &[u8]) {
    let Some(choice) = byte(&mut data) else { return };
    let mut world = World { hash: hash(choice), objects: Vec::new(), layers: vec![Packing::default()] };
    while world.take(&mut data).is_some() {}
    let Some((stack, packs)) = world.open() else { return };
    world.decodes(&stack, &packs);
    for ofs_delta in [choice & 2 == 0, choice & 2 != 0] {
        world.answers(&stack, &packs, PlanOptions { ofs_delta, thin: choice & 4 != 0 }, choice);
    }
}

impl World {
    /// Reads one object: what it is, its length, its bytes, in which bytes above ASCII stand for ids.
    fn take(&mut self, data: &mut &[u8]) -> Option<()> {
        let what = byte(data)?;
        if what == 0xff && self.layers.len() < 2 {
            self.layers.push(Packing::default());
            return Some(());
        }
        if self.objects.len() == MOST {
            return None;
        }
        let length = usize::from(byte(data)?).min(data.len());
        let (raw, rest) = data.split_at(length);
        *data = rest;
        let mut text = Vec::new();
        for &byte in raw {
            match (byte, self.objects.get(usize::from(byte & 0x1f))) {
                (0x80..=0x9f, Some((id, ..))) => text.extend_from_slice(id.as_slice()),
                (0xa0..=0xbf, Some((id, ..))) => text.extend_from_slice(id.to_string().as_bytes()),
                _ => text.push(byte),
            }
        }
        self.add(what, text)
    }

    fn add(&mut self, what: u8, mut text: Vec<u8>) -> Option<()> {
        let mut kind = [Kind::Commit, Kind::Tree, Kind::Blob, Kind::Tag][usize::from(what & 3)];
        let layer = self.layers.last_mut()?;
        let start = layer.entries.len();
        let base =
            (what & 4 != 0).then(|| layer.places.len().checked_sub(1 + usize::from(what >> 5))).flatten();
        match base.map(|base| layer.places[base]) {
            Some((base, place)) => {
                let (id, base_kind, bytes) = &self.objects[base];
                if bytes.is_empty() || bytes.len() + text.len() > 0x7fff || text.len() > 127 {
                    return Some(());
                }
                kind = *base_kind;
                let made = delta(bytes.len(), &text);
                text = [bytes, text.as_slice()].concat();
                let distance = (start - place) as u64;
                let header = match what & 8 {
                    0 => Header::OfsDelta { distance },
                    _ => Header::RefDelta { base: *id },
                };
                entry::encode(&header, made.len() as u64, &mut layer.entries);
                encode::deflate(&made, &mut layer.entries);
            }
            None => layer.entries.extend(encode::whole(kind, &text)),
        }
        let id = gix_object::compute_hash(self.hash, kind, &text).ok()?;
        layer.places.push((self.objects.len(), start));
        if what & 16 != 0 {
            layer.tips.push(id);
        }
        self.objects.push((id, kind, text));
        Some(())
    }

    /// Indexes the packs and builds their graphs as a sync does; `None` if the history is not closed, or no history.
    fn open(&self) -> Option<(Stack, Packs)> {
        let mut layers: Vec<Arc<Layer>> = Vec::new();
        let mut packs = Packs(Vec::new());
        for packing in self.layers.iter().filter(|packing| !packing.places.is_empty()) {
            let mut pack = entry::pack_header(packing.places.len() as u32).to_vec();
            pack.extend_from_slice(&packing.entries);
            let (pack, idx) = index(&seal(pack, self.hash), self.hash).expect("a complete pack");
            let below = Stack::open(layers.clone()).expect("layers that were built");
            let input = BuildInput {
                pack: &pack,
                idx: idx.clone(),
                below: (!layers.is_empty()).then_some((&below, &packs as &dyn Source)),
                hash: self.hash,
                tips: &packing.tips,
                facts: None,
                cache_bytes: 1 << 20,
                threads: 2,
                meter: &Unlimited,
                progress: &|_, _| {},
                stop: &AtomicBool::new(false),
            };
            let graph = build(input).ok()?.to_bytes();
            layers.push(Arc::new(Layer::open(idx, graph.into(), self.hash).expect("what was built opens")));
            packs.0.push(pack);
        }
        Some((Stack::open(layers).expect("layers that were built"), packs))
    }

    fn decodes(&self, stack: &Stack, packs: &Packs) {
        let mut scratch = Scratch::new(1 << 16, 1 << 20);
        for (id, kind, bytes) in &self.objects {
            let gid = stack.lookup(id).expect("each object is found");
            assert_eq!((stack.oid(gid), stack.kind(gid), stack.size(gid)), (*id, *kind, bytes.len() as u64));
            let (kind_there, there) =
                decode::object(stack, packs, gid, &mut scratch, &Unlimited).expect("it decodes");
            assert_eq!((kind_there, &there[..]), (*kind, &bytes[..]));
        }
    }

    /// What a client gets that wants all tips and has one of them, or nothing.
    fn answers(&self, stack: &Stack, packs: &Packs, options: PlanOptions, choice: u8) {
        let tips: Vec<ObjectId> = self.layers.iter().flat_map(|layer| layer.tips.clone()).collect();
        let Some(have) = tips.get(usize::from(choice >> 4) % tips.len().max(1)) else { return };
        let all = self.closure(&tips);
        let gids: Vec<Gid> = tips.iter().filter_map(|tip| stack.lookup(tip)).collect();
        let reach = Reach::new(stack, packs, &gids, &TreeLimits::default(), &Unlimited)
            .expect("trees that are there");
        assert_eq!(ids(stack, reach.objects()), all, "reachable is what hangs on the tips");
        for haves in [vec![], vec![*have]] {
            let had: Vec<Gid> = haves.iter().filter_map(|id| stack.lookup(id)).collect();
            let query = Query { wants: &gids, haves: &had, ..Query::default() };
            let mut selection = select(stack, packs, &query, &SelectLimits::default(), &Unlimited)
                .expect("trees that are there");
            let chosen = ids(stack, &selection.objects);
            let owned = self.closure(&haves);
            // A want that is had is sent where it is no commit; nothing else may be, and nothing may lack.
            let lost: Vec<_> = all.difference(&owned).filter(|id| !chosen.contains(*id)).collect();
            assert!(lost.is_empty(), "not sent: {lost:?}");
            assert!(chosen.is_subset(&all) && (!haves.is_empty() || chosen == all));
            let plan = Arc::new(plan::plan(stack, &mut selection, options, &Unlimited).unwrap());
            let mut out = Vec::new();
            write::write(&plan, stack, packs, &mut Scratch::new(1 << 16, 1 << 20), &Unlimited, &mut out)
                .expect("a pack");
            assert_eq!(entry::parse_pack_header(&out), Ok(chosen.len() as u32));
            if haves.is_empty() && !chosen.is_empty() {
                let (_, idx) = index(&out, self.hash).expect("a clone's pack is complete");
                let idx = crate::pack::layer::open_idx(idx, self.hash).expect("an index");
                let sent: BTreeSet<ObjectId> = idx.iter().map(|entry| entry.oid).collect();
                assert_eq!(sent, chosen);
            }
        }
    }

    /// Everything that hangs on some objects, by reading them.
    fn closure(&self, from: &[ObjectId]) -> BTreeSet<ObjectId> {
        let by_id: BTreeMap<_, _> =
            self.objects.iter().map(|(id, kind, bytes)| (*id, (*kind, bytes))).collect();
        let (mut seen, mut todo) = (BTreeSet::new(), from.to_vec());
        while let Some(id) = todo.pop() {
            if !seen.insert(id) {
                continue;
            }
            let (kind, bytes) = by_id[&id];
            match kind {
                Kind::Commit => {
                    let links = commit(bytes, self.hash).expect("its graph was built");
                    todo.push(links.tree);
                    todo.extend(links.parents);
                }
                Kind::Tag => todo.push(tag(bytes, self.hash).expect("its graph was built").0),
                Kind::Tree => {
                    let entries = TreeEntries::new(bytes, self.hash).map(|e| e.expect("its graph was built"));
                    todo.extend(entries.filter(|e| e.kind().is_some()).map(|e| e.oid.to_owned()));
                }
                Kind::Blob => {}
            }
        }
        seen
    }
}

/// Appends the hash that ends a pack.
fn seal(mut pack: Vec<u8>, hash: HashKind) -> Vec<u8> {
    let mut hasher = gix_hash::hasher(hash);
    hasher.update(&pack);
    pack.extend_from_slice(hasher.try_finalize().expect("no collision").as_slice());
    pack
}

/// A delta that copies all of its base and appends `text`.
fn delta(base: usize, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for mut size in [base, base + text.len()] {
        while size >= 0x80 {
            out.push(size as u8 | 0x80);
            size >>= 7;
        }
        out.push(size as u8);
    }
    out.extend_from_slice(&[0xb0, base as u8, (base >> 8) as u8]);
    if !text.is_empty() {
        out.push(text.len() as u8);
        out.extend_from_slice(text);
    }
    out
}

/// Indexes a pack with the program's own indexer.
fn index(pack: &[u8], hash: HashKind) -> Option<(Bytes, Bytes)> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = gix_pack::bundle::write::Options {
        thread_limit: Some(1),
        alloc_limit_bytes: Some(1 << 20),
        ..Default::default()
    };
    let written = gix_pack::Bundle::write_to_directory(
        &mut &pack[..],
        Some(dir.path()),
        &mut gix_utils::progress::Discard,
        &AtomicBool::new(false),
        None::<gix_object::find::Never>,
        hash,
        options,
    );
    let written = written.ok()?;
    let read = |path: Option<std::path::PathBuf>| std::fs::read(path?).ok().map(Bytes::from);
    Some((read(written.data_path)?, read(written.index_path)?))
}

fn ids(stack: &Stack, gids: &roaring::RoaringBitmap) -> BTreeSet<ObjectId> {
    gids.iter().map(|gid| stack.oid(gid)).collect()
}
