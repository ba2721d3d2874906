//! Facts about the bytes of a pack: its hashes as a whole and block by block.
//!
//! A ranged read of a stored pack is verified against the hashes of the blocks it touches, so no
//! reader has to see the whole pack.
use sha2::{Digest, Sha256};

/// Bytes per block of a pack; the last one may be shorter.
pub const BLOCK_SIZE: u32 = 1 << 20;

/// What a layer records about the bytes of its pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackFacts {
    /// SHA-256 of the whole file, git's trailer included.
    pub sha256: [u8; 32],
    /// Bytes of the whole file.
    pub len: u64,
    /// Bytes per block.
    pub block_size: u32,
    /// SHA-256 of each block.
    pub blocks: Vec<[u8; 32]>,
}

impl PackFacts {
    /// Hashes a pack that is at hand as a whole.
    pub fn of(pack: &[u8]) -> Self {
        let mut hasher = FactsHasher::default();
        hasher.update(pack);
        hasher.finish()
    }
}

/// Collects [`PackFacts`] of a pack that passes by in pieces of any length.
#[derive(Clone, Default)]
pub struct FactsHasher {
    whole: Sha256,
    block: Sha256,
    len: u64,
    blocks: Vec<[u8; 32]>,
}

impl FactsHasher {
    /// Takes the next bytes of the pack.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = u64::from(BLOCK_SIZE) - self.len % u64::from(BLOCK_SIZE);
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.whole.update(now);
            self.block.update(now);
            self.len += now.len() as u64;
            if self.len.is_multiple_of(u64::from(BLOCK_SIZE)) {
                self.blocks.push(self.block.finalize_reset().into());
            }
            bytes = later;
        }
    }

    /// Gives the facts once the whole pack has passed.
    pub fn finish(mut self) -> PackFacts {
        if !self.len.is_multiple_of(u64::from(BLOCK_SIZE)) {
            self.blocks.push(self.block.finalize().into());
        }
        PackFacts {
            sha256: self.whole.finalize().into(),
            len: self.len,
            block_size: BLOCK_SIZE,
            blocks: self.blocks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_give_the_same_facts_as_the_whole() {
        let block = BLOCK_SIZE as usize;
        for len in [0, 1, block - 1, block, block + 1, 3 * block] {
            let pack: Vec<u8> = (0..len).map(|i| (i % 253) as u8).collect();
            let facts = PackFacts::of(&pack);
            assert_eq!(facts.len, len as u64);
            assert_eq!(facts.sha256, <[u8; 32]>::from(Sha256::digest(&pack)));
            let blocks: Vec<[u8; 32]> = pack.chunks(block).map(|part| Sha256::digest(part).into()).collect();
            assert_eq!(facts.blocks, blocks);
            let mut hasher = FactsHasher::default();
            pack.chunks(700_001).for_each(|part| hasher.update(part));
            assert_eq!(hasher.finish(), facts);
        }
    }
}
