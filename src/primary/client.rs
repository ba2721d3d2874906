//! Our own protocol v2 client: the refs of a repository, and the pack of what we lack.
//!
//! Written here rather than taken from gix-protocol; docs/decisions/0002-own-upstream-client.md says why.
//! Each call is one conversation with one repository and sends nothing twice: repeating is the caller's, who has
//! a policy. Relies on: `git` for packets and their meaning. Elsewhere: what to want (`work`), the bytes of
//! the pack (`pack_stream`), statuses (`answer`).

use async_compression::Level;
use async_compression::tokio::bufread::GzipEncoder;
use bytes::Bytes;
use gix_hash::{Kind as HashKind, ObjectId};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT,
};
use http::{HeaderName, Method, StatusCode};
use std::collections::HashSet;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::git::caps::V2Caps;
use crate::git::line;
use crate::git::ls_refs::{LeftOut, LsRefs, RefLine, to_refs_without};
use crate::git::path::{Endpoint, RepoPath, Service};
use crate::git::pkt::OwnedPacket;
use crate::git::refs::Refs;
use crate::git::request::{Command, CommandRequest, FetchRequest};
use crate::pack::meter::{Meter, Unlimited};

use super::answer::{self, ADVERTISEMENT, REQUEST, RESULT};
use super::body::collect;
use super::pack_stream::{Pace, Packets};
use super::{
    Body, ClientHeaders, Line, Location, Outgoing, Pack, Primary, PrimaryError, Progress, directory,
};

/// The agent that we send. Some hosts let only agents through that begin with `git/`.
pub(super) const USER_AGENT_VALUE: &str = concat!("git/packmirror-", env!("CARGO_PKG_VERSION"));
/// The `agent` capability.
const AGENT: &str = concat!("packmirror/", env!("CARGO_PKG_VERSION"));
/// The most bytes of a capability advertisement; a v0 answer, which lists all refs, may be longer.
const MOST_CAPABILITIES: usize = 64 * 1024;
/// The most bytes of a list of refs: some five million refs.
const MOST_REFS: usize = 512 << 20;
/// What one ref costs beside three times its line: as it arrives, as it is kept, as it is published.
const BYTES_PER_REF: u64 = 400;
/// Over so long a list of refs must come at a minimal pace.
const REFS_PACE: std::time::Duration = std::time::Duration::from_secs(60);
/// Bodies above this many bytes are compressed, as git does (remote-curl.c).
const COMPRESSED_ABOVE: usize = 1024;

/// As whom we ask.
#[derive(Clone, Copy, Debug)]
pub enum Auth<'a> {
    /// With the service credential, if there is one. Never for a client's request.
    Service,
    /// As this client, with nothing of ours.
    Client(&'a ClientHeaders),
}

/// What [`Primary::fetch`] asks for.
#[derive(Clone, Debug)]
pub struct FetchSpec {
    /// The objects whose whole history is wanted; at least one.
    pub wants: Vec<ObjectId>,
    /// Objects that we have with their whole history. All are sent at once, so a caller with very many
    /// (each is 50 to 74 bytes before compression) picks the best.
    pub haves: Vec<ObjectId>,
    /// The repository's hash, as [`Primary::refs`] found it.
    pub hash: HashKind,
}

/// What the primary shows of a repository.
#[derive(Debug, Clone)]
pub struct Seen {
    /// All refs, from one answer.
    pub refs: Refs,
    /// Those that it shows and that are not among them.
    pub left_out: LeftOut,
    /// What it can do.
    pub capabilities: V2Caps,
}

impl Primary {
    /// Asks for all refs the primary shows, but for those of objects that it does not have (`absent`): one coherent answer to one `ls-refs`, with peeled tags, symbolic
    /// refs and an unborn HEAD. Refs that are empty, dangling or misnamed are left out. What it holds stays counted on `meter`, since its refs are what the caller works with.
    ///
    /// A caller that knows what the primary can do (`known`) saves one of two requests. If that is not true any more, the
    /// answer is an error, and the question is to be asked again without it.
    pub async fn look(
        &self,
        repo: &RepoPath,
        auth: Auth<'_>,
        absent: &HashSet<ObjectId>,
        known: Option<&V2Caps>,
        meter: &dyn Meter,
    ) -> Result<Seen, PrimaryError> {
        let limit = self.settings().timeouts.refs;
        let looked = timeout(limit, self.look_for_long(repo, auth, absent, known, meter)).await;
        let looked = looked.unwrap_or_else(|_| {
            Err(PrimaryError::Timeout(format!("its list of refs did not end in {} s", limit.as_secs())))
        });
        match (looked, auth) {
            (Err(error), Auth::Service) => Err(self.explained(repo, error).await),
            (looked, _) => looked,
        }
    }

    /// Makes of a refusal of our own question what an operator can act on.
    async fn explained(&self, repo: &RepoPath, error: PrimaryError) -> PrimaryError {
        match (&self.settings().location, error) {
            (Location::Http(_), PrimaryError::Denied { status }) if self.settings().credential.is_none() => {
                PrimaryError::NeedsCredential { status }
            }
            (Location::Directory(root), PrimaryError::NotFound) => {
                let (root, repo) = (root.clone(), repo.clone());
                let looked = crate::threads::spawn_blocking(move || directory::leads_out(&root, &repo)).await;
                if looked.unwrap_or(false) { PrimaryError::LeadsOut } else { PrimaryError::NotFound }
            }
            (_, error) => error,
        }
    }

    async fn look_for_long(
        &self,
        repo: &RepoPath,
        auth: Auth<'_>,
        absent: &HashSet<ObjectId>,
        known: Option<&V2Caps>,
        meter: &dyn Meter,
    ) -> Result<Seen, PrimaryError> {
        let headers = self.headers(auth).await?;
        let caps = match known {
            Some(known) => known.clone(),
            None => self.capabilities(repo, &headers).await?,
        };
        if !caps.has("ls-refs") {
            return Err(PrimaryError::NoV2);
        }
        let hash = caps.object_format().ok_or_else(|| {
            PrimaryError::Protocol("the repository has an object format that packmirror does not know".into())
        })?;
        let request = LsRefs {
            peel: true,
            symrefs: true,
            unborn: caps.has_feature("ls-refs", "unborn"),
            prefixes: vec![],
        };
        let body = CommandRequest {
            agent: caps.has("agent").then(|| AGENT.into()),
            object_format: caps.has("object-format").then_some(hash),
            ..plainly(Command::LsRefs(request), hash)
        };
        let body = body.encode();

        let mut packets = self.upload_pack(repo, headers, body).await?;
        let mut lines = Vec::new();
        let mut size = 0;
        let mut held = Counted(meter, 0);
        let mut pace = Pace::new(REFS_PACE, "of a list of refs");
        pace.bytes(0);
        loop {
            pace.pending();
            let packet = packets.expect().await?;
            pace.ready()?;
            match packet {
                OwnedPacket::Data(payload) => {
                    pace.bytes(payload.len());
                    size += payload.len();
                    if size > MOST_REFS {
                        return Err(PrimaryError::Protocol(format!(
                            "its list of refs has more than {} MiB",
                            MOST_REFS >> 20
                        )));
                    }
                    held.more(3 * payload.len() as u64 + BYTES_PER_REF)?;
                    lines.push(RefLine::parse(line::text(&payload), hash)?);
                }
                OwnedPacket::Flush => break,
                OwnedPacket::Delim | OwnedPacket::ResponseEnd => {
                    return Err(PrimaryError::Protocol("a section begins inside the list of refs".into()));
                }
            }
        }
        packets.drain().await;
        let (refs, left_out) = to_refs_without(absent, lines, hash)?;
        Ok(Seen { refs, left_out, capabilities: caps })
    }

    /// The same of a primary of which nothing is known, and without a bound on memory.
    pub async fn seen(&self, repo: &RepoPath, auth: Auth<'_>) -> Result<Seen, PrimaryError> {
        self.look(repo, auth, &HashSet::new(), None, &Unlimited).await
    }

    /// The refs alone, see [`Primary::look`].
    pub async fn refs(&self, repo: &RepoPath, auth: Auth<'_>) -> Result<Refs, PrimaryError> {
        Ok(self.seen(repo, auth).await?.refs)
    }

    /// Fetches everything the wants reach and the haves do not, with the service credential: one request, no
    /// negotiation (the haves are the tips that were published last, so there is nothing to find out). The pack may be
    /// thin: its deltas may have bases that are reachable from the haves. `progress` gets the primary's messages.
    pub async fn fetch(
        &self,
        repo: &RepoPath,
        spec: &FetchSpec,
        progress: Option<Progress>,
    ) -> Result<Pack, PrimaryError> {
        if spec.wants.is_empty() {
            return Err(PrimaryError::Protocol("a fetch that wants nothing has no answer".into()));
        }
        let headers = self.headers(Auth::Service).await?;
        let body = fetch_request(spec, progress.is_some());
        let packets = self.upload_pack(repo, headers, body).await?;
        Pack::open(packets, spec.hash, progress, self.settings().timeouts).await
    }

    /// Asks what the server can do (`info/refs`, gitprotocol-v2).
    async fn capabilities(&self, repo: &RepoPath, headers: &HeaderMap) -> Result<V2Caps, PrimaryError> {
        let limit = self.settings().timeouts.question;
        let asked = timeout(limit, async {
            let response = self
                .exchange(Outgoing {
                    line: Line::Own,
                    method: Method::GET,
                    repo: repo.clone(),
                    endpoint: Endpoint::InfoRefs(Some(Service::UploadPack)),
                    query: None,
                    headers: headers.clone(),
                    body: Body::Empty,
                })
                .await?;
            if response.status == StatusCode::OK && !answer::is_type(&response.headers, ADVERTISEMENT) {
                let kind = answer::kind(&response.headers);
                let body = collect(response.body, MOST_CAPABILITIES).await?;
                return Err(if is_dumb(&body.unwrap_or_default()) {
                    PrimaryError::Dumb
                } else {
                    PrimaryError::NotGit(format!("{kind} instead of {ADVERTISEMENT}"))
                });
            }
            let response = answer::accept(response, ADVERTISEMENT)?;
            collect(response.body, MOST_CAPABILITIES).await
        });
        let body = asked.await.map_err(|_| too_late(limit))??.ok_or(PrimaryError::NoV2)?;
        Ok(V2Caps::parse(&body)?)
    }

    /// Posts a command and gives the packets of the answer.
    async fn upload_pack(
        &self,
        repo: &RepoPath,
        mut headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Packets, PrimaryError> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(REQUEST));
        headers.insert(ACCEPT, HeaderValue::from_static(RESULT));
        let body = if body.len() > COMPRESSED_ABOVE {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            gzip(&body).await?
        } else {
            body.into()
        };
        let response = self
            .exchange(Outgoing {
                line: Line::Own,
                method: Method::POST,
                repo: repo.clone(),
                endpoint: Endpoint::UploadPack,
                query: None,
                headers,
                body: Body::Whole(body),
            })
            .await?;
        Ok(Packets::over(answer::accept(response, RESULT)?.body))
    }

    /// The headers of a request of our own.
    pub(super) async fn headers(&self, auth: Auth<'_>) -> Result<HeaderMap, PrimaryError> {
        let mut headers = match auth {
            Auth::Client(client) => client.identity(),
            Auth::Service => HeaderMap::new(),
        };
        if let (Auth::Service, Some(credential)) = (auth, &self.settings().credential) {
            let value = credential.authorization().await;
            headers.insert(AUTHORIZATION, value.map_err(|bad| PrimaryError::Settings(bad.to_string()))?);
        }
        common_headers(&mut headers);
        Ok(headers)
    }
}

/// Counts on a meter in large pieces; what is counted stays so.
struct Counted<'m>(&'m dyn Meter, u64);

impl Counted<'_> {
    fn more(&mut self, bytes: u64) -> Result<(), PrimaryError> {
        const PIECE: u64 = 64 * 1024;
        if bytes > self.1 {
            let piece = bytes.max(PIECE);
            self.0.hold(piece)?;
            self.1 += piece;
        }
        self.1 -= bytes;
        Ok(())
    }
}

/// Whether an answer is the file `info/refs` that `git update-server-info` makes.
fn is_dumb(body: &[u8]) -> bool {
    let first = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some(tab) = first.iter().position(|byte| *byte == b'\t') else { return false };
    ObjectId::from_hex(&first[..tab]).is_ok() && first[tab + 1..].starts_with(b"refs/")
}

/// What every request of our own says.
pub(super) fn common_headers(headers: &mut HeaderMap) {
    headers.insert(HeaderName::from_static("git-protocol"), HeaderValue::from_static("version=2"));
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
}

/// A request that names nothing the server might not know: `object-format` only where it is not the default.
pub(super) fn plainly(command: Command, hash: HashKind) -> CommandRequest {
    CommandRequest {
        command,
        agent: None,
        session_id: None,
        object_format: (hash != HashKind::Sha1).then_some(hash),
        server_options: Vec::new(),
        unknown: Vec::new(),
    }
}

fn fetch_request(spec: &FetchSpec, progress: bool) -> Vec<u8> {
    let request = FetchRequest {
        wants: spec.wants.clone(),
        haves: spec.haves.clone(),
        done: true,
        thin_pack: true,
        ofs_delta: true,
        no_progress: !progress,
        ..FetchRequest::default()
    };
    plainly(Command::Fetch(Box::new(request)), spec.hash).encode()
}

async fn gzip(body: &[u8]) -> Result<Bytes, PrimaryError> {
    let mut packed = Vec::with_capacity(body.len() / 2);
    let mut encoder = GzipEncoder::with_quality(body, Level::Fastest);
    let done = encoder.read_to_end(&mut packed).await;
    done.map_err(|error| PrimaryError::Protocol(format!("the request could not be compressed: {error}")))?;
    Ok(packed.into())
}

pub(super) fn too_late(limit: std::time::Duration) -> PrimaryError {
    PrimaryError::Timeout(format!("no answer in {} s", limit.as_secs_f32()))
}
