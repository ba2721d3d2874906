//! One published state of a repository, opened for reading: its generation, refs, stack of layers and the set of
//! objects its refs reach.
//!
//! A snapshot never changes; a newer generation is another snapshot. Opening one reads the refs, the `.idx` and the graph
//! of each layer (mapped from this node's cache) and no pack byte.
//! Relies on: `local` for mapped files. Elsewhere: who may read it (`primary::grants`), when a newer one is due (`work::worker`).

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use gix_hash::{ObjectId, oid};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use crate::git::HashKind;
use crate::git::ls_refs::Listing;
use crate::git::refs::Refs;
use crate::local::{BlockHashes, Local, PackBlob};
use crate::mirror::answers::{Answer, Answers};
use crate::mirror::blocks::Blocks;
use crate::mirror::carry::carry;
use crate::mirror::files::{self, Files, Part};
use crate::pack::Gid;
use crate::pack::filter::trees::{TreeError, TreeLimits};
use crate::pack::history::reach::Reach;
use crate::pack::layer::Layer;
use crate::pack::layer::graph::{self, Damaged};
use crate::pack::layer::stack::Stack;
use crate::pack::meter::Meter;
use crate::primary::Grant;
use crate::store::{BlobRef, Generation, LayerRef, StoreError};

/// Why a generation could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The bucket or the cache did not give a blob.
    #[error("cannot read {what} of generation {number}")]
    Store {
        /// Which blob.
        what: &'static str,
        /// The generation's number.
        number: u64,
        /// What the store said.
        #[source]
        source: StoreError,
    },
    /// A blob has the right hash but not the right content: it was written wrong.
    #[error("{what} of generation {number} is damaged: {reason}")]
    Damaged {
        /// Which blob.
        what: &'static str,
        /// The generation's number.
        number: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A graph has an older version: it is to be built again from the pack and the index that the bucket has.
    #[error("a graph of generation {number} has an older version ({version})")]
    Older {
        /// The generation's number.
        number: u64,
        /// The version of the graph.
        version: u32,
    },
    /// A newer packmirror wrote it; this node passes requests on until it is upgraded, and leaves it alone.
    #[error(
        "generation {number} was written by a newer packmirror (graph version {version}): upgrade this node"
    )]
    Newer {
        /// The generation's number.
        number: u64,
        /// The version of its graph.
        version: u32,
    },
    /// It was purged; a newer one is to be opened.
    #[error("generation {number} was purged")]
    Purged {
        /// The generation's number.
        number: u64,
    },
}

/// An open generation.
pub struct Snapshot {
    /// The record that publishes this state.
    pub generation: Generation,
    /// Every ref the primary showed, with HEAD.
    pub refs: Refs,
    /// The objects.
    pub stack: Arc<Stack>,
    /// The bytes of the packs; outside this room they are opened with a grant.
    pub(super) blocks: Blocks,
    reach: OnceCell<Arc<Reach>>,
    /// The reach of an older snapshot, as gids of this one.
    seed: Option<Arc<Reach>>,
    tip_set: OnceLock<HashSet<ObjectId>>,
    tags: OnceLock<[u8; 32]>,
    listing: OnceLock<Listing>,
    answers: Answers,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Snapshot({} #{})", self.generation.repo, self.generation.number)
    }
}

/// A snapshot whose packs may be read: the primary said yes to a client for this repository.
#[derive(Debug, Clone)]
pub struct Granted(Arc<Snapshot>);

impl Granted {
    /// The state itself, for what is made of it in the background.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.0
    }

    /// The bytes of the packs.
    pub fn source(&self) -> &Blocks {
        &self.0.blocks
    }
}

impl std::ops::Deref for Granted {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

impl Snapshot {
    /// Opens the packs with a grant for this repository; a grant for another one opens nothing.
    pub fn open_packs(self: Arc<Self>, grant: &Grant) -> Option<Granted> {
        (grant.repo() == &self.generation.repo).then_some(Granted(self))
    }

    /// The bytes of its packs for the node's own work, which sends them to no client: only `work` calls this, as a test of
    /// the sources holds. For clients there is [`Snapshot::open_packs`].
    pub fn blocks_for_work(&self) -> &Blocks {
        &self.blocks
    }

    /// Keeps what was fetched ahead of its opening (`ahead`).
    pub(super) fn keep_ahead(&self) {
        self.blocks.local().keep_expected(self.blocks.packs());
    }

    /// Lets nothing be read of it from now on, also by jobs and streams that have begun.
    pub(super) fn revoke(&self) {
        self.blocks.revoke();
    }

    /// Opens a generation through this node's cache.
    ///
    /// `older` is the snapshot that it follows, if there is one: layers they share are not opened again.
    pub async fn open(
        local: &Local,
        generation: Generation,
        older: Option<Arc<Self>>,
    ) -> Result<Self, OpenError> {
        let (number, hash) = (generation.number, object_format(&generation)?);
        let shared = |layer: &LayerRef| older.as_ref().and_then(|older| older.shared_layer(layer));
        let Files { refs: text, parts } = files::fetch(local, &generation, hash, shared).await?;
        let local = local.clone();
        let job = crate::threads::spawn_blocking(move || {
            Self::assemble(local, generation, hash, older, &text, parts)
        });
        job.await.unwrap_or_else(|e| {
            let source = StoreError::unavailable("put the layers together", e.to_string());
            Err(OpenError::Store { what: "the stack", number, source })
        })
    }

    fn assemble(
        local: Local,
        generation: Generation,
        hash: HashKind,
        older: Option<Arc<Self>>,
        text: &[u8],
        parts: Vec<Part>,
    ) -> Result<Self, OpenError> {
        let number = generation.number;
        let refs = refs_of(&generation, hash, text)?;
        let mut layers = Vec::with_capacity(parts.len());
        for (layer, part) in generation.layers.iter().zip(parts) {
            layers.push(match part {
                Part::Open(open) => open,
                Part::Mapped { idx, graph } => files::opened(layer, idx, graph, hash, number)?,
            });
        }
        let packs = generation.layers.iter().zip(&layers).map(|(r, l)| pack_blob(&r.pack, l)).collect();
        let stack = Stack::open(layers).map_err(|e| unusable("the stack", number, &e))?;
        // Where layers were only added, each object has the number that it had.
        let beside = older.as_ref().filter(|older| generation.layers.starts_with(&older.generation.layers));
        let answers = Answers::of(&generation, beside.map(|older| &older.answers));
        let seed = older.and_then(|older| older.reach_in(&generation.layers, &stack));
        Ok(Self {
            generation,
            refs,
            stack: Arc::new(stack),
            blocks: Blocks::new(local, packs),
            reach: OnceCell::new(),
            seed,
            tip_set: OnceLock::new(),
            tags: OnceLock::new(),
            listing: OnceLock::new(),
            answers,
        })
    }

    fn shared_layer(&self, wanted: &LayerRef) -> Option<Arc<Layer>> {
        let at = self.generation.layers.iter().position(|layer| layer == wanted)?;
        self.stack.layers().get(at).cloned()
    }

    /// What its refs reach, or those of a snapshot before it, as gids of a newer stack: layers that were merged meanwhile
    /// cost one look a reachable object. `None` if it is not known, or not all of it is there.
    fn reach_in(&self, layers: &[LayerRef], stack: &Stack) -> Option<Arc<Reach>> {
        let reach = self.reach.get().or(self.seed.as_ref())?;
        let same = self.generation.layers.iter().zip(layers).take_while(|(a, b)| a == b).count();
        if same == self.generation.layers.len() {
            return Some(Arc::clone(reach));
        }
        let first = self.stack.first_gid(same);
        reach.moved(first, stack, |gid| stack.lookup(&self.stack.oid(gid))).map(Arc::new)
    }

    /// Makes blocks of packs that were merged from those of the older packs, as far as these are in this node's cache. Blocking.
    pub fn carry_from(&self, older: &Self, end: std::time::Instant) -> u64 {
        carry((&older.stack, &older.blocks), (&self.stack, &self.blocks), end)
    }

    /// The set of objects that the published refs reach: made at first use by [`Snapshot::make_reach`], once however many
    /// wait for it.
    pub fn reach(&self) -> &OnceCell<Arc<Reach>> {
        &self.reach
    }

    /// Computes that set: from that of an older snapshot where refs only advanced (layers may have been merged meanwhile), else by a walk over the commit graph.
    pub fn make_reach(&self, meter: &dyn Meter) -> Result<Arc<Reach>, TreeError> {
        let (tips, limits) = (self.tips(), TreeLimits::default());
        let grown = match &self.seed {
            Some(seed) => seed.extend(&self.stack, &self.blocks, &tips, &limits, meter)?,
            None => None,
        };
        let reach = match grown {
            Some(reach) => reach,
            None => Reach::new(&self.stack, &self.blocks, &tips, &limits, meter)?,
        };
        Ok(Arc::new(reach))
    }

    /// The answers that its record names, as far as they can be opened.
    pub async fn answers(&self) -> Vec<Arc<Answer>> {
        self.answers.open(self.blocks.local(), &self.stack).await
    }

    /// The refs as `ls-refs` shows them, written at first use.
    pub fn listing(&self) -> &Listing {
        self.listing.get_or_init(|| Listing::of(&self.refs))
    }

    /// A hash of all tags and of what they lead to, computed at first use: equal where `include-tag` adds the same.
    pub fn tags_digest(&self) -> [u8; 32] {
        *self.tags.get_or_init(|| {
            let mut hasher = Sha256::new();
            for tag in self.refs.with_prefix(b"refs/tags/") {
                hasher.update(tag.oid.as_slice());
                hasher.update(tag.peeled.as_ref().unwrap_or(&tag.oid).as_slice());
            }
            hasher.finalize().into()
        })
    }

    /// The gids that refs and HEAD name.
    pub fn tips(&self) -> Vec<Gid> {
        self.refs.tips().iter().filter_map(|oid| self.stack.lookup(oid)).collect()
    }

    /// The object, if the published refs reach it: what may be sent. `None` says nothing about the primary. The set of reachable
    /// objects must have been made before; until then this gives `None`.
    pub fn published(&self, oid: &oid) -> Option<Gid> {
        let reach = self.reach.get()?;
        self.stack.lookup(oid).filter(|gid| reach.contains(*gid))
    }

    /// Says whether a ref or HEAD names the object, or a tag that peels to it: then no walk is needed to know that it is
    /// published. Clients of other makes want what a tag peels to like any tip.
    pub fn is_tip(&self, oid: &ObjectId) -> bool {
        let tips = self.tip_set.get_or_init(|| {
            let peeled = self.refs.refs.iter().filter_map(|r| r.peeled);
            self.refs.tips().into_iter().chain(peeled).collect()
        });
        tips.contains(oid)
    }

    /// Says whether `seen` is the state that this generation publishes.
    pub fn equals(&self, seen: &Refs) -> bool {
        publishes(&self.generation, seen)
    }
}

/// Says whether `seen` is the state that `generation` publishes, by what the record says of it.
pub fn publishes(generation: &Generation, seen: &Refs) -> bool {
    generation.object_format == seen.hash.to_string()
        && generation.head == seen.head
        && generation.symrefs == seen.symrefs
        && generation.manifest_digest == hex::encode(seen.digest())
}

/// Checks that a graph describes the pack that the record names: a pack's bytes are compared with its block
/// hashes alone.
pub fn belongs(named: &LayerRef, opened: &Layer) -> Result<(), Damaged> {
    let graph = &opened.graph;
    let same = graph.pack_sha256() == named.pack.id.0
        && graph.pack_len() == named.pack.len
        && graph.len() == named.objects;
    if same { Ok(()) } else { Err(Damaged::Mismatch("the pack that the record names")) }
}

/// What a damaged layer means for its generation: one of another version is not damaged.
pub fn unusable(what: &'static str, number: u64, reason: &Damaged) -> OpenError {
    match *reason {
        Damaged::Version(version) if version > graph::format::VERSION => OpenError::Newer { number, version },
        Damaged::Version(version) => OpenError::Older { number, version },
        _ => OpenError::Damaged { what, number, reason: reason.to_string() },
    }
}

/// The hash of a generation's repository.
pub fn object_format(generation: &Generation) -> Result<HashKind, OpenError> {
    match generation.object_format.as_str() {
        "sha1" => Ok(HashKind::Sha1),
        "sha256" => Ok(HashKind::Sha256),
        other => Err(OpenError::Damaged {
            what: "the record",
            number: generation.number,
            reason: format!("object format `{other}` is not known"),
        }),
    }
}

/// The refs of a generation out of its unpacked blob, checked as if they came from a primary.
pub fn refs_of(generation: &Generation, hash: HashKind, packed_refs: &[u8]) -> Result<Refs, OpenError> {
    let number = generation.number;
    let bad = |reason: String| OpenError::Damaged { what: "the refs", number, reason };
    let refs = Refs::parse_packed_refs(packed_refs, hash).map_err(|e| bad(e.to_string()))?;
    let refs = Refs::new(hash, generation.head.clone(), refs, generation.symrefs.clone());
    let refs = refs.map_err(|e| bad(e.to_string()))?;
    if hex::encode(refs.digest()) != generation.manifest_digest {
        return Err(bad("they do not hash to the manifest digest".into()));
    }
    Ok(refs)
}

/// The hashes of a pack's blocks, which the layer's graph holds.
struct HashesOf(Arc<Layer>);

impl BlockHashes for HashesOf {
    fn hash(&self, n: u64) -> Option<[u8; 32]> {
        self.0.graph.block_hash(n)
    }
}

/// The pack of an open layer, to be read in blocks.
pub fn pack_blob(pack: &BlobRef, layer: &Arc<Layer>) -> PackBlob {
    PackBlob {
        blob: *pack,
        block_size: u64::from(layer.graph.block_size()),
        hashes: Arc::new(HashesOf(Arc::clone(layer))),
    }
}
