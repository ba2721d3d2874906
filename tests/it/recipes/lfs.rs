//! Git LFS by the mirror: its question passes through, its objects come from where the primary says.
//!
//! Needs a Gitea (`PACKMIRROR_TEST_GITEA_ENV`) and git-lfs (`PACKMIRROR_TEST_LFS`).

use std::path::Path;

use super::client::Client;
use super::page::recipe;
use crate::gitea::Gitea;
use crate::mirror_only;
use crate::world::{World, skip};

#[test]
fn gitea_and_lfs_with_the_developers_lines() {
    mirror_only!();
    let Some(gitea) = Gitea::here() else { return };
    let Some(lfs) = std::env::var_os("PACKMIRROR_TEST_LFS") else {
        return skip("git-lfs, named by PACKMIRROR_TEST_LFS");
    };
    let world = World::new();
    let path = gitea.repo(&world, true, "sha1");
    let node = gitea.node(&world);
    crate::gitea::mirrored(&world, &gitea, &node, &path);
    let mut client = Client::at(&world, gitea.url(), &node.url);
    client.find(Path::new(&lfs).parent().expect("a folder"));
    client.remember_for("alice", gitea.password("alice"));
    client.follow(recipe("developer"));
    client.git("lfs install --skip-repo").must();
    let batches = || node.metric("packmirror_answers_total", &["reason=\"other-endpoint\""]);
    let url = format!("{}/{path}", gitea.url());
    client.git(&format!("clone -q {url} one")).must();
    let large = crate::shapes::noise(7, 300_000);
    std::fs::write(client.work.join("one/large.bin"), &large).unwrap();
    let before = batches();
    client
        .shell("cd one; git lfs track '*.bin'; git add .; git commit -q -m large; git push -q origin HEAD")
        .must();
    assert!(batches() > before, "{}", node.answers_text());
    let before = batches();
    client.git(&format!("clone -q {url} two")).must();
    assert_eq!(std::fs::read(client.work.join("two/large.bin")).unwrap(), large);
    assert!(batches() > before, "{}", node.answers_text());
    let trace = client.shell("cd two; git lfs env | grep Endpoint=").must().text();
    assert!(trace.contains(&node.url), "{trace}");
    // What LFS was told goes to the same helper, and nothing is kept for the mirror.
    assert!(
        !client.remembered().contains(node.address().rsplit(':').next().unwrap()),
        "{}",
        client.remembered()
    );
}
