//! A repository with as many layers as a test wants, in the bucket as if its pushes had come one by one and nobody had merged them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};

use super::primary::Host;
use super::store::{Shared, Store, View};
use super::world::Node;
use crate::git::path::RepoPath;
use crate::git::refs::{Head, Refs};
use crate::pack::layer::graph::compress;
use crate::pack::testing::{Packed, Packs, Random, Repo, id};
use crate::pack::{Layer, Stack};
use crate::store::{AnswerRef, BlobKind, BlobRef, Bucket, Generation, LayerRef, Publish, VERSION, nonce};

/// Its name.
pub const REPO: &str = "team/app.git";
/// Files of the history; each commit changes one of them.
const FILES: usize = 8;
/// Lines of a file; they hardly compress.
const LINES: usize = 1500;

/// A repository of the primary, and what a mirror of it has in its bucket.
pub struct Mirrored {
    repo: Repo,
    /// Oldest first.
    pub commits: Vec<ObjectId>,
    blobs: Vec<(BlobKind, Bytes)>,
    pub generation: Generation,
}

/// So many commits on one branch; each changes a line or two of a file.
fn history(commits: usize) -> (Repo, Vec<ObjectId>) {
    let repo = Repo::new(HashKind::Sha1);
    let mut random = Random::new(commits as u64);
    let mut line = move || {
        let words = [0; 3].map(|_| random.below(usize::MAX));
        format!("{:x}{:x}{:x}\n", words[0], words[1], words[2])
    };
    let mut files: Vec<Vec<String>> = (0..FILES).map(|_| (0..LINES).map(|_| line()).collect()).collect();
    let mut input = String::new();
    for n in 1..=commits {
        write!(
            input,
            "commit refs/heads/main\nmark :{n}\ncommitter C <c@x> {} +0000\ndata 2\nx\n",
            1_700_000_000 + n
        )
        .unwrap();
        let changed = if n == 1 { 0..FILES } else { n % FILES..n % FILES + 1 };
        for file in changed {
            files[file][n * 7 % LINES] = line();
            let text = files[file].concat();
            write!(input, "M 100644 inline f{file}\ndata {}\n{text}\n", text.len()).unwrap();
        }
    }
    repo.git_with(&["fast-import", "--quiet"], input.as_bytes());
    repo.git(&["symbolic-ref", "HEAD", "refs/heads/main"]);
    let commits = repo.ids(&["rev-list", "--reverse", "refs/heads/main"]);
    (repo, commits)
}

impl Mirrored {
    /// A history of so many commits in so many layers: the lowest has all that the others, of one commit each, leave.
    pub fn of(commits: usize, layers: usize, is_answered: bool) -> Self {
        let (repo, commits) = history(commits);
        let first = commits.len() - layers;
        let mut packs = vec![repo.pack(&["--revs"], &format!("{}\n", commits[first]))];
        packs.extend(
            (first + 1..commits.len())
                .map(|n| repo.completed_thin_pack(&format!("{}\n^{}\n", commits[n], commits[n - 1]))),
        );
        let (mut open, mut blobs, mut named) = (Vec::<Arc<Layer>>::new(), Vec::new(), Vec::new());
        let source = Packs(packs.clone());
        for packed in &packs {
            let (layer, graph) = Self::layer(packed, &open, &source);
            named.push(Self::store(packed, &layer, graph, &mut blobs));
            open.push(layer);
        }
        let mut answers = Vec::new();
        if is_answered {
            // What a clone of depth 1 gets.
            let tip = commits[commits.len() - 1];
            let tree = repo.ids(&["rev-parse", &format!("{tip}^{{tree}}")]);
            let listed = repo.git(&["ls-tree", &tip.to_string()]);
            let files = listed.lines().map(|line| id(line.split_whitespace().nth(2).unwrap()));
            let packed = repo.pack_objects(&[tip].into_iter().chain(tree).chain(files).collect::<Vec<_>>());
            let (layer, graph) = Self::layer(&packed, &open, &source);
            let layer = Self::store(&packed, &layer, graph, &mut blobs);
            answers.push(AnswerRef { layer, kind: "depth 1".into() });
        }
        let tip = commits[commits.len() - 1];
        let head = Head::Symbolic { target: "refs/heads/main".into() };
        let listed =
            Refs::parse_packed_refs(format!("{tip} refs/heads/main\n").as_bytes(), repo.hash).unwrap();
        let refs = Refs::new(repo.hash, head.clone(), listed, Vec::new()).unwrap();
        let text = Bytes::from(zstd::bulk::compress(&refs.packed_refs(), 3).unwrap());
        let generation = Generation {
            version: VERSION,
            repo: RepoPath::parse(REPO).unwrap(),
            number: 1,
            parent: None,
            writer: nonce(),
            primary: String::new(),
            object_format: repo.hash.to_string(),
            head,
            symrefs: Vec::new(),
            manifest_digest: hex::encode(refs.digest()),
            refs: BlobRef::of(BlobKind::Refs, &text),
            ref_count: 1,
            layers: named,
            answers,
            created_at: 1_800_000_000,
            verified_at: 1_800_000_000,
            removed: false,
            gone: None,
            stored: None,
        };
        blobs.push((BlobKind::Refs, text));
        Self { repo, commits, blobs, generation }
    }

    fn layer(packed: &Packed, below: &[Arc<Layer>], source: &Packs) -> (Arc<Layer>, Bytes) {
        let stack = Stack::open(below.to_vec()).unwrap();
        let draft = packed.draft(HashKind::Sha1, Some((&stack, source)), &[]).unwrap().to_bytes();
        let layer = Layer::open(packed.idx.clone(), draft.clone().into(), HashKind::Sha1).unwrap();
        (Arc::new(layer), compress(&draft).unwrap().into())
    }

    fn store(packed: &Packed, layer: &Layer, graph: Bytes, blobs: &mut Vec<(BlobKind, Bytes)>) -> LayerRef {
        let mut put = |kind, bytes: Bytes| {
            let named = BlobRef::of(kind, &bytes);
            blobs.push((kind, bytes));
            named
        };
        LayerRef {
            pack: put(BlobKind::Pack, packed.pack.clone()),
            idx: put(BlobKind::Idx, packed.idx.clone()),
            graph: put(BlobKind::Graph, graph),
            objects: layer.graph.len(),
        }
    }

    /// Puts it into a bucket, as another node does, and at the primary.
    pub async fn publish(&self, shared: &Arc<Shared>, host: &Host, node: &Node) {
        let view = View::of(shared, 77);
        view.set_pace(Duration::ZERO);
        let bucket = Bucket::over(Arc::new(Store(view)), "farm");
        for (kind, bytes) in &self.blobs {
            bucket.put_blob(*kind, bytes.clone()).await.unwrap();
        }
        let generation = Generation { primary: node.app.mirror.primary.name(), ..self.generation.clone() };
        assert_eq!(bucket.publish(&generation).await.unwrap(), Publish::Won);
        host.set_other(REPO, self.repo.path());
    }

    pub fn tip(&self) -> ObjectId {
        self.commits[self.commits.len() - 1]
    }

    /// The bytes of all that a node has to read of it for a whole clone.
    pub fn needed(&self) -> u64 {
        self.generation.needed().map(|blob| blob.len).sum()
    }
}
