//! Who reaches a node's disk, and what the system refuses: directories of another make, links, loose permissions, too few
//! open files. Nothing of anybody else's is deleted or overwritten, and nothing is thrown away as damaged that is not.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::git::git;
use crate::node::Setup;
use crate::oracle::{mirrored, same};
use crate::primary::{Primary, Repo};
use crate::shapes::{self, noise};
use crate::world::World;
use crate::{hostile, mirror_only};

/// Every file and link below a directory with its content or target.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                found.insert(path.join(""), Vec::new());
                folders.push(path);
            } else if kind.is_symlink() {
                let target = std::fs::read_link(&path).unwrap();
                found.insert(path, target.into_os_string().into_encoded_bytes());
            } else {
                let content = std::fs::read(&path).unwrap();
                found.insert(path, content);
            }
        }
    }
    found
}

fn write(path: PathBuf) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "precious\n").unwrap();
}

/// Everything below a directory that somebody else may read, write or enter.
fn open_to_others(dir: &Path) -> Vec<PathBuf> {
    let all = std::iter::once(dir.to_owned()).chain(contents(dir).into_keys());
    all.filter(|path| {
        let meta = path.symlink_metadata().unwrap();
        !meta.is_symlink() && meta.permissions().mode() & 0o077 != 0
    })
    .collect()
}

#[test]
fn a_cache_directory_of_another_make_is_refused_and_stays_as_it_is() {
    mirror_only!();
    let (world, primary) = (World::on_disk(), Primary::start());
    let victim = world.folder("victim");
    for name in ["file", "sub/file", "deep/er/file", "ab/file"] {
        write(victim.join(name));
    }
    type Plant<'a> = Box<dyn Fn(&Path) + 'a>;
    let link = |name: &'static str| -> Plant<'_> {
        let victim = victim.clone();
        Box::new(move |dir| symlink(&victim, dir.join(name)).unwrap())
    };
    let own = |names: &'static [&'static str]| -> Plant<'_> {
        Box::new(move |dir| names.iter().for_each(|name| write(dir.join(name))))
    };
    let plants: Vec<Plant<'_>> = vec![
        link("scratch"),
        link("cache"),
        link("index"),
        Box::new(|dir| symlink(victim.join("file"), dir.join("lock")).unwrap()),
        Box::new(|dir| symlink(victim.join("file"), dir.join("CACHEDIR.TAG")).unwrap()),
        Box::new(|dir| std::fs::hard_link(victim.join("file"), dir.join("lock")).unwrap()),
        own(&["other"]),
        own(&["cache/projects/thesis", "cache/projects/app/code", "scratch/notes/n", "scratch/m", "other"]),
        own(&["cache/top"]),
        own(&["scratch/m"]),
        own(&["index/words"]),
        own(&["cache/ab/thesis"]),
        own(&["cache/tmp/thesis"]),
    ];
    for (n, plant) in plants.into_iter().enumerate() {
        let dir = world.folder("cache");
        plant(&dir);
        let before = (contents(&dir), contents(&victim));
        let ended = world.setup(&primary).cache(&dir).launch();
        let Err((status, log)) = ended else { panic!("case {n}: a node was started") };
        assert!(
            !status.success() && log.contains("--cache-dir") && log.contains("CACHEDIR.TAG"),
            "case {n}: {log}"
        );
        assert!((contents(&dir), contents(&victim)) == before, "case {n}: something was changed");
    }
}

#[test]
fn in_a_cache_of_ours_only_what_is_ours_goes() {
    mirror_only!();
    let (world, primary) = (World::on_disk(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let mut node = world.node(&primary);
    mirrored(&world, &node, &repo);
    node.kill();
    let (dir, victim) = (node.cache().to_owned(), world.folder("victim"));
    write(victim.join("file"));
    let ours =
        ["other", "cache/stray", "cache/zz/stray", "cache/00/stray", "cache/tmp/stray", "scratch/notes/n"];
    ours.iter().for_each(|name| write(dir.join(name)));
    symlink(&victim, dir.join("scratch/work-abcdef")).unwrap();
    std::fs::create_dir_all(dir.join("scratch/work-ghijkl")).unwrap();
    symlink(&victim, dir.join("scratch/work-ghijkl/link")).unwrap();
    node.restart();
    same(&world, &primary, &node, &repo.path);
    node.kill();
    for name in ours {
        assert_eq!(std::fs::read(dir.join(name)).unwrap(), b"precious\n", "{name}");
    }
    assert_eq!(contents(&victim).len(), 1);
    assert!(!dir.join("scratch/work-ghijkl").exists(), "what an earlier start left goes");
    let log = node.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("does not count")).collect();
    assert!(told.len() == 1 && told[0].contains("files=4"), "{told:?}");
    // A folder of ours that has become a link.
    for name in ["cache", "scratch", "index", "lock"] {
        let dir = world.folder("cache");
        drop(world.setup(&primary).cache(&dir).start());
        std::fs::rename(dir.join(name), dir.join("away")).unwrap();
        let target = if name == "lock" { victim.join("file") } else { victim.clone() };
        symlink(target, dir.join(name)).unwrap();
        let Err((_, log)) = world.setup(&primary).cache(&dir).launch() else {
            panic!("{name}: it was started")
        };
        assert!(log.contains("is a link or something else") && log.contains(name), "{log}");
        assert_eq!(std::fs::read(victim.join("file")).unwrap(), b"precious\n", "{name}");
    }
}

#[test]
fn a_store_directory_of_another_make_is_refused_and_stays_as_it_is() {
    mirror_only!();
    let (world, primary) = (World::on_disk(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    for names in [["thesis", "blobs/x"], ["format", "repos/x"], [".probe/../x", "y"]] {
        let dir = world.folder("other");
        names.iter().for_each(|name| write(dir.join(name)));
        let before = contents(&dir);
        let setup = world.setup(&primary).store(dir.to_str().unwrap());
        for command in [&["sync", &repo.path][..], &["ls"], &["status"]] {
            setup.command(command).must_fail(&["is no store of packmirror's"]);
        }
        let Err((_, log)) = setup.launch() else { panic!("{names:?}: a node was started") };
        assert!(log.contains("--store") && log.contains("is no store"), "{log}");
        assert!(contents(&dir) == before, "{names:?}: something was changed");
    }
}

#[test]
fn export_removes_only_what_an_export_left() {
    mirror_only!();
    let (world, primary) = (World::on_disk(), Primary::start());
    let repo = primary.repo("team/app.git", shapes::linear);
    let setup = world.setup(&primary);
    setup.command(&["sync", &repo.path]).must();
    let export = |dir: &Path| setup.command(&["export", &repo.path, dir.to_str().unwrap()]);
    let (dir, victim) = (world.unused("out"), world.folder("victim"));
    let part = PathBuf::from(format!("{}.part", dir.display()));
    write(part.join("thesis"));
    write(victim.join("packmirror-export"));
    export(&dir).must_fail(&["is in the way"]);
    assert_eq!(contents(&part).len(), 1);
    std::fs::remove_dir_all(&part).unwrap();
    symlink(&victim, &part).unwrap();
    export(&dir).must_fail(&["is in the way"]);
    assert_eq!(contents(&victim).len(), 1);
    std::fs::remove_file(&part).unwrap();
    // A link that leads nowhere is there as well.
    symlink(world.unused("nowhere"), &dir).unwrap();
    export(&dir).must_fail(&["is there already"]);
    std::fs::remove_file(&dir).unwrap();
    // What an export left that was cut short, a link in it included.
    write(part.join("packmirror-export"));
    symlink(&victim, part.join("objects")).unwrap();
    export(&dir).must();
    assert_eq!(contents(&victim).len(), 1);
    assert!(!part.exists() && !dir.join("packmirror-export").exists());
    git(&dir).run("fsck --strict");
}

#[test]
fn store_and_cache_belong_to_their_user_whatever_the_umask() {
    mirror_only!();
    for umask in ["000", "022", "077"] {
        let (world, (root, repo)) = (World::on_disk(), directory_primary());
        let root = root.path();
        let (cache, store) = (world.folder("cache"), world.store.dir.clone().unwrap());
        for folder in [&cache, &store] {
            std::fs::set_permissions(folder, PermissionsExt::from_mode(0o777)).unwrap();
        }
        let setup = Setup::new(&world, root.to_str().unwrap()).cache(&cache);
        let node = setup.clone().umask(umask).start();
        mirrored(&world, &node, &repo);
        let clone = world.clone_of(&node.repo(&repo.path), "");
        assert_eq!(open_to_others(&store), [] as [PathBuf; 0], "umask {umask}");
        assert_eq!(open_to_others(&cache), [] as [PathBuf; 0], "umask {umask}");
        // What a push makes in the primary's own directory is its owner's business, and so is an export.
        git(&clone).run("commit -q --allow-empty -m pushed");
        git(&clone).run("push -q origin HEAD:refs/heads/pushed");
        let oid = git(&clone).run("rev-parse HEAD").line();
        let object = root.join(&repo.path).join("objects").join(&oid[..2]).join(&oid[2..]);
        let mask = u32::from_str_radix(umask, 8).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&object), 0o444 & !mask, "umask {umask}");
        let out = world.unused("export");
        setup.umask(umask).command(&["export", &repo.path, out.to_str().unwrap()]).must();
        assert_eq!(mode(&out), 0o777 & !mask, "umask {umask}");
        assert_eq!(mode(&out.join("HEAD")), 0o666 & !mask, "umask {umask}");
    }
}

/// A primary that is a directory, with one repository that takes pushes.
fn directory_primary() -> (tempfile::TempDir, Repo) {
    let root = tempfile::tempdir().unwrap();
    let repo = Repo::create(root.path(), "app.git", "sha1");
    shapes::linear(&repo.dir);
    (root, repo)
}

/// Too few open files for what is asked: clients may be refused, but nothing in the cache is thrown away for it, the log
/// is not flooded, and afterwards all is as before.
#[test]
fn a_lack_of_open_files_is_no_damage() {
    mirror_only!();
    let (world, primary) = (World::new(), Primary::start());
    let mib = if hostile::full() { 256 } else { 24 };
    let repo = primary.repo("team/big.git", |dir| {
        let git = git(dir);
        let blob = git.with_input(&["hash-object", "-w", "--stdin"], &noise(1, mib << 20)).must().line();
        let tree = git.with_input(&["mktree"], format!("100644 blob {blob}\tbig\n").as_bytes()).must().line();
        let commit = git.args(&["commit-tree", &tree, "-m", "big"]).must().line();
        git.args(&["update-ref", "refs/heads/main", &commit]).must();
    });
    let setup = world.setup(&primary).set("log_level = \"info\"");
    let mut node = setup.clone().start();
    mirrored(&world, &node, &repo);
    world.clone_of(&node.repo(&repo.path), "--bare");
    node.kill();
    let cached = |dir: &Path| contents(&dir.join("cache"));
    let before = cached(node.cache());
    assert!(before.len() > mib, "the pack is in the cache");
    let mut node = setup.clone().files(48).start();
    std::thread::scope(|scope| {
        for n in 0..24 {
            let (world, url) = (&world, node.repo(&repo.path));
            scope.spawn(move || {
                let to = world.unused(&format!("clone{n}"));
                git(world.path()).try_run(&format!("clone -q --bare {url} {}", to.display()))
            });
        }
    });
    crate::world::eventually("the node answers again", || {
        node.try_get("/livez").ok().filter(|r| r.status == 200)
    });
    assert_eq!(node.metric("packmirror_pack_cache_requests_total", &["result=\"damaged\""]), 0.0);
    let log = node.log();
    assert!(!log.contains("is damaged") && !log.contains("of no use"), "{log}");
    let told =
        log.matches("cannot be used at the moment").count() + log.matches("cannot keep data on disk").count();
    assert!(told <= 10, "{told} warnings");
    same(&world, &primary, &node, &repo.path);
    node.kill();
    assert!(cached(node.cache()) == before, "the cache is as it was");
}
