//! A farm in one thread: nodes made as the program makes them, but for sockets.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::primary::{Host, Line};
use super::store::{Shared, Store, View};
use crate::config::Settings;
use crate::local::{Local, LocalOptions};
use crate::mirror::Mirror;
use crate::primary::{Grants, Location, Primary, PrimarySettings};
use crate::serve::app::App;
use crate::serve::drain::Stop;
use crate::store::Bucket;
use crate::telemetry::metrics::Recorder;
use crate::work::Work;

/// A folder that goes with its value: in memory where the system has room for it, since a simulation makes and removes thousands of files.
pub fn scratch() -> tempfile::TempDir {
    const ENOUGH: u64 = 2 << 30;
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    if std::env::var_os("TMPDIR").is_none() && free > ENOUGH {
        return tempfile::tempdir_in(memory).unwrap();
    }
    tempfile::tempdir().unwrap()
}

/// What git said of some bytes: it is asked once.
pub struct Verdict([u8; 32]);

static GOOD: Mutex<BTreeSet<[u8; 32]>> = Mutex::new(BTreeSet::new());

impl Verdict {
    pub fn of<'b>(parts: impl IntoIterator<Item = &'b [u8]>) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part.len().to_le_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// Says whether git found them good already.
    pub fn is_known(&self) -> bool {
        GOOD.lock().unwrap_or_else(PoisonError::into_inner).contains(&self.0)
    }

    /// Takes note that git finds them good.
    pub fn note_good(self) {
        GOOD.lock().unwrap_or_else(PoisonError::into_inner).insert(self.0);
    }
}

/// One node.
pub struct Node {
    pub app: App,
    pub view: Arc<View>,
    pub line: Arc<Line>,
    stop: CancellationToken,
    last: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

/// The settings of all nodes.
pub fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.compare_every = Duration::from_secs(180);
    settings.max_new_per_minute = 1000;
    settings
}

impl Node {
    /// Starts a node as `node::run` does.
    pub async fn start(shared: &Arc<Shared>, host: &Arc<Host>, seed: u64, settings: &Settings) -> Self {
        let options = LocalOptions { max_bytes: 64 << 20, ..Default::default() };
        Self::start_with(shared, host, seed, settings, &options).await
    }

    /// The same with bounds of its cache.
    pub async fn start_with(
        shared: &Arc<Shared>,
        host: &Arc<Host>,
        seed: u64,
        settings: &Settings,
        options: &LocalOptions,
    ) -> Self {
        let (node, work) = Self::make(View::of(shared, seed), host, seed, settings, options);
        node.run(work, false)
    }

    /// Starts a node as the program does: it is ready, or the store does not answer.
    pub async fn start_at_once(view: Arc<View>, host: &Arc<Host>, settings: &Settings) -> Self {
        let options = LocalOptions { max_bytes: 64 << 20, ..Default::default() };
        let (node, work) = Self::make(view, host, 1, settings, &options);
        let is_sound = crate::node::probe(&node.app, &work).await.unwrap();
        node.run(work, is_sound)
    }

    /// The parts of a node. Nothing runs yet.
    fn make(
        view: Arc<View>,
        host: &Arc<Host>,
        seed: u64,
        settings: &Settings,
        options: &LocalOptions,
    ) -> (Self, Arc<Work>) {
        let bucket = Bucket::over(Arc::new(Store(view.clone())), "farm");
        let dir = scratch();
        let local = Local::open(dir.path(), options, bucket.clone()).unwrap();
        let line = Line::new(host, seed);
        let location = Location::Directory(host.address.into());
        let primary = Primary::played(PrimarySettings::new(location), Arc::new(line.clone()));
        let (stop, last) = (CancellationToken::new(), CancellationToken::new());
        let mirror = Mirror::new(settings, bucket, local, primary.clone(), last.clone()).unwrap();
        let work = Work::new(mirror.clone(), settings);
        let grants = Grants::new(primary, settings.grant_ttl);
        let recorder = Arc::new(Recorder::install().unwrap());
        let ending = Stop { asked: stop.clone(), hurry: CancellationToken::new() };
        let app = App::new(settings, mirror, grants, recorder, ending);
        (Self { app, view, line, stop, last, tasks: Vec::new(), dir }, work)
    }

    fn run(mut self, work: Arc<Work>, is_sound: bool) -> Self {
        let pace = Duration::from_secs(30);
        let keeping = crate::node::keep(self.app.clone(), work.clone(), pace, is_sound, self.stop.clone());
        self.tasks = vec![
            tokio::spawn(work.run(self.last.clone())),
            tokio::spawn(async move {
                if let Err(error) = keeping.await {
                    eprintln!("a node ended: {error:#}");
                }
            }),
        ];
        self
    }

    /// Ends it as kill -9 does: nothing that it does has an effect any more.
    pub fn kill(self) {
        self.view.kill();
        self.end();
    }

    /// Suspends it, also calls under way, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        self.view.freeze(frozen);
        self.line.runs.send_replace(!frozen);
    }

    /// Whether the node has ended by itself, as one does that finds the store unusable: what keeps programs running starts it again.
    pub fn has_ended(&self) -> bool {
        self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// The names of the files in its cache.
    pub fn cached(&self) -> Vec<String> {
        let folders = std::fs::read_dir(self.dir.path().join("cache")).unwrap();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn end(self) {
        self.stop.cancel();
        self.last.cancel();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
