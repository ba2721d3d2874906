//! Which node compares which repository: rendezvous hashing, pure.
//!
//! Each node ranks all live nodes for a repository by a hash of both names; the first one owns it. Nodes that know the same
//! nodes agree without a word, and a node that comes or goes moves its own repositories only.

use sha2::{Digest, Sha256};

/// Says whether `me` comes first for a repository among itself and `others`.
pub fn is_first<'a>(me: &str, others: impl IntoIterator<Item = &'a str>, repo: &str) -> bool {
    let mine = (weight(me, repo), me);
    others.into_iter().all(|other| (weight(other, repo), other) <= mine)
}

fn weight(node: &str, repo: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((node.len() as u64).to_le_bytes());
    hash.update(node);
    hash.update(repo);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner<'a>(nodes: &[&'a str], repo: &str) -> &'a str {
        let first: Vec<&str> =
            nodes.iter().filter(|node| is_first(node, nodes.iter().copied(), repo)).copied().collect();
        assert_eq!(first.len(), 1, "{repo} has one owner");
        first[0]
    }

    #[test]
    fn repositories_are_divided_evenly_and_few_move() {
        let nodes = ["a", "b", "c", "d"];
        let repos: Vec<String> = (0..4000).map(|n| format!("team/{n}.git")).collect();
        for node in nodes {
            let own = repos.iter().filter(|repo| owner(&nodes, repo) == node).count();
            assert!((850..1150).contains(&own), "{node} has {own} of 4000");
        }
        for repo in &repos {
            let (all, fewer) = (owner(&nodes, repo), owner(&nodes[..3], repo));
            assert!(all == fewer || all == "d", "{repo} moved from {all} to {fewer} though {all} is there");
        }
    }

    #[test]
    fn a_node_alone_owns_all() {
        assert!(is_first("a", [], "r"));
        assert!(is_first("a", ["a"], "r"), "its own name changes nothing");
    }
}
