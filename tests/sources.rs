//! What holds for the sources themselves: nothing random in tests but from the seed, no recursion that is not known, and
//! no import that points up ([`rooms`]).
//!
//! They read the text, not the types: they find what somebody writes without thinking of it, and a rule that they break
//! wrongly gets a line in the list beside it.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

mod rooms;

/// Functions that call themselves, alone or in turn, by file; and what bounds them.
const RECURSIVE: &[(&str, &str, &str)] = &[
    ("src/git/filter.rs", "parse", MAX_NESTING),
    ("src/git/filter.rs", "parse_combine", MAX_NESTING),
    ("src/git/filter.rs", "Filter::put", MAX_NESTING),
    ("src/git/filter.rs", "Filter::spec", MAX_NESTING),
    ("src/git/filter.rs", "Filter::names_a_blob", MAX_NESTING),
    (
        "src/config/layers.rs",
        "Layer::walk",
        "the known keys are two tables deep, and settings are no bytes from outside",
    ),
    ("src/cli/exit.rs", "ExitCode::from", NOT_ITSELF),
    ("src/primary/error.rs", "PrimaryError::is_transient", NOT_ITSELF),
    ("src/primary/error.rs", "PrimaryError::retry_after", NOT_ITSELF),
    ("src/store/error.rs", "StoreError::is_transient", NOT_ITSELF),
];

/// Types that hold values of their own kind, so that whatever follows them is recursive; and what bounds them.
const RECURSIVE_TYPES: &[(&str, &str, &str)] = &[("src/git/filter.rs", "Filter", MAX_NESTING)];

const MAX_NESTING: &str = "filters nest 16 deep, or are refused";
const NOT_ITSELF: &str = "calls another of the same name";

/// All sources below a folder of the project: path, and text with nothing but ASCII.
fn sources(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((name, text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

/// Says whether a file of `src/` is there for tests alone.
fn is_for_tests(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap();
    ["tests.rs", "testing.rs", "oracle.rs", "suite.rs"].contains(&name) || name.ends_with("_tests.rs")
}

/// The text without comments, and with empty strings and characters.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
    let find =
        |from: usize, what: &str| text[from..].find(what).map_or(text.len(), |n| from + n + what.len());
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let (mut out, mut i) = (String::new(), 0);
    while i < bytes.len() {
        let before = if i > 0 { at(i - 1) } else { 0 };
        let raw = if is_word(before) { 0 } else { usize::from(at(i) == b'b') };
        let hashes = bytes[(i + raw + 1).min(bytes.len())..].iter().take_while(|byte| **byte == b'#').count();
        if text[i..].starts_with("//") {
            i = find(i, "\n");
            out.push('\n');
        } else if text[i..].starts_with("/*") {
            i = find(i, "*/");
        } else if !is_word(before) && at(i + raw) == b'r' && at(i + raw + 1 + hashes) == b'"' {
            i = find(i + raw + hashes + 2, &format!("\"{}", "#".repeat(hashes)));
            out.push_str("\"\"");
        } else if at(i) == b'"' {
            i += 1;
            while i < bytes.len() && at(i) != b'"' {
                i += if at(i) == b'\\' { 2 } else { 1 };
            }
            i += 1;
            out.push_str("\"\"");
        } else if at(i) == b'\'' && (at(i + 1) == b'\\' || text[i + 1..].chars().nth(1) == Some('\'')) {
            // A character, not a lifetime.
            i += if at(i + 1) == b'\\' { 3 } else { 2 };
            i = find(i.min(text.len()), "'");
            out.push_str("' '");
        } else {
            let next = text[i..].chars().next().unwrap();
            out.push(next);
            i += next.len_utf8();
        }
    }
    out
}

/// The place behind the brace that closes the one at `open`.
fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (i, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return i + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// The code without what is marked `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut code = code.to_owned();
    while let Some(start) = code.find("#[cfg(test)]") {
        // An item ends with its block or a semicolon, a variant or an arm with a comma.
        let mut depth = 0;
        let ends = |(_, c): &(usize, char)| {
            depth += i32::from(matches!(c, '(' | '[')) - i32::from(matches!(c, ')' | ']'));
            depth == 0 && matches!(c, '{' | ';' | ',')
        };
        let end = code[start..].char_indices().find(ends).map_or(code.len(), |(n, _)| start + n);
        let end =
            if code[end..].starts_with('{') { block_end(&code, end) } else { (end + 1).min(code.len()) };
        code.replace_range(start..end, "");
    }
    code
}

/// The places of a word.
fn words<'c>(code: &'c str, word: &'c str) -> impl Iterator<Item = usize> + 'c {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word))
}

/// The name that begins at the front.
fn name(code: &str) -> &str {
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    &code[..end]
}

/// The name that ends at the end.
fn last_name(code: &str) -> &str {
    let start = code.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |n| n + 1);
    &code[start..]
}

struct Function<'c> {
    /// The type it belongs to, empty for none.
    of: String,
    name: &'c str,
    body: &'c str,
}

fn functions(code: &str) -> Vec<Function<'_>> {
    let mut impls = Vec::new();
    for at in words(code, "impl").chain(words(code, "trait")) {
        let Some(open) = code[at..].find(['{', ';']).map(|n| at + n) else { continue };
        let head = code[at..open].split(" where ").next().unwrap().trim();
        if head.contains('(') || code[open..].starts_with(';') {
            // `impl Trait` in a signature.
            continue;
        }
        let of = head.rsplit(" for ").next().unwrap();
        let of = of.trim_start_matches("impl").trim_start_matches("trait").trim();
        // Generics in front, then a path.
        let of = if of.starts_with('<') { of.split_once("> ").map_or(of, |(_, rest)| rest) } else { of };
        let of = last_name(of.split('<').next().unwrap().trim_end()).to_owned();
        impls.push((open, block_end(code, open), of));
    }
    let mut found = Vec::new();
    for at in words(code, "fn") {
        let name = name(code[at + 2..].trim_start());
        let mut depth = 0;
        let body = code[at..].char_indices().find(|(_, c)| {
            depth += i32::from(matches!(c, '(' | '[')) - i32::from(matches!(c, ')' | ']'));
            depth == 0 && matches!(c, '{' | ';')
        });
        let Some((open, '{')) = body else { continue };
        let body = &code[at + open..block_end(code, at + open)];
        let mut of = impls.iter().filter(|(start, end, _)| (*start..*end).contains(&at)).map(|(_, _, of)| of);
        found.push(Function { of: of.next_back().cloned().unwrap_or_default(), name, body });
    }
    found
}

/// Structs and enums whose definition names the type itself.
fn recursive_types(code: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for at in words(code, "enum").map(|at| at + 4).chain(words(code, "struct").map(|at| at + 6)) {
        let name = name(code[at..].trim_start());
        let Some(open) = code[at..].find(['{', '(', ';']).map(|n| at + n) else { continue };
        let end = match &code[open..=open] {
            "{" => block_end(code, open),
            "(" => code[open..].find(';').map_or(code.len(), |n| open + n),
            _ => continue,
        };
        if !name.is_empty() && words(&code[open..end], name).next().is_some() {
            found.insert(name);
        }
    }
    found
}

/// Methods that call what they are given.
const ADAPTORS: &[&str] = &[
    "map",
    "for_each",
    "try_for_each",
    "flat_map",
    "filter_map",
    "find_map",
    "and_then",
    "any",
    "all",
    "map_err",
];

/// For each function the functions of the same file that it seems to call.
fn calls(functions: &[Function<'_>], recursive_types: &BTreeSet<&str>) -> Vec<BTreeSet<usize>> {
    let called = |caller: &Function<'_>| {
        let mut called = BTreeSet::new();
        for (callee, function) in functions.iter().enumerate() {
            for at in words(caller.body, function.name) {
                let (before, after) =
                    (caller.body[..at].trim_end(), &caller.body[at + function.name.len()..]);
                let mentioned = match (before.strip_suffix("::"), before.strip_suffix('.')) {
                    (Some(path), _) => match last_name(path.split('<').next().unwrap_or(path)) {
                        "Self" => function.of == caller.of,
                        of => !of.is_empty() && function.of == of,
                    },
                    (None, Some(receiver)) if last_name(receiver) == "self" => function.of == caller.of,
                    // What follows a value of a recursive type; other receivers are mostly fields of other types.
                    (None, Some(_)) => recursive_types.contains(function.of.as_str()),
                    (None, None) => function.of.is_empty() && last_name(before) != "fn",
                };
                let is_call = after.starts_with('(') || after.starts_with("::<") || before.ends_with("::");
                // A free function is also called where it is handed on, as in `.map(part)`.
                let handed_on = function.of.is_empty()
                    && after.starts_with(')')
                    && before.strip_suffix('(').is_some_and(|before| ADAPTORS.contains(&last_name(before)));
                if mentioned && (is_call || handed_on) {
                    called.insert(callee);
                }
            }
        }
        called
    };
    functions.iter().map(called).collect()
}

/// The functions of a file from which calls lead back to them.
fn recursive(code: &str) -> BTreeSet<String> {
    let functions = functions(code);
    let calls = calls(&functions, &recursive_types(code));
    let leads_back = |start: usize| {
        let mut seen = BTreeSet::new();
        let mut waiting: Vec<usize> = calls[start].iter().copied().collect();
        while let Some(at) = waiting.pop() {
            if seen.insert(at) {
                waiting.extend(&calls[at]);
            }
        }
        seen.contains(&start)
    };
    let name =
        |f: &Function<'_>| if f.of.is_empty() { f.name.to_owned() } else { format!("{}::{}", f.of, f.name) };
    (0..functions.len()).filter(|&n| leads_back(n)).map(|n| name(&functions[n])).collect()
}

/// A simulation lets one thread run at a time, so it has to know of all jobs.
#[test]
fn jobs_begin_in_one_place() {
    let strangers: Vec<String> = sources("src")
        .into_iter()
        .filter(|(path, _)| path != "src/threads.rs" && !is_for_tests(path))
        .filter(|(_, text)| without_tests(&code(text)).contains("task::spawn_blocking"))
        .map(|(path, _)| path)
        .collect();
    assert!(strangers.is_empty(), "use threads::spawn_blocking: {strangers:?}");
}

#[test]
fn recursion_is_known_and_bounded() {
    let mut found: BTreeMap<(String, String), &str> = BTreeMap::new();
    for (path, text) in sources("src") {
        if is_for_tests(&path) {
            continue;
        }
        let code = without_tests(&code(&text));
        found.extend(recursive(&code).into_iter().map(|name| ((path.clone(), name), "calls itself")));
        let types = recursive_types(&code);
        found.extend(types.into_iter().map(|name| ((path.clone(), name.to_owned()), "holds its own kind")));
    }
    for (path, name, bound) in RECURSIVE.iter().chain(RECURSIVE_TYPES) {
        let known = found.remove(&(path.to_string(), name.to_string()));
        assert!(
            known.is_some(),
            "{name} of {path} is not recursive any more ({bound}): take it off the list"
        );
    }
    assert!(
        found.is_empty(),
        "bytes from outside can drive recursion off the stack: make it a loop, or name its bound in the list: {found:#?}"
    );
}

#[test]
fn recursion_is_found() {
    let text = r##"
        // fn a() { a() }
        fn a(n: u32) -> &'static str { if n > 0 { b(n - 1) } else { r#"a("# } }
        fn b(n: u32) -> char { a(n).chars().map(|_| '"').next().unwrap_or('\'') }
        fn c() { "d()"; d::<u8>() }
        fn d<T>() {}
        fn handed(list: &[u8]) { list.iter().for_each(handed_on) }
        fn handed_on(byte: &u8) { handed(&[*byte]) }
        struct Flat(Vec<u8>);
        impl Flat {
            fn len(&self) -> usize { self.0.len() }
            fn walk(&mut self) { self.deeper() }
            fn deeper(&mut self) { Self::walk(self) }
            fn loops(&self) { loop {} }
        }
        enum Tree { Leaf, Node(Vec<Tree>) }
        impl<'a> Visit<'a> for Tree {
            fn depth(&self) -> usize { match self { Self::Leaf => 0, Self::Node(all) => all.iter().map(|one| one.depth()).max().unwrap() } }
        }
        #[cfg(test)]
        mod tests { fn e() { e() } }
    "##;
    let code = without_tests(&code(text));
    let found: Vec<String> = recursive(&code).into_iter().collect();
    assert_eq!(found, ["Flat::deeper", "Flat::walk", "Tree::depth", "a", "b", "handed", "handed_on"]);
    assert_eq!(recursive_types(&code).into_iter().collect::<Vec<_>>(), ["Tree"]);
}

/// The cells of a table's rows, below the line with the names of its columns.
fn rows(page: &str, names: &str) -> Vec<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join(page)).unwrap();
    let lines = text.lines().skip_while(|line| *line != names).skip(2);
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    lines.take_while(|line| line.starts_with('|')).map(cells).collect()
}

/// Each invariant has a mutant, and the test that finds it is there.
#[test]
fn invariants_are_known_to_be_checked() {
    let invariants = rows("docs/architecture.md", "| Invariant | Where |");
    let mutants = rows("docs/invariants.md", "| Invariant | Mutant | Test |");
    assert!(invariants.len() > 10 && mutants.len() >= invariants.len(), "the tables are found");
    let has_none =
        |invariant: &&String| !mutants.iter().any(|mutant| mutant[0].starts_with(invariant.as_str()));
    let without: Vec<&String> = invariants.iter().map(|row| &row[0]).filter(has_none).collect();
    assert!(without.is_empty(), "give each a mutant, and a row in docs/invariants.md: {without:#?}");
    // Without the white space at the beginning of lines.
    let plain = |text: &str| text.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
    let all: Vec<String> =
        sources("src").into_iter().chain(sources("tests")).map(|(_, text)| plain(&code(&text))).collect();
    for mutant in &mutants {
        let test = mutant[2].split('`').nth(1).unwrap_or_default();
        let head = format!("#[test]\nfn {test}() {{");
        let is_there = all.iter().any(|code| code.contains(&head));
        assert!(is_there, "docs/invariants.md names a test that is not there: `{test}`");
    }
}

#[test]
fn nothing_in_tests_is_random_but_from_the_seed() {
    const SEED: &str = "tests/seed/mod.rs";
    let mut wrong = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        let code = code(&text);
        for (at, _) in code.match_indices("proptest! {").chain(code.match_indices("proptest!(")) {
            if !code[at + "proptest! {".len()..]
                .trim_start()
                .starts_with("#![proptest_config(crate::seed::cases(")
            {
                wrong.push(format!("{path}: a proptest! that does not begin with crate::seed::cases"));
            }
        }
        // Of the product itself only the part behind its tests' mark is a test.
        let tests = match code.find("#[cfg(test)]\nmod tests") {
            _ if path == SEED => "",
            _ if path.starts_with("tests/") || is_for_tests(&path) => &code,
            Some(at) => &code[at..],
            None => "",
        };
        let random = [
            "rand::random",
            "random()",
            "make_rng",
            "thread_rng",
            "rand::rng(",
            "getrandom",
            "RandomState",
            "TestRunner",
        ];
        let used = random.iter().filter(|word| tests.contains(**word));
        wrong.extend(used.map(|word| format!("{path}: {word} in a test")));
        if path != "tests/sources.rs" && (tests.len() == code.len() || code.contains("proptest!")) {
            let read = ["/dev/urandom", "/dev/random", "RngSeed", "ProptestConfig"]
                .iter()
                .filter(|word| text.contains(**word));
            wrong.extend(read.filter(|_| path != SEED).map(|word| format!("{path}: {word} in a test")));
        }
    }
    assert!(wrong.is_empty(), "a red run must be a change's fault: take it from {SEED}: {wrong:#?}");
}
