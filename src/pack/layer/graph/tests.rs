//! Graph files that were damaged.
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use gix_hash::Kind as HashKind;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::pack::layer::decode;
use crate::pack::meter::Unlimited;
use crate::pack::testing::{Packed, Packs, Repo, random_history};
use crate::pack::{Layer, Scratch, Stack};

fn sample() -> &'static (Vec<Packed>, Vec<Bytes>) {
    static SAMPLE: OnceLock<(Vec<Packed>, Vec<Bytes>)> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let repo = Repo::new(HashKind::Sha1);
        random_history(&repo, 7, 12);
        let tips: String = (1..=6).map(|n| format!("m{n}\n")).collect();
        let all: String = (1..=12).map(|n| format!("m{n}\n")).collect();
        let packs =
            vec![repo.pack(&["--revs"], &tips), repo.completed_thin_pack(&format!("{all}--not\n{tips}"))];
        let (stack, source) = crate::pack::testing::stack(&packs, HashKind::Sha1);
        let below = Stack::open(stack.layers()[..1].to_vec()).unwrap();
        let files = vec![
            packs[0].draft(HashKind::Sha1, None, &[]).unwrap().to_bytes().into(),
            packs[1].draft(HashKind::Sha1, Some((&below, &source)), &[]).unwrap().to_bytes().into(),
        ];
        (packs, files)
    })
}

#[test]
fn a_flipped_byte_anywhere_is_damage() {
    let (_, files) = sample();
    assert!(Graph::open(files[1].clone()).is_ok());
    for at in 0..files[1].len() {
        let mut file = files[1].to_vec();
        file[at] ^= 1 << (at % 8);
        assert!(Graph::open(file.into()).is_err(), "byte {at}");
    }
    for len in [0, 1, 15, 16, 31, 32, 48, files[1].len() - 1] {
        assert!(Graph::open(files[1].slice(..len)).is_err(), "cut to {len}");
    }
}

#[test]
fn a_file_of_another_version_says_so() {
    let mut file = sample().1[0].to_vec();
    file[4] = 9;
    seal(&mut file);
    assert_eq!(Graph::open(file.into()).unwrap_err(), Damaged::Version(9));
}

#[test]
fn what_is_compressed_comes_back() {
    let file = &sample().1[0];
    let frame = compress(file).unwrap();
    assert!(frame.len() < file.len());
    assert_eq!(decompress(&frame, file.len()).unwrap(), &file[..]);
    assert!(decompress(&frame, file.len() - 1).is_err());
}

fn seal(file: &mut [u8]) {
    let end = file.len() - format::CHECKSUM_LEN;
    let sum = Sha256::digest(&file[..end]);
    file[end..].copy_from_slice(&sum);
}

#[test]
fn tags_that_lead_in_a_circle_are_damage() {
    let repo = Repo::new(HashKind::Sha1);
    random_history(&repo, 7, 24);
    let mut file = repo.pack(&["--revs", "--all"], "").draft(HashKind::Sha1, None, &[]).unwrap().to_bytes();
    let tags: Vec<u32> = Graph::open(file.clone().into()).unwrap().tags().iter().collect();
    assert!(tags.len() > 1, "the sample has tags");
    let mut rows = (0..).map(|n| format::HEADER_LEN + n * format::ROW_LEN);
    let row = rows.find(|&row| file[row] == format::Section::Targets as u8).unwrap();
    let targets = u64::from_le_bytes(*file[row + 8..].first_chunk().unwrap()) as usize;
    let mut lead = |from: usize, to: u32| {
        file[targets + 4 * from..][..4].copy_from_slice(&to.to_le_bytes());
        seal(&mut file);
        Graph::open(file.clone().into()).err()
    };
    for (from, &to) in tags.iter().enumerate().skip(1).map(|(n, to)| (n - 1, to)) {
        assert_eq!(lead(from, to), None, "a tag of a tag is none");
    }
    let circle = Some(Damaged::Bytes("tags lead in a circle"));
    assert_eq!(lead(tags.len() - 1, tags[0]), circle);
    assert_eq!(lead(tags.len() - 1, tags[tags.len() - 1]), circle);
}

/// Asks a layer, and a stack with it on top, everything.
fn ask_everything(layer: Layer, packs: &[Packed], below: Bytes) {
    let beside = [0, 1, layer.graph.len(), u32::MAX - 1, u32::MAX];
    for position in (0..=layer.graph.len()).chain(beside) {
        let _ = (layer.oid(position), layer.graph.entry(position), layer.graph.introducer(position));
        let _ = (layer.graph.commit_row(position), layer.graph.tag_row(position), layer.graph.size(position));
    }
    let below = Layer::open(packs[0].idx.clone(), below, HashKind::Sha1).unwrap();
    let Ok(stack) = Stack::open(vec![Arc::new(below), Arc::new(layer)]) else { return };
    let source = Packs(packs.to_vec());
    let mut scratch = Scratch::new(1 << 16, 1 << 20);
    for gid in (0..=stack.len()).chain([u32::MAX - 1, u32::MAX]) {
        let _ = (stack.oid(gid), stack.kind(gid), stack.size(gid), stack.entry(gid), stack.peel(gid));
        let _ = stack.introducer(gid).map(|commit| stack.oid(commit));
        assert!(stack.introducers(gid).count() < 1000);
        if let Some(commit) = stack.commit(gid) {
            let _ = (commit.generation(), commit.date(), stack.oid(commit.tree()));
            let lists = commit.parents().chain(commit.first()).chain(commit.again());
            lists.for_each(|gid| assert!(stack.oid(gid).kind() == HashKind::Sha1));
        }
        let entry = stack.entry(gid);
        if entry.end <= packs[entry.layer].pack.len() as u64 {
            let _ = decode::object(&stack, &source, gid, &mut scratch, &Unlimited);
        }
    }
}

proptest! {
    #![proptest_config(crate::seed::cases(400))]

    #[test]
    fn even_a_sealed_lie_cannot_make_us_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let (packs, files) = sample();
        let mut file = files[1].to_vec();
        let end = file.len() - format::CHECKSUM_LEN;
        for (at, value) in &changes {
            file[at.index(end)] = *value;
        }
        seal(&mut file);
        if let Ok(layer) = Layer::open(packs[1].idx.clone(), file.into(), HashKind::Sha1) {
            ask_everything(layer, packs, files[0].clone());
        }
    }
}
