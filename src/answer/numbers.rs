//! The objects that a request names, as numbers of the snapshot it is answered from: each is looked up once.
//!
//! Relies on: wants that were found published (`reaching`). Elsewhere: what the numbers are needed for (`plans`, `prepare`).

use bstr::{BStr, ByteSlice};
use gix_hash::ObjectId;

use crate::git::request::FetchRequest;
use crate::git::response::unknown_ref;
use crate::mirror::snapshot::{Granted, Snapshot};
use crate::pack::Gid;

/// The objects that one request names, in one snapshot.
#[derive(Debug)]
pub struct Numbers {
    /// What is wanted, by id and by name.
    pub wants: Vec<Gid>,
    /// What the refs that are wanted by name point to, in the order of the request.
    pub want_refs: Vec<ObjectId>,
    /// For each have of the request its object, if there is one here.
    pub haves: Vec<Option<Gid>>,
    /// For each shallow line of the request its object, if there is one here.
    pub shallow: Vec<Option<Gid>>,
}

impl Numbers {
    /// Looks up what `request` names beside its wants, whose numbers are `wants`. An error refuses it in git's words.
    pub fn of(granted: &Granted, request: &FetchRequest, mut wants: Vec<Gid>) -> Result<Self, String> {
        let mut want_refs = Vec::with_capacity(request.want_refs.len());
        for name in &request.want_refs {
            let oid = named(granted, name.as_bstr()).ok_or_else(|| unknown_ref(name.as_bstr()))?;
            want_refs.push(oid);
            wants.extend(granted.stack.lookup(&oid));
        }
        let each = |oids: &[ObjectId]| oids.iter().map(|oid| granted.stack.lookup(oid)).collect();
        Ok(Self { wants, want_refs, haves: each(&request.haves), shallow: each(&request.shallow) })
    }
}

/// What a full ref name, or HEAD, points to.
fn named(granted: &Granted, name: &BStr) -> Option<ObjectId> {
    if name == "HEAD" { granted.refs.head_oid() } else { granted.refs.find(name).map(|r| r.oid) }
}

/// The numbers of `oids`; none if one of them is not here.
pub fn all(snapshot: &Snapshot, oids: &[ObjectId]) -> Option<Vec<Gid>> {
    oids.iter().map(|oid| snapshot.stack.lookup(oid)).collect()
}
