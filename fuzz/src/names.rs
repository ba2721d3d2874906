//! Names of refs: those of symbolic refs and of where they lead, in lists of refs and in records.
use bstr::{BStr, BString, ByteSlice};
use gix_hash::{Kind as HashKind, ObjectId};

use crate::bound::within;
use crate::byte;
use crate::git::{Head, Ref, Refs, refname};
use crate::store::{BlobId, Generation, read};

/// A record with a place for what a symbolic ref is called and where it leads.
const RECORD: &[u8] = include_bytes!("../seeds/records/generation-real");

/// The target: the first byte chooses, the rest is lines of names.
pub fn run(mut data: &[u8]) {
    let choice = byte(&mut data).unwrap_or(0);
    let names: Vec<&BStr> = data.split(|&b| b == b'\n').map(BStr::new).collect();
    within(1 << 20, || {
        names.iter().for_each(|name| a_name(name));
        if choice & 1 == 0 { a_list(&names) } else { a_record(&names) }
    });
}

/// What is well formed is safe to show in every answer, and its text means nothing else.
fn a_name(name: &BStr) {
    assert_eq!(refname::from_text(&refname::to_text(name)).as_ref().map(|n| n.as_bstr()), Some(name));
    if refname::is_well_formed(name) {
        assert!(!name.iter().any(|b| b.is_ascii_control() || b" ~^:?*[\\".contains(b)), "{name:?}");
        assert!(!name.contains_str("..") && !name.contains_str("//") && !name.contains_str("@{"));
        assert!(name.len() <= refname::MAX_NAME && !name.ends_with(b".lock") && !name.starts_with(b"/"));
        assert!(name.split(|b| *b == b'/').all(|part| !part.is_empty() && !part.starts_with(b".")));
    }
}

/// A list holds only names that are some, and finds each.
fn a_list(names: &[&BStr]) {
    let oid = ObjectId::null(HashKind::Sha1);
    let (plain, symbolic) = names.split_at(names.len() / 2);
    let refs = plain.iter().map(|name| Ref { name: (*name).to_owned(), oid, peeled: None }).collect();
    let pairs = symbolic.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect();
    let target: BString = names.last().map_or_else(BString::default, |name| (*name).to_owned());
    let Ok(refs) = Refs::new(HashKind::Sha1, Head::Symbolic { target }, refs, pairs) else { return };
    for known in &refs.refs {
        assert!(refname::is_ref(&known.name), "{:?}", known.name);
        assert_eq!(refs.find(&known.name), Some(known));
        if let Some(target) = refs.symref_target(&known.name) {
            assert!(refname::is_well_formed(target), "{target:?}");
        }
    }
    let back = Refs::parse_packed_refs(&refs.packed_refs(), HashKind::Sha1).expect("our own list");
    assert_eq!(back, refs.refs);
}

/// A record is read only if the names in it are some.
fn a_record(names: &[&BStr]) {
    let line = RECORD.split_inclusive(|&b| b == b'\n').next().unwrap_or_default();
    let line = &line[usize::from(line.first() != Some(&b'{'))..];
    let Ok(mut record) = serde_json::from_slice::<serde_json::Value>(line) else { return };
    let text =
        |n: usize| serde_json::Value::from(names.get(n).map(|name| name.to_str_lossy()).unwrap_or_default());
    record["head"] = serde_json::json!({ "symbolic": text(0) });
    record["symrefs"] = serde_json::json!([[text(1), text(2)]]);
    let mut line = serde_json::to_vec(&record).expect("a record");
    line.push(b'\n');
    let bytes = [&line[..], format!("\"{}\"\n", BlobId::of(&line)).as_bytes()].concat();
    let Ok(outline) = serde_json::from_slice::<Generation>(&line) else { return };
    let Ok(record) = read(&bytes, &outline.repo.key(), outline.number) else { return };
    if let Head::Symbolic { target } = &record.head {
        assert!(refname::is_well_formed(target.as_bstr()), "{target:?}");
    }
}
