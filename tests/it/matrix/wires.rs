//! Requests as other clients send them, byte by byte: answers must be the same line by line, and packs hold the
//! same objects.
use std::path::Path;

use super::town::Town;
use crate::git::git;
use crate::oracle::from_bucket;
use crate::shapes;
use crate::wire;

/// The objects of a pack, in a repository that has those of `base`; or what is wrong with it.
fn contents(town: &Town, pack: &[u8], thin: bool) -> Result<Vec<String>, String> {
    let (g, dir) = town.world.client("pack");
    let format = town.repo.git().run("rev-parse --show-object-format").line();
    g.run(&format!("init -q --bare --object-format={format} ."));
    if thin {
        std::fs::write(dir.join("objects/info/alternates"), town.past.join("objects").display().to_string())
            .unwrap();
    }
    let mut args = vec!["index-pack", "--stdin"];
    if thin {
        args.push("--fix-thin");
    }
    let done = g.with_input(&args, pack);
    if !done.ok() {
        return Err(done.stderr);
    }
    let idx = std::fs::read_dir(dir.join("objects/pack")).unwrap().flatten().map(|e| e.path());
    let idx = idx.into_iter().find(|p| p.extension().is_some_and(|e| e == "idx")).ok_or("no idx")?;
    let listed = g.with_input(&["show-index"], &std::fs::read(idx).unwrap());
    let mut ids: Vec<String> =
        listed.lines().iter().filter_map(|l| l.split(' ').nth(1).map(str::to_owned)).collect();
    ids.sort();
    Ok(ids)
}

/// What differs between the answers to one request. `surplus`: the mirror may send a little more.
fn differ(town: &Town, headers: &[(&str, &str)], body: &[u8], banded: bool, thin: bool) -> String {
    let path = format!("/{}/git-upload-pack", town.repo.path);
    let ask = |address: &str| wire::post(address, &path, headers, body).expect("an answer");
    let (ours, theirs) = (ask(town.primary.address()), ask(town.node.address()));
    let mut out = String::new();
    if ours.status != theirs.status {
        out.push_str(&format!("  status {} / {} {}\n", ours.status, theirs.status, theirs.text()));
    }
    if ours.header("content-type") != theirs.header("content-type") {
        let kinds = (ours.header("content-type"), theirs.header("content-type"));
        out.push_str(&format!("  content type {kinds:?}\n"));
    }
    if !theirs.complete {
        out.push_str("  the answer is cut\n");
    }
    let (a, b) = (wire::fetched(&ours.body, banded), wire::fetched(&theirs.body, banded));
    let died = a.lines.is_empty() && a.pack.is_empty();
    let told = died && b.lines.len() == 1 && b.lines[0].starts_with("ERR ");
    // Newer versions of git acknowledge no have that follows from another; this one acknowledges all.
    let fewer = b.lines.iter().all(|l| a.lines.contains(l))
        && a.lines.iter().all(|l| b.lines.contains(l) || l.starts_with("ACK "))
        && a.lines.iter().any(|l| l.starts_with("ACK ")) == b.lines.iter().any(|l| l.starts_with("ACK "));
    if a.lines != b.lines && !told && !fewer {
        out.push_str(&format!("  primary says {:?}\n  mirror says  {:?}\n", a.lines, b.lines));
    }
    if a.error != b.error {
        out.push_str(&format!("  band 3: {:?} / {:?}\n", a.error, b.error));
    }
    if a.pack.is_empty() != b.pack.is_empty() {
        out.push_str(&format!("  packs of {} / {} bytes\n", a.pack.len(), b.pack.len()));
    } else if !a.pack.is_empty() {
        match (contents(town, &a.pack, thin), contents(town, &b.pack, thin)) {
            (Ok(a), Ok(b)) if thin => {
                let lost: Vec<_> = a.iter().filter(|o| !b.contains(o)).collect();
                let more = b.iter().filter(|o| !a.contains(o)).count();
                // Bases that complete the pack may be others.
                if more > a.len() / 4 + 20 {
                    out.push_str(&format!("  {more} objects more than {}\n", a.len()));
                }
                let missing: Vec<_> =
                    lost.into_iter().filter(|o| !git(&town.past).args(&["cat-file", "-e", o]).ok()).collect();
                if !missing.is_empty() {
                    out.push_str(&format!("  objects are missing: {missing:?}\n"));
                }
            }
            (Ok(a), Ok(b)) => {
                let only = |x: &[String], y: &[String]| x.iter().filter(|o| !y.contains(o)).count();
                if a != b {
                    let counts = (only(&a, &b), only(&b, &a));
                    out.push_str(&format!(
                        "  {} objects only in the primary's pack, {} in ours\n",
                        counts.0, counts.1
                    ));
                }
            }
            (Err(e), _) => out.push_str(&format!("  the primary's pack is bad: {e}\n")),
            (_, Err(e)) => out.push_str(&format!("  the mirror's pack is bad: {e}\n")),
        }
    }
    out
}

#[test]
fn version_2() {
    let town = Town::new(
        |dir| {
            shapes::town(dir);
            git(dir).run("config uploadpack.allowRefInWant true");
        },
        "sha1",
    );
    let past = git(&town.past).run("rev-parse refs/heads/main").line();
    let fetch: &[(&str, &[&str])] = &[
        ("a clone", &["want {tip}", "ofs-delta", "done"]),
        ("no ofs-delta", &["want {tip}", "done"]),
        ("no progress", &["want {tip}", "no-progress", "done"]),
        ("the same want twice", &["want {tip}", "want {tip}", "done"]),
        ("a tag and a branch", &["want {tag}", "want {mid}", "ofs-delta", "done"]),
        ("include-tag", &["want {mid}", "include-tag", "ofs-delta", "done"]),
        ("include-tag of nothing new", &["want {tip}", "have {tip}", "include-tag", "done"]),
        ("done with a have", &["want {tip}", "have {past}", "ofs-delta", "done"]),
        ("done with a thin pack", &["want {tip}", "have {past}", "thin-pack", "ofs-delta", "done"]),
        ("thin without ofs-delta", &["want {tip}", "have {past}", "thin-pack", "done"]),
        ("all that is wanted is there", &["want {past}", "have {past}", "done"]),
        ("a have nobody knows", &["want {tip}", "have {nowhere}", "done"]),
        ("a round: unknown", &["want {tip}", "have {nowhere}"]),
        ("a round: known", &["want {tip}", "have {past}", "ofs-delta"]),
        ("a round: both", &["want {tip}", "have {nowhere}", "have {past}", "have {old}", "ofs-delta"]),
        ("a round: not enough", &["want {tip}", "want {island}", "have {old}"]),
        ("a round: no haves", &["want {tip}"]),
        ("wait-for-done", &["want {tip}", "have {past}", "wait-for-done"]),
        ("wait-for-done, done", &["want {tip}", "have {past}", "wait-for-done", "done"]),
        ("no want, a have", &["have {past}", "wait-for-done"]),
        ("a ref", &["want-ref refs/heads/release", "done"]),
        ("a ref and an id", &["want-ref refs/heads/release", "want {tip}", "done"]),
        ("a ref that is not there", &["want-ref refs/heads/nope", "done"]),
        ("sideband-all", &["want {tip}", "sideband-all", "have {past}"]),
        ("depth 1", &["want {tip}", "deepen 1", "done"]),
        ("depth 3", &["want {tip}", "want {island}", "deepen 3", "done"]),
        ("depth 0", &["want {tip}", "deepen 0", "done"]),
        (
            "depth 2 from a shallow client",
            &["want {tip}", "shallow {past}", "have {past}", "deepen 2", "done"],
        ),
        ("relative", &["want {tip}", "shallow {past}", "have {past}", "deepen 2", "deepen-relative", "done"]),
        ("a shallow client, no deepening", &["want {tip}", "shallow {past}", "have {past}", "done"]),
        ("unshallow", &["want {tip}", "shallow {past}", "have {past}", "deepen 2147483647", "done"]),
        ("since", &["want {tip}", "deepen-since {date}", "done"]),
        ("not", &["want {tip}", "deepen-not refs/tags/v1", "done"]),
        ("since and not", &["want {tip}", "deepen-since {date}", "deepen-not refs/heads/release", "done"]),
        ("blob:none", &["want {tip}", "filter blob:none", "done"]),
        ("tree:1", &["want {tip}", "filter tree:1", "done"]),
        ("two filters", &["want {tip}", "filter blob:none", "filter tree:0", "done"]),
        ("a filter and a depth", &["want {tip}", "filter blob:limit=200", "deepen 2", "done"]),
        ("a blob", &["want {blob}", "done"]),
        ("a blob without blobs", &["want {blob}", "filter blob:none", "done"]),
        ("a tree without trees", &["want {tree}", "filter tree:0", "done"]),
        ("a tree and a have", &["want {tree}", "have {past}", "thin-pack", "ofs-delta", "done"]),
        ("nowhere", &["want {nowhere}", "done"]),
        ("a tip and nowhere", &["want {tip}", "want {nowhere}", "done"]),
    ];
    let mut wrong = String::new();
    let island = town.repo.oid("refs/heads/island");
    for (name, arguments) in fetch {
        let filled: Vec<String> = arguments
            .iter()
            .map(|a| town.fill(&a.replace("{past}", &past).replace("{island}", &island), ""))
            .collect();
        let lines: Vec<&str> = filled.iter().map(String::as_str).collect();
        let thin = arguments.contains(&"thin-pack") || arguments.iter().any(|a| a.starts_with("have"));
        let banded = !arguments.contains(&"sideband-all");
        let body = wire::command("fetch", &["agent=test/1", "object-format=sha1"], &lines);
        if !banded {
            continue;
        }
        let found = differ(&town, &[wire::V2], &body, banded, thin);
        if !found.is_empty() {
            wrong.push_str(&format!("fetch: {name}\n{found}"));
        }
    }
    let refs: &[(&str, &[&str])] = &[
        ("plain", &[]),
        ("peel", &["peel"]),
        ("symrefs", &["symrefs"]),
        ("all", &["peel", "symrefs", "unborn"]),
        ("one prefix", &["ref-prefix refs/heads/"]),
        ("several", &["peel", "ref-prefix refs/tags/", "ref-prefix HEAD", "ref-prefix refs/pull/1"]),
        ("of nothing", &["ref-prefix refs/nothing"]),
        ("an empty prefix", &["ref-prefix "]),
        ("unknown", &["evil"]),
    ];
    for (name, arguments) in refs {
        let body = wire::command("ls-refs", &["agent=test/1", "object-format=sha1"], arguments);
        let found = differ(&town, &[wire::V2], &body, true, false);
        if !found.is_empty() {
            wrong.push_str(&format!("ls-refs: {name}\n{found}"));
        }
    }
    let others: &[(&str, Vec<u8>)] = &[
        ("flush", b"0000".to_vec()),
        (
            "size",
            wire::command(
                "object-info",
                &["object-format=sha1"],
                &["size", &format!("oid {}", town.names["{blob}"])],
            ),
        ),
        (
            "size of nothing",
            wire::command(
                "object-info",
                &["object-format=sha1"],
                &["size", &format!("oid {}", town.names["{nowhere}"])],
            ),
        ),
        ("server options", wire::command("ls-refs", &["server-option=x", "object-format=sha1"], &[])),
        ("session id", wire::command("ls-refs", &["session-id=abc", "object-format=sha1"], &[])),
    ];
    for (name, body) in others {
        let found = differ(&town, &[wire::V2], body, true, false);
        if !found.is_empty() {
            wrong.push_str(&format!("{name}\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn version_0() {
    let town = Town::new(shapes::town, "sha1");
    let past = git(&town.past).run("rev-parse refs/heads/main").line();
    // Capabilities; wants' further lines up to the flush; rounds of haves, each ended by a flush; done?
    type Request<'a> = (&'a str, &'a [&'a str], &'a [&'a [&'a str]], bool);
    let requests: &[Request] = &[
        ("", &[], &[], true),
        ("ofs-delta", &[], &[], true),
        ("side-band ofs-delta", &[], &[], true),
        ("side-band-64k ofs-delta no-progress", &[], &[], true),
        ("multi_ack side-band-64k", &[], &[], true),
        ("multi_ack_detailed side-band-64k thin-pack ofs-delta", &[], &[&["have {past}"]], true),
        ("multi_ack side-band-64k thin-pack ofs-delta", &[], &[&["have {past}"]], true),
        ("side-band-64k thin-pack ofs-delta", &[], &[&["have {past}"]], true),
        ("thin-pack ofs-delta", &[], &[&["have {past}"]], true),
        ("multi_ack_detailed side-band-64k", &[], &[&["have {nowhere}", "have {past}", "have {old}"]], false),
        ("multi_ack_detailed side-band-64k", &[], &[&["have {nowhere}"]], false),
        ("multi_ack_detailed no-done side-band-64k ofs-delta", &[], &[&["have {past}"]], false),
        ("multi_ack side-band-64k", &[], &[&["have {nowhere}", "have {past}"]], false),
        ("side-band-64k", &[], &[&["have {nowhere}", "have {past}"]], false),
        ("multi_ack_detailed side-band-64k", &[], &[&["have {nowhere}"], &["have {past}"]], true),
        ("multi_ack side-band-64k", &[], &[&["have {nowhere}"], &["have {past}"]], true),
        ("include-tag side-band-64k ofs-delta", &[], &[], true),
        ("side-band-64k shallow", &["deepen 1"], &[], true),
        ("side-band-64k shallow", &["deepen 2"], &[], false),
        ("side-band-64k deepen-since", &["deepen-since {date}"], &[], true),
        ("side-band-64k deepen-not", &["deepen-not refs/tags/v1"], &[], true),
        ("side-band-64k shallow deepen-relative", &["shallow {past}", "deepen 2"], &[&["have {past}"]], true),
        ("side-band-64k", &["shallow {past}"], &[&["have {past}"]], true),
        ("side-band-64k filter", &["filter blob:none"], &[], true),
        ("side-band-64k filter", &["filter tree:1", "deepen 2"], &[], true),
        ("side-band-64k agent=JGit/6.0 ofs-delta", &[], &[], true),
    ];
    let mut wrong = String::new();
    for want in ["{tip}", "{mid}", "{tagged}", "{nowhere}"] {
        for (capabilities, lines, rounds, done) in requests {
            if want != "{tip}" && !capabilities.starts_with("side-band-64k") {
                continue;
            }
            let fill = |text: &str| town.fill(&text.replace("{past}", &past), "");
            let space = if capabilities.is_empty() { "" } else { " " };
            let mut body = wire::pkt(&format!("want {}{space}{capabilities}\n", fill(want)));
            for line in *lines {
                body.push_str(&wire::pkt(&format!("{}\n", fill(line))));
            }
            body.push_str("0000");
            for round in *rounds {
                for line in *round {
                    body.push_str(&wire::pkt(&format!("{}\n", fill(line))));
                }
                if !(*done && rounds.len() == 1) {
                    body.push_str("0000");
                }
            }
            if *done {
                body.push_str(&wire::pkt("done\n"));
            }
            let thin = rounds.iter().any(|r| !r.is_empty());
            let banded = capabilities.contains("side-band");
            let found = differ(&town, &[], body.as_bytes(), banded, thin);
            if !found.is_empty() {
                wrong.push_str(&format!(
                    "want {want} {capabilities:?} {lines:?} {rounds:?} done={done}\n{found}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Clients of other makes want what the advertisement shows beside a tag.
#[test]
fn what_a_tag_leads_to_in_version_0() {
    let town = Town::new(shapes::town, "sha1");
    let want = wire::pkt(&town.fill("want {tagged} side-band-64k ofs-delta\n", ""));
    let body = format!("{want}0000{}", wire::pkt("done\n"));
    let found = from_bucket(&town.node, || differ(&town, &[], body.as_bytes(), true, false));
    assert!(found.is_empty(), "{found}");
}

/// What the servers say they can do: the mirror never less than the primary, never more than it can keep.
#[test]
fn capabilities() {
    for shape in [shapes::town as fn(&Path), shapes::empty, shapes::detached, shapes::unborn] {
        let town = Town::new(shape, "sha1");
        for protocol in [None, Some(("Git-Protocol", "version=1")), Some(wire::V2)] {
            let headers: Vec<_> = protocol.into_iter().collect();
            for service in ["git-upload-pack", "git-receive-pack"] {
                let path = format!("/{}/info/refs?service={service}", town.repo.path);
                let read = |address: &str| {
                    let reply = wire::get(address, &path, &headers).unwrap();
                    let kind = reply.header("content-type").unwrap_or_default().to_owned();
                    let (packets, rest) = wire::packets(&reply.body);
                    assert!(rest.is_empty(), "{path}: {}", rest.escape_ascii());
                    let lines: Vec<String> = packets
                        .iter()
                        .map(|p| match p {
                            wire::Packet::Data(d) => words(d),
                            other => format!("{other:?}"),
                        })
                        .collect();
                    (reply.status, kind, lines)
                };
                let (ours, theirs) = (read(town.primary.address()), read(town.node.address()));
                assert_eq!(ours, theirs, "{service} {protocol:?}");
            }
        }
    }
}

/// A line with its capabilities sorted, without the one that names the software.
fn words(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line).trim_end().to_owned();
    if text.starts_with("agent=") {
        return "agent".into();
    }
    let Some((head, list)) = text.split_once('\0') else { return text };
    let mut all: Vec<&str> = list.split(' ').filter(|w| !w.is_empty() && !w.starts_with("agent=")).collect();
    all.sort_unstable();
    format!("{head}\\0{}", all.join(" "))
}
