//! Has git judge an answer as a client would.

use std::path::Path;

use crate::Result;
use crate::client::Answer;
use crate::requests::{Ask, Row};
use crate::shell::{feed, git};

/// Indexes the pack strictly in a repository that has what the request says it has.
pub fn check(row: &Row, answer: &Answer, pack: &[u8], dir: &Path) -> Result<()> {
    let Ask::Fetch { options, haves, .. } = &row.ask else { return Ok(()) };
    let dir = tempfile::tempdir_in(dir)?;
    let format = format!(
        "--object-format={}",
        git(&row.repository.path, &["rev-parse", "--show-object-format"])?.trim()
    );
    git(dir.path(), &["init", "-q", "--bare", &format, "."])?;
    if !haves.is_empty() {
        let objects = row.repository.path.join("objects");
        std::fs::write(dir.path().join("objects/info/alternates"), format!("{}\n", objects.display()))?;
    }
    if !answer.shallow.is_empty() {
        std::fs::write(dir.path().join("shallow"), answer.shallow.join("\n") + "\n")?;
    }
    let mut args = vec!["index-pack", "--stdin", "--fix-thin"];
    // What a filter leaves out is missing by intention.
    if !options.iter().any(|option| option.starts_with("filter ")) {
        args.push("--strict");
    }
    feed(dir.path(), &args, &mut |out| out.write_all(pack))?;
    Ok(())
}
