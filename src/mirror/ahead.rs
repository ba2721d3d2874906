//! What is fetched beside the files of a repository that is opened for a client, so that it does not wait for one after the other:
//! the first block of each pack, and the files of stored answers.
//!
//! A full clone reads the first block of each layer; a fetch reads a little of the newest, mostly in its first block; a clone of
//! depth 1 reads a stored answer. What turns out not to be needed is a block a layer at the most. Relies on: `local` for room, for proof, and
//! for fetching each thing once.

use crate::budget::Budget;
use crate::mirror::Mirror;
use crate::mirror::answers::MOST_OBJECTS;
use crate::pack::layer::graph::BLOCK_SIZE;
use crate::store::Generation;

/// Bytes of files of answers that are fetched at the same time.
const AT_ONCE: u64 = 32 << 20;
/// What each counts of it at least.
const LEAST: u64 = 128 << 10;

impl Mirror {
    /// Begins to fetch it, and returns at once.
    pub(super) fn fetch_ahead(&self, generation: &Generation) {
        let answers = || generation.answers.iter().map(|answer| answer.layer);
        // Of answers the newest: what was asked for last is asked for again.
        let packs = generation.layers.iter().copied().chain(answers().next_back());
        self.local.expect(packs.map(|layer| (layer.pack, layer.graph)), u64::from(BLOCK_SIZE));
        let room = Budget::new(AT_ONCE, "cache_dir");
        let files = answers().rev().filter(|layer| layer.objects <= MOST_OBJECTS);
        for file in files.flat_map(|layer| [layer.idx, layer.graph]) {
            let (local, room) = (self.local.clone(), room.clone());
            self.tasks.spawn(async move {
                // What does not fit is read when it is needed.
                let Ok(_room) = room.take(file.len.max(LEAST)).await else { return };
                let _ = local.mapped(&file).await;
            });
        }
    }
}
