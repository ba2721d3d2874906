//! Proof with git alone that two addresses give the same repository.
//!
//! Same refs, HEAD and peeled tags (`ls-remote --symref`), same objects (`rev-list --objects --all` of mirror
//! clones of both), and every object intact (`fsck --strict`).

use std::path::Path;

use super::DemoError;
use super::git::Git;

/// What was found equal.
#[derive(Debug, PartialEq, Eq)]
pub struct Proof {
    /// Refs, without HEAD and peeled tags.
    pub refs: usize,
    /// Objects that the refs reach.
    pub objects: usize,
    /// Whether git's strict check had something to say, the same for both sides.
    pub remarks: bool,
}

/// Compares `mirror` with `primary`, both as git takes them; works in `scratch`, which must be empty.
pub async fn prove(git: &Git, primary: &str, mirror: &str, scratch: &Path) -> Result<Proof, DemoError> {
    let refs = git.run(scratch, &["ls-remote", "--symref", primary]).await?;
    let theirs = git.run(scratch, &["ls-remote", "--symref", mirror]).await?;
    same("refs", &refs, &theirs)?;
    for (address, name) in [(primary, "primary.git"), (mirror, "mirror.git")] {
        git.run(scratch, &["clone", "-q", "--mirror", address, name]).await?;
    }
    let (one, other) = (scratch.join("primary.git"), scratch.join("mirror.git"));
    let list = ["rev-list", "--objects", "--no-object-names", "--all"];
    let objects = sorted(&git.run(&one, &list).await?);
    same("objects", &objects, &sorted(&git.run(&other, &list).await?))?;
    let check = ["fsck", "--strict", "--full", "--no-dangling", "--no-progress"];
    let remarks = match (git.run(&other, &check).await, git.run(&one, &check).await) {
        (Ok(_), _) => false,
        // Old histories have flaws that strict checks mention; a mirror must not mend them.
        (Err(_), Err(_)) => true,
        (Err(trouble), Ok(_)) => return Err(trouble),
    };
    let names = refs.lines().filter(|line| line.contains("\trefs/") && !line.ends_with("^{}"));
    let names = names.filter(|line| !line.starts_with("ref:"));
    Ok(Proof { refs: names.count(), objects: objects.lines().count(), remarks })
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Fails with the first line that only one side has.
fn same(what: &'static str, primary: &str, mirror: &str) -> Result<(), DemoError> {
    if primary == mirror {
        return Ok(());
    }
    let only = |a: &str, b: &str| {
        let known: std::collections::HashSet<&str> = b.lines().collect();
        a.lines().find(|line| !known.contains(line)).map(str::to_owned)
    };
    let first = match (only(primary, mirror), only(mirror, primary)) {
        (Some(line), _) => format!("only the primary has \"{line}\""),
        (None, Some(line)) => format!("only the mirror has \"{line}\""),
        (None, None) => "their order differs".into(),
    };
    Err(DemoError::Differs { what, first })
}

#[cfg(test)]
mod tests {
    use super::super::primary;
    use super::*;

    #[tokio::test]
    async fn equal_repositories_pass_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::plain(dir.path());
        let made = primary::make(&git, &dir.path().join("primary")).await.unwrap();
        let repo = made.dir.join(primary::REPO);
        let copy = dir.path().join("copy.git");
        let (one, other) = (repo.to_str().unwrap(), copy.to_str().unwrap());
        git.run(dir.path(), &["clone", "-q", "--mirror", one, other]).await.unwrap();
        let scratch = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let proof = prove(&git, one, other, &scratch("same")).await.unwrap();
        assert!(proof.objects > 1000 && proof.refs > 10 && !proof.remarks, "{proof:?}");

        git.run(&copy, &["update-ref", "-d", "refs/tags/nightly"]).await.unwrap();
        let trouble = prove(&git, one, other, &scratch("refs")).await.unwrap_err().to_string();
        assert!(
            trouble.contains("only the primary has") && trouble.contains("refs/tags/nightly"),
            "{trouble}"
        );
    }
}
