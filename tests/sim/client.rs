//! A client of the simulation: one that clones over the router, and has git judge what it got.

use std::panic::resume_unwind;

use axum::Router;
use axum::body::Body;
use futures::StreamExt;
use http::{Request, StatusCode};
use tower_service::Service;

use super::primary::{Universe, git, run};
use super::world::{Verdict, scratch};

/// How a clone ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has everything that was advertised: these refs.
    Whole(Vec<(String, String)>),
    /// The repository is not there.
    Missing,
    /// An error that the client sees as one.
    Failed(String),
}

/// What one exchange gave.
async fn ask(router: &Router, request: Request<Body>) -> Result<(StatusCode, Vec<u8>), String> {
    let mut router = router.clone();
    let Ok(response) = router.call(request).await;
    let status = response.status();
    let mut body = response.into_body().into_data_stream();
    let mut whole = Vec::new();
    while let Some(piece) = body.next().await {
        whole.extend_from_slice(&piece.map_err(|error| format!("the answer broke: {error}"))?);
    }
    Ok((status, whole))
}

/// The packets of an answer; `None` is one without a payload.
fn packets(mut bytes: &[u8]) -> Result<Vec<Option<&[u8]>>, String> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let len = bytes.get(..4).and_then(|four| std::str::from_utf8(four).ok());
        let len = len.and_then(|four| usize::from_str_radix(four, 16).ok()).ok_or("no packet")?;
        if len < 4 {
            found.push(None);
            bytes = &bytes[4..];
        } else {
            found.push(Some(bytes.get(4..len).ok_or("a packet is cut")?));
            bytes = &bytes[len..];
        }
    }
    Ok(found)
}

fn packet(text: &str) -> String {
    format!("{:04x}{text}", text.len() + 4)
}

fn post(repo: &str, body: String) -> Request<Body> {
    Request::post(format!("/{repo}/git-upload-pack"))
        .header("git-protocol", "version=2")
        .header("content-type", "application/x-git-upload-pack-request")
        .body(Body::from(body))
        .unwrap()
}

/// Clones all refs.
pub async fn clone(router: &Router, repo: &str) -> Outcome {
    clone_of(router, repo, |_| {}).await
}

/// Clones all refs, with a pack that is changed on the way.
pub async fn clone_of(router: &Router, repo: &str, change: impl FnOnce(&mut Vec<u8>)) -> Outcome {
    cloned(router, repo, change).await.unwrap_or_else(Outcome::Failed)
}

async fn cloned(router: &Router, repo: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<Outcome, String> {
    let request = Request::get(format!("/{repo}/info/refs?service=git-upload-pack"))
        .header("git-protocol", "version=2");
    let (status, _) = ask(router, request.body(Body::empty()).unwrap()).await?;
    match status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(Outcome::Missing),
        other => return Err(format!("info/refs: {other}")),
    }
    let (status, answer) =
        ask(router, post(repo, packet("command=ls-refs\n") + "0001" + &packet("peel\n") + "0000")).await?;
    if status != StatusCode::OK {
        return Err(format!("ls-refs: {status}"));
    }
    let mut refs = Vec::new();
    for line in packets(&answer)?.into_iter().flatten() {
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_whitespace();
        if let (Some(oid), Some(name)) = (words.next(), words.next())
            && name != "HEAD"
        {
            refs.push((name.to_owned(), oid.to_owned()));
        }
    }
    let wants: Vec<_> = refs.iter().map(|(_, oid)| oid.clone()).collect();
    let mut pack = fetch(router, repo, &wants).await?;
    change(&mut pack);
    crate::threads::spawn_blocking(move || judge(&pack, &wants))
        .await
        .unwrap_or_else(|why| resume_unwind(why.into_panic()));
    Ok(Outcome::Whole(refs))
}

/// Fetches objects by their ids with all that they reach, without asking for refs before: the bytes of the pack.
pub async fn fetch(router: &Router, repo: &str, wants: &[String]) -> Result<Vec<u8>, String> {
    let mut body = packet("command=fetch") + "0001" + &packet("ofs-delta\n") + &packet("no-progress\n");
    for oid in wants {
        body += &packet(&format!("want {oid}\n"));
    }
    let (status, answer) = ask(router, post(repo, body + &packet("done\n") + "0000")).await?;
    if status != StatusCode::OK {
        return Err(format!("fetch: {status}"));
    }
    let mut pack = Vec::new();
    let packets = packets(&answer)?;
    if !matches!(packets.last(), Some(None)) {
        return Err("the answer ends without a flush".into());
    }
    for packet in packets.into_iter().flatten() {
        match packet.split_first() {
            Some((1, bytes)) => pack.extend_from_slice(bytes),
            Some((3, words)) => return Err(String::from_utf8_lossy(words).into_owned()),
            _ if packet.starts_with(b"ERR ") => return Err(String::from_utf8_lossy(packet).into_owned()),
            _ => {}
        }
    }
    Ok(pack)
}

/// Panics unless the pack has every object that the wants reach. Git judges the same bytes once.
fn judge(pack: &[u8], wants: &[String]) {
    let verdict = Verdict::of([pack, wants.join(" ").as_bytes()]);
    if verdict.is_known() {
        return;
    }
    let dir = scratch();
    let empty = Universe::get().empty();
    let to = dir.path().join("pack");
    std::fs::write(&to, pack).unwrap();
    let mut git = git(&empty);
    let idx = dir.path().join("idx");
    git.args(["index-pack", "--strict", "--check-self-contained-and-connected", "-o"]).args([&idx, &to]);
    run(&mut git, b"");
    let listed = run(super::primary::git(&empty).arg("show-index"), &std::fs::read(idx).unwrap());
    let listed = String::from_utf8(listed).unwrap();
    for want in wants {
        assert!(listed.contains(want.as_str()), "a complete answer lacks what was wanted, {want}");
    }
    verdict.note_good();
}
