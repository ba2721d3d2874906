//! Schedules: what happens to a farm, out of a seed, and what must be true after.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gix_hash::ObjectId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::checks;
use super::client::clone;
use super::primary::{Host, Mood, Universe};
use super::purge::Process;
use super::store::{Shared, Weather};
use super::turns::{self, note};
use super::walker;
use super::world::{Node, settings};
use crate::config::Settings;
use crate::retry::plan;
use crate::seed::rounds;
use crate::serve::listen::router;

const REPOS: [&str; 2] = ["team/app.git", "team/lib.git"];
/// How often everything is looked at where something may be lost.
const VET: Duration = Duration::from_secs(600);
/// Seconds.
const DAY: i64 = 86_400;

/// Runs the schedule of a seed, and gives all that nodes asked of store and primary.
fn simulate(seed: u64) -> Vec<String> {
    plan(seed);
    let mut asked = Vec::new();
    in_paused_time(async {
        if let Err(why) = futures::FutureExt::catch_unwind(AssertUnwindSafe(schedule(seed))).await {
            // The last of what was asked says where it went wrong.
            if let Ok(file) = std::env::var("PACKMIRROR_TEST_TRACE") {
                std::fs::write(file, turns::trace().join("\n")).unwrap();
            }
            resume_unwind(why);
        }
        asked = turns::trace();
    });
    asked
}

/// Runs a schedule in a runtime of its own, whose clock stands still unless all wait.
pub fn in_paused_time(schedule: impl Future<Output = ()>) {
    turns::taking(|| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            turns::time_of_day();
            schedule.await;
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
    });
}

fn weather(chance: &mut StdRng, lists_short: bool) -> Weather {
    let mut of = |most: u32| if chance.random_range(0..3) == 0 { chance.random_range(0..most) } else { 0 };
    Weather {
        before: of(200),
        after: of(100),
        conflict: of(100),
        slow: of(100),
        stall: of(15),
        spoilt: of(50),
        cut_short: if lists_short { of(100) } else { 0 },
    }
}

fn mood(chance: &mut StdRng) -> Mood {
    let mut of = |most: u32| if chance.random_range(0..3) == 0 { chance.random_range(0..most) } else { 0 };
    Mood { unreachable: of(300), errors: of(300), slow: of(200), cut: of(200) }
}

/// What kind of schedule it is.
#[derive(Debug)]
struct Kind {
    /// Blobs are lost and spoilt in the bucket.
    is_lossy: bool,
    /// Data goes after so long.
    grace: Option<Duration>,
    /// The store's clock jumps.
    clock_jumps: bool,
    /// Listings end early.
    lists_short: bool,
    /// What no ref reaches is purged.
    purges: bool,
    /// Repositories are taken out of the mirror, and vanish at the primary.
    loses: bool,
}

impl Kind {
    fn draw(chance: &mut StdRng) -> Self {
        let mut one_in = |of: u32| chance.random_range(0..of) == 0;
        let (is_lossy, collects, clock_jumps, lists_short) = (one_in(3), one_in(2), one_in(6), one_in(6));
        let (purges, loses) = (one_in(3), one_in(3));
        let graces = [5, 20, 120].map(|minutes| Duration::from_secs(minutes * 60));
        let grace = collects.then(|| graces[chance.random_range(0..graces.len())]);
        Self { is_lossy, grace, clock_jumps, lists_short, purges, loses }
    }

    fn settings(&self) -> Settings {
        let mut settings = settings();
        if let Some(grace) = self.grace {
            settings.gc.every = Duration::from_secs(600);
            settings.gc.grace = grace;
            settings.limits.transfer = grace;
        }
        if self.is_lossy {
            settings.vet.exists_every = VET;
            settings.vet.hash_every = VET;
        }
        settings
    }

    /// How long after the last fault all must be well: two rounds of comparing, and of vetting where something was lost.
    fn patience(&self, settings: &Settings) -> Duration {
        let compared = settings.compare_every * 2 + Duration::from_secs(60);
        if self.is_lossy { compared + VET * 2 } else { compared }
    }
}

async fn schedule(seed: u64) {
    let mut chance = StdRng::seed_from_u64(seed);
    let universe = Universe::get();
    let kind = Kind::draw(&mut chance);
    let (shared, host, settings) = (Shared::new(), Host::new(seed), kind.settings());
    note(|| format!("{kind:?}"));
    let any_state = |chance: &mut StdRng| Some(chance.random_range(0..universe.states.len()));
    for repo in REPOS {
        host.set(repo, any_state(&mut chance));
    }
    let (mut nodes, mut purged) = (Vec::new(), BTreeMap::new());
    for _ in 0..chance.random_range(2..=4) {
        nodes.push(Node::start(&shared, &host, chance.random_range(0..u64::MAX), &settings).await);
    }
    for _ in 0..chance.random_range(8..20) {
        let at = chance.random_range(0..nodes.len());
        let repo = REPOS[chance.random_range(0..REPOS.len())];
        match chance.random_range(0..16) {
            0..=2 => host.set(repo, any_state(&mut chance)),
            3..=5 => {
                let router = router(nodes[at].app.clone());
                let cloning = clone(&router, repo);
                // A client has patience, and the node may be frozen.
                let _ = tokio::time::timeout(Duration::from_secs(120), cloning).await;
            }
            6 => nodes[at].view.set_weather(weather(&mut chance, kind.lists_short)),
            7 => host.set_mood(mood(&mut chance)),
            8 => {
                let node = nodes.swap_remove(at);
                node.kill();
                nodes.push(Node::start(&shared, &host, chance.random_range(0..u64::MAX), &settings).await);
            }
            9 => nodes[at].freeze(chance.random_range(0..2) == 1),
            10 if kind.is_lossy => spoil(&shared, &mut chance, repo),
            11 if kind.clock_jumps => shared.turn_clock([-DAY, DAY][chance.random_range(0..2)]),
            12 if kind.grace.is_some() => {
                tokio::time::sleep(settings.gc.grace + settings.gc.every).await;
            }
            13 if kind.purges => {
                if purge(&shared, &host, &mut chance, repo).await {
                    purged.insert(repo, host.ever(repo).len() - 1);
                }
            }
            14 if kind.loses => remove(&shared, &host, &mut chance, repo).await,
            15 if kind.loses => {
                host.set(repo, None);
                // Sometimes for long enough to be believed.
                let hours = if chance.random_range(0..4) == 0 { 3 } else { 0 };
                tokio::time::sleep(Duration::from_secs(hours * 3600 + chance.random_range(1..600))).await;
            }
            13 | 14 if chance.random_range(0..8) == 0 => {
                nodes[at].freeze(true);
                tokio::time::sleep(Duration::from_secs(chance.random_range(3600..3 * 3600))).await;
                nodes[at].freeze(false);
            }
            _ => tokio::time::sleep(Duration::from_secs(chance.random_range(1..600))).await,
        }
    }
    // Faults end: within two rounds everything is equal.
    host.set_mood(Mood::default());
    for node in &mut nodes {
        node.view.set_weather(Weather::default());
        node.freeze(false);
        if node.has_ended() {
            *node = Node::start(&shared, &host, chance.random_range(0..u64::MAX), &settings).await;
        }
    }
    if kind.loses {
        // All nodes have heard what was taken out, and clients want it again.
        tokio::time::sleep(Duration::from_secs(90)).await;
    }
    for repo in REPOS {
        if host.state(repo).is_none() && chance.random_range(0..2) == 0 {
            host.set(repo, any_state(&mut chance));
        }
        for node in &nodes {
            let _ = clone(&router(node.app.clone()), repo).await;
        }
    }
    tokio::time::sleep(kind.patience(&settings)).await;
    for repo in REPOS {
        // What was lost of a state that is not the newest, or purged, is nobody's any more; where the clock jumped, time says nothing of
        // it.
        let kept = !kind.is_lossy && !kind.clock_jumps && !kind.purges;
        // What is lost of a repository that the primary does not have cannot be mended.
        if host.state(repo).is_some() || !kind.is_lossy {
            checks::bucket(&shared, &host, repo, kept.then_some(settings.gc.grace));
        }
        for node in &nodes {
            match host.state(repo) {
                Some(_) => checks::node(&shared, &host, repo, node).await,
                None => checks::absent(&host, repo, node).await,
            }
        }
    }
    checks::forgotten(&shared, &nodes);
    for (repo, since) in purged {
        checks::purged(&shared, &host, repo, since);
    }
    for node in nodes {
        node.kill();
    }
}

/// Somebody runs `packmirror purge`, now and then for an object that is still reachable, and ends it if it takes too long. Says whether it said
/// that all is gone.
async fn purge(shared: &Arc<Shared>, host: &Arc<Host>, chance: &mut StdRng, repo: &str) -> bool {
    let process = Process::start_as(shared, host, 3, chance.random_range(0..u64::MAX));
    process.view.set_weather(weather(chance, false));
    let tips: Vec<&String> = Universe::get().states.iter().flat_map(|state| state.refs.values()).collect();
    let oid = (chance.random_range(0..3) == 0).then(|| tips[chance.random_range(0..tips.len())]);
    let oids = oid.map(|oid| ObjectId::from_hex(oid.as_bytes()).unwrap());
    let purging = process.purge_with(repo, oids.into_iter().collect());
    let purged = tokio::time::timeout(Duration::from_secs(chance.random_range(10..300)), purging).await;
    note(|| format!("purged {repo}: {purged:?}"));
    process.view.kill();
    purged.is_ok_and(|purged| purged.is_ok_and(|report| report.is_whole()))
}

/// Somebody runs `packmirror rm`.
async fn remove(shared: &Arc<Shared>, host: &Arc<Host>, chance: &mut StdRng, repo: &str) {
    let process = Process::start_as(shared, host, 3, chance.random_range(0..u64::MAX));
    process.view.set_weather(weather(chance, false));
    let removed = tokio::time::timeout(Duration::from_secs(60), process.remove(repo)).await;
    note(|| format!("removed {repo}: {:?}", removed.map(|removed| removed.map(drop))));
    process.view.kill();
}

/// Loses or spoils a blob of the newest generation of a repository.
fn spoil(shared: &Arc<Shared>, chance: &mut StdRng, repo: &str) {
    let records = walker::records(&checks::unprefixed(shared), repo);
    let Some(newest) = records.first() else { return };
    let named = walker::named(&newest.value);
    if named.is_empty() {
        return;
    }
    let key = format!("farm/{}", named[chance.random_range(0..named.len())].0);
    let (is_lost, at) = (chance.random_range(0..2) == 0, chance.random_range(0..1 << 20));
    note(|| format!("spoilt: {key}, lost: {is_lost}"));
    if is_lost { shared.lose(&key) } else { shared.flip(&key, at) }
}

/// Runs all numbers, on each core one at a time. Ends with the first that fails, which is printed.
pub fn on_all_cores(seeds: impl Iterator<Item = u64>, run: impl Fn(u64) + Sync) {
    let seeds = Mutex::new(seeds.collect::<Vec<_>>().into_iter());
    let failed = Mutex::new(None);
    let work = || {
        while failed.lock().unwrap().is_none() {
            let Some(seed) = seeds.lock().unwrap().next() else { break };
            if let Err(why) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
                eprintln!(
                    "number {seed} failed; a schedule once more: PACKMIRROR_TEST_SEED={seed} cargo test --lib sim::"
                );
                failed.lock().unwrap().get_or_insert(why);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for n in 0..cores {
            std::thread::Builder::new().name(format!("simulation {n}")).spawn_scoped(scope, work).unwrap();
        }
    });
    if let Some(why) = failed.into_inner().unwrap() {
        resume_unwind(why);
    }
}

#[test]
fn whatever_fails_the_farm_ends_equal_to_the_primary() {
    let (begun, done) = (std::time::Instant::now(), AtomicU64::new(0));
    on_all_cores(rounds(20), |seed| {
        simulate(seed);
        done.fetch_add(1, Ordering::Relaxed);
    });
    eprintln!("{} schedules in {:?}", done.into_inner(), begun.elapsed());
}

#[test]
fn the_same_seed_is_the_same_run() {
    on_all_cores(rounds(4), |seed| {
        let (first, second) = (simulate(seed), simulate(seed));
        let differs = first.iter().zip(&second).position(|(one, other)| one != other);
        let at = differs.unwrap_or(first.len().min(second.len()));
        let around = |calls: &[String]| calls[at.saturating_sub(3)..calls.len().min(at + 2)].join("\n  ");
        assert!(
            first == second,
            "seed {seed}, call {at} of {}:\n  {}\nand\n  {}",
            first.len(),
            around(&first),
            around(&second)
        );
    });
}
