//! A test's own world: its directories, its store, and how it waits.

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::bucket::Store;
use crate::git::{Git, git};
use crate::node::{Node, Setup};
use crate::primary::Primary;

/// How long a test waits for something that should happen soon. Generous, since it is only reached by a failure; longer than
/// it takes until the work of a node that was killed is taken over.
pub const SOON: Duration = Duration::from_secs(45);

/// Everything on disk that belongs to one test; gone when it ends.
pub struct World {
    dir: tempfile::TempDir,
    pub store: Store,
    next: AtomicU32,
}

impl World {
    pub fn new() -> Self {
        Self::with(Store::fresh)
    }

    /// A world whose store is a directory wherever the others are: for what is done to directories.
    pub fn on_disk() -> Self {
        Self::with(|dir| Store::directory(&dir.join("store")))
    }

    fn with(store: impl FnOnce(&Path) -> Store) -> Self {
        let dir = tempfile::Builder::new().prefix("packmirror-it-").tempdir().expect("a temporary directory");
        let store = store(dir.path());
        World { dir, store, next: AtomicU32::new(0) }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A directory name that was not used before; the directory is not made.
    pub fn unused(&self, name: &str) -> PathBuf {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.dir.path().join(format!("{n:03}-{name}"))
    }

    /// The URL of another store, which is a directory.
    pub fn on_side(&self, name: &str) -> String {
        self.unused(name).display().to_string()
    }

    /// A new empty directory.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.unused(name);
        std::fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// git in a new empty directory, which is returned beside it.
    pub fn client(&self, name: &str) -> (Git, PathBuf) {
        let path = self.folder(name);
        (git(&path), path)
    }

    /// Clones `url` and returns where it lies.
    #[track_caller]
    pub fn clone_of(&self, url: &str, options: &str) -> PathBuf {
        let path = self.unused("clone");
        git(self.path()).run(&format!("clone -q {options} {url} {}", path.display()));
        path
    }

    /// A node with default settings on this world's store, in front of `primary`.
    pub fn node(&self, primary: &Primary) -> Node {
        Setup::new(self, &primary.url).start()
    }

    /// The same, with settings to be added.
    pub fn setup(&self, primary: &Primary) -> Setup {
        Setup::new(self, &primary.url)
    }
}

/// Sets a flag when it is dropped: what runs beside a test until then ends also if the test fails.
pub struct AtEnd<'a>(pub &'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Asks `look` again and again until it gives something; fails the test at the deadline.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {SOON:?} in vain for: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Says that the running test cannot run without `what`, past the test runner's capture; fails where parts are a must.
pub fn skip(what: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    if std::env::var("PACKMIRROR_TEST_REQUIRE_PARTS").is_ok_and(|v| v == "1") {
        panic!("{name} needs {what}, and PACKMIRROR_TEST_REQUIRE_PARTS=1 forbids to skip it");
    }
    let _ = writeln!(std::io::stderr(), "SKIPPED: {name} needs {what}");
}

/// Says that the running test cannot run on this machine, parts or not.
pub fn cannot(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {name}, {why}");
}

/// Whether the primary stands in the mirror's place: then claims about the mirror's inside are not made.
pub fn passthrough() -> bool {
    std::env::var("PACKMIRROR_TEST_PASSTHROUGH").is_ok_and(|v| v == "1")
}

/// Ends a test that says something about the mirror itself when there is none.
#[macro_export]
macro_rules! mirror_only {
    () => {
        if $crate::world::passthrough() {
            return;
        }
    };
}

/// The runtime on which the primaries live; tests themselves are plain threads.
pub fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().expect("a runtime")
    })
}

/// Waits for a future from a test's thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}
