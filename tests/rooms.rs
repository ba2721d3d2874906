//! The rooms of `src/` and the arrows between them, as docs/architecture.md has them: an import that points up fails.

use std::collections::{BTreeMap, BTreeSet};

use super::{code, is_for_tests, name, sources, without_tests, words};

/// The rooms from the outside in: each uses only rooms behind it.
const ORDER: &[&str] = &[
    "cli",
    "node",
    "serve",
    "work",
    "answer",
    "mirror",
    "config",
    "primary",
    "local",
    "store",
    "budget",
    "fair",
    "pack",
    "git",
    "telemetry",
    "folder",
    "retry",
    "text",
    "threads",
    "tls",
    "umask",
    "boot",
];

/// Rooms that use no more than these.
const APART: &[(&str, &[&str])] = &[
    ("git", &[]),
    ("pack", &["git"]),
    ("primary", &["pack", "git", "telemetry", "retry", "text", "threads", "tls", "umask"]),
    ("store", &["git", "telemetry", "folder", "retry", "text", "threads", "tls", "boot"]),
];

/// Rooms beside each other: a node may have one without the other.
const NEVER: &[(&str, &str)] = &[("serve", "work")];

/// Arrows that point up until what they need has moved: from, to, why.
const DEBTS: &[(&str, &str, &str)] = &[];

/// The room of a file of `src/`, if it is in one.
fn room(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    let room = rest.split('/').next()?.trim_end_matches(".rs");
    (!["lib", "main"].contains(&room)).then_some(room)
}

/// The parts of `{a::b, c}` or the path itself, at the front of the code.
fn targets(code: &str) -> Vec<&str> {
    let Some(group) = code.strip_prefix('{') else { return vec![code] };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                found.push(group[start..i].trim());
                start = i + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found.retain(|part| !part.is_empty());
    found
}

/// The first names of all paths that begin with `prefix`, such as `crate::`.
fn first_names<'c>(code: &'c str, prefix: &'c str) -> BTreeSet<&'c str> {
    let starts = words(code, prefix.trim_end_matches("::"));
    let paths = starts.filter_map(move |at| code[at..].strip_prefix(prefix));
    paths.flat_map(targets).map(name).filter(|name| !name.is_empty()).collect()
}

/// Which room uses which, with a file that does.
fn arrows(files: &[(String, String)]) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for (path, text) in files {
        let Some(from) = room(path).filter(|_| !is_for_tests(path)) else { continue };
        let code = without_tests(&code(text));
        for to in first_names(&code, "crate::") {
            if to != from {
                found.entry((from.to_owned(), to.to_owned())).or_insert_with(|| path.clone());
            }
        }
    }
    found
}

/// What is wrong with the arrows.
fn wrong(arrows: &BTreeMap<(String, String), String>) -> Vec<String> {
    let rank = |room: &str| ORDER.iter().position(|known| *known == room);
    let mut wrong = Vec::new();
    for ((from, to), path) in arrows {
        let is_debt = DEBTS.iter().any(|(f, t, _)| f == from && t == to);
        let beside = NEVER.contains(&(from.as_str(), to.as_str()));
        let fits = match (rank(from), rank(to)) {
            _ if beside => false,
            (Some(from), Some(to)) => from < to,
            _ => false,
        };
        let apart = APART.iter().find(|(room, _)| room == from);
        if !is_debt && (!fits || apart.is_some_and(|(_, may)| !may.contains(&to.as_str()))) {
            wrong.push(format!("{path}: {from} uses {to}"));
        }
    }
    wrong
}

/// Packs are opened with a grant, but for the node's own work.
#[test]
fn only_work_reads_packs_without_a_grant() {
    let readers = sources("src").into_iter().filter(|(_, text)| text.contains("blocks_for_work"));
    let strangers: Vec<String> = readers
        .map(|(path, _)| path)
        .filter(|path| !path.starts_with("src/work/") && path != "src/mirror/snapshot.rs")
        .collect();
    assert_eq!(strangers, [""; 0]);
}

/// A grant becomes one for another spelling only where it is known which spellings are one repository.
#[test]
fn only_mirror_knows_of_spellings() {
    let users = sources("src").into_iter().filter(|(_, text)| text.contains(".known_as("));
    assert_eq!(users.map(|(path, _)| path).collect::<Vec<_>>(), ["src/mirror/mod.rs"]);
}

#[test]
fn arrows_point_down() {
    let arrows = arrows(&sources("src"));
    assert!(arrows.len() > 20, "imports are found: {arrows:?}");
    assert_eq!(wrong(&arrows), [] as [String; 0], "see docs/architecture.md and the lists in tests/rooms.rs");
    for (from, to, why) in DEBTS {
        assert!(arrows.contains_key(&((*from).into(), (*to).into())), "{from} uses {to} no longer: {why}");
    }
}

#[test]
fn an_arrow_that_points_up_is_found() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    for (path, text, bad) in [
        ("src/git/a.rs", "use crate::git::b::C;", false),
        ("src/git/a.rs", "use crate::pack::Gid;", true),
        ("src/pack/a.rs", "use crate::{git::b, text::chain};", true),
        ("src/store/a.rs", "fn f() { crate::primary::g() }", true),
        ("src/primary/a.rs", "use crate::store::Bucket;", true),
        ("src/mirror/a.rs", "use crate::{store::{Bucket, BlobId}, primary::Primary};", false),
        ("src/mirror/a.rs", "pub use crate::serve::App;", true),
        ("src/mirror/a.rs", "// crate::serve\n#[cfg(test)] mod tests { use crate::serve::App; }", false),
        ("src/cli/a.rs", "use crate::unheard_of::X;", true),
    ] {
        assert_eq!(!wrong(&arrows(&[file(path, text)])).is_empty(), bad, "{path}: {text}");
    }
}

/// Which module of a room uses which other, a folder of the room being one module; what the room's own file names again
/// counts as the module it comes from.
fn modules(files: &[(String, String)], room: &str) -> BTreeMap<String, BTreeSet<String>> {
    let folder = format!("src/{room}/");
    // The module, the way from the file up to the room, and the code.
    let inside = |(path, text): &(String, String)| {
        let path = path.strip_prefix(&folder)?.strip_suffix(".rs")?;
        let up = path.matches('/').count() + usize::from(!path.ends_with("/mod"));
        let module = path.split('/').next()?.to_owned();
        Some((module, "super::".repeat(up), without_tests(&code(text))))
    };
    let codes: Vec<(String, String, String)> =
        files.iter().filter(|(path, _)| !is_for_tests(path)).filter_map(inside).collect();
    let mut named_again: BTreeMap<&str, &str> = BTreeMap::new();
    let own = codes.iter().filter(|(module, ..)| module == "mod");
    for at in own.flat_map(|(.., code)| words(code, "use").map(move |at| &code[at + 3..])) {
        let mut names =
            at[..at.find(';').unwrap_or(at.len())].split(|c: char| !c.is_alphanumeric() && c != '_');
        let module = names.find(|name| !name.is_empty()).unwrap_or_default();
        named_again.extend(names.filter(|name| !name.is_empty()).map(|name| (name, module)));
    }
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, up, code) in codes.iter().filter(|(module, ..)| module != "mod") {
        let by_room = format!("crate::{room}::");
        let names = first_names(code, up).into_iter().chain(first_names(code, &by_room));
        let names = names.map(|name| named_again.get(name).copied().unwrap_or(name));
        let names = names.filter(|name| codes.iter().any(|(known, ..)| known == name) && name != module);
        uses.entry(module.clone()).or_default().extend(names.map(str::to_owned));
    }
    uses
}

/// The modules that lead back to themselves, or to such.
fn circles(mut uses: BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    loop {
        let ends: Vec<String> =
            uses.iter().filter(|(_, to)| to.is_empty()).map(|(name, _)| name.clone()).collect();
        if ends.is_empty() {
            return uses.into_keys().collect();
        }
        for end in ends {
            uses.remove(&end);
            uses.values_mut().for_each(|to| _ = to.remove(&end));
        }
    }
}

#[test]
fn the_modules_of_git_form_no_circle() {
    let uses = modules(&sources("src"), "git");
    assert!(uses.len() > 10 && uses["fetch"].contains("args"), "imports are found: {uses:?}");
    assert_eq!(circles(uses), [] as [String; 0]);
}

#[test]
fn the_groups_of_pack_form_no_circle() {
    let uses = modules(&sources("src"), "pack");
    for (from, to) in [("write", "plan"), ("plan", "history"), ("history", "filter"), ("filter", "layer")] {
        assert!(uses[from].contains(to), "imports are found: {uses:?}");
    }
    assert_eq!(circles(uses), [] as [String; 0]);
}

#[test]
fn a_circle_is_found() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let files = [
        file("src/git/mod.rs", "mod a; mod b; mod c; pub use b::{B, Other as Also};"),
        file("src/git/a.rs", "use super::{B, c};"),
        file("src/git/b.rs", "use crate::git::a::A;"),
        file("src/git/c.rs", "use super::super::x;"),
    ];
    assert_eq!(circles(modules(&files, "git")), ["a", "b"]);
    assert_eq!(circles(modules(&files[2..], "git")), [] as [String; 0]);
    let mut files = vec![
        file("src/pack/mod.rs", "mod high; mod low; pub use low::deep::{deeper, Deep as Also};"),
        file("src/pack/high/mod.rs", "use super::low;"),
        file("src/pack/high/a.rs", "use super::b; use crate::pack::Also;"),
        file("src/pack/low/deep/mod.rs", "use super::super::low; use super::high;"),
        file("src/pack/low/deep/a.rs", "use super::high;"),
    ];
    assert_eq!(circles(modules(&files, "pack")), [] as [String; 0]);
    files.push(file("src/pack/low/deep/b.rs", "use super::super::super::high::A;"));
    assert_eq!(circles(modules(&files, "pack")), ["high", "low"]);
}
