//! Which node compares which repository: rendezvous hashing, pure.
//!
//! Each node ranks all live nodes for a repository by a hash of both names; the first one owns it. Nodes that know the same
//! nodes agree without a word, and a node that comes or goes moves its own repositories only.

use sha2::{Digest, Sha256};

/// The nodes that divide the repositories at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Division {
    me: String,
    others: Vec<String>,
}

impl Division {
    /// A division among `me` and `others`.
    pub fn new(me: String, others: impl IntoIterator<Item = String>) -> Self {
        let others = others.into_iter().filter(|other| *other != me).collect();
        Self { me, others }
    }

    /// The node that compares a repository.
    pub fn owner(&self, repo: &str) -> &str {
        if self.others.is_empty() {
            return &self.me;
        }
        let nodes = self.others.iter().chain([&self.me]).map(String::as_str);
        nodes.max_by_key(|node| (weight(node, repo), *node)).unwrap_or(&self.me)
    }

    /// Says whether it is this node.
    pub fn is_ours(&self, repo: &str) -> bool {
        self.owner(repo) == self.me
    }
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
        let among = |me: &str| Division::new(me.to_owned(), nodes.iter().map(|node| (*node).to_owned()));
        let first: Vec<&str> = nodes.iter().filter(|node| among(node).is_ours(repo)).copied().collect();
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
        assert!(Division::new("a".into(), []).is_ours("r"));
        let twice = Division::new("a".into(), ["a".to_owned()]);
        assert!(twice.is_ours("r") && twice == Division::new("a".into(), []), "its own name changes nothing");
    }
}
