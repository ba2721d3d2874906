//! A farm in one thread: nodes made as the program makes them, but for sockets.

use std::sync::Arc;
use std::time::Duration;

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

/// One node.
pub struct Node {
    pub app: App,
    pub view: Arc<View>,
    line: Arc<Line>,
    stop: CancellationToken,
    last: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
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
        let view = View::of(shared, seed);
        let bucket = Bucket::over(Arc::new(Store(view.clone())), "farm");
        let dir = tempfile::tempdir().unwrap();
        let local = Local::open(dir.path(), options, bucket.clone()).unwrap();
        let line = Arc::new(Line { host: host.clone(), runs: tokio::sync::watch::Sender::new(true) });
        let location = Location::Directory("/primary".into());
        let primary = Primary::played(PrimarySettings::new(location), Arc::new(line.clone()));
        let (stop, last) = (CancellationToken::new(), CancellationToken::new());
        let mirror = Mirror::new(settings, bucket, local, primary.clone(), last.clone()).unwrap();
        let work = Work::new(mirror.clone(), settings);
        let grants = Grants::new(primary, settings.grant_ttl);
        let recorder = Arc::new(Recorder::install().unwrap());
        let ending = Stop { asked: stop.clone(), hurry: CancellationToken::new() };
        let app = App::new(settings, mirror, grants, recorder, ending);
        let pace = Duration::from_secs(30);
        let keeping = crate::node::keep(app.clone(), work.clone(), pace, false, stop.clone());
        let tasks = vec![
            tokio::spawn(work.run(last.clone())),
            tokio::spawn(async move {
                if let Err(error) = keeping.await {
                    eprintln!("a node ended: {error:#}");
                }
            }),
        ];
        Self { app, view, line, stop, last, tasks, _dir: dir }
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

    fn end(self) {
        self.stop.cancel();
        self.last.cancel();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
