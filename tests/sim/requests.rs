//! What everything asks of the store, as `docs/operations.md` says it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::client::{Outcome, clone};
use super::cold::{Asking, TRIP, ask, cold, quiet, twenty};
use super::layered::{Mirrored, REPO};
use super::primary::Host;
use super::schedules::in_paused_time;
use super::store::{Call, Shared};
use super::world::{Node, settings};
use crate::git::path::RepoPath;
use crate::serve::listen::router;

/// Numbers of requests: listings, reads, creations, writes, deletions.
type Row = [usize; 5];

/// The rows of the table, by what is done; `layers` is what `L` stands for.
fn said(layers: usize) -> BTreeMap<String, Row> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = std::fs::read_to_string(page).unwrap();
    let (_, table) = text.split_once("<!-- requests: held equal by a test -->\n").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with('|')).skip(2);
    let term = |term: &str| match term.strip_suffix('L') {
        Some(times) => times.parse::<usize>().unwrap() * layers,
        None => term.parse().unwrap(),
    };
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let numbers = cells[1..].iter().map(|cell| cell.split(" + ").map(term).sum());
        (cells[0].to_owned(), numbers.collect::<Vec<_>>().try_into().unwrap())
    })
    .collect()
}

/// What a call is for.
#[derive(Clone, Copy, PartialEq)]
enum For {
    /// One repository.
    Repo,
    /// A look for repositories that are new.
    News,
    /// What nodes say to each other.
    Beat,
}

impl For {
    fn of(call: &Call) -> Self {
        match call.key.as_str() {
            "farm/repos" => Self::News,
            key if key.starts_with("farm/repos/") || key.starts_with("farm/blobs/") => Self::Repo,
            _ => Self::Beat,
        }
    }
}

fn counted(calls: &[Call], wanted: For) -> Row {
    let mut row = Row::default();
    for call in calls.iter().filter(|call| For::of(call) == wanted) {
        row[match call.what {
            "list" | "folders" => 0,
            "get" | "head" => 1,
            "create" => 2,
            "put" => 3,
            _ => 4,
        }] += 1;
    }
    row
}

const FIRST: &str = "the first clone or fetch on an empty cache";
const ANSWERED: &str = "the same where an answer is kept";

/// So many layers without an answer.
fn plain(layers: usize) -> &'static Mirrored {
    static PLAIN: OnceLock<[Mirrored; 2]> = OnceLock::new();
    let [one, twenty] = PLAIN.get_or_init(|| [1, 20].map(|layers| Mirrored::of(25, layers, false)));
    if layers == 1 { one } else { twenty }
}

async fn whole(node: &Node) {
    let cloned = clone(&router(node.app.clone()), REPO).await;
    assert!(matches!(cloned, Outcome::Whole(_)), "{cloned:?}");
}

/// One request on an empty cache.
fn first(mirrored: &Mirrored, asking: Asking) -> Row {
    let mut row = Row::default();
    in_paused_time(async {
        let (node, _) = cold(mirrored).await;
        ask(&node, mirrored, asking).await;
        row = counted(&node.view.heard(), For::Repo);
    });
    row
}

#[test]
fn the_store_is_asked_as_often_as_the_documentation_says() {
    let mut seen = Vec::new();
    let mut see = |what: &str, row| seen.push((what.to_owned(), row));
    for (mirrored, is_answered) in [(plain(1), false), (plain(20), false), (twenty(), true)] {
        let layers = mirrored.generation.layers.len();
        for asking in [Asking::Clone, Asking::Fetch, Asking::DepthOne] {
            let mut row = first(mirrored, asking);
            if is_answered && matches!(asking, Asking::Clone) {
                // The rest of the large pack, of seven blocks.
                row[1] -= 2;
            }
            let what = if is_answered { ANSWERED } else { FIRST };
            assert_eq!(row, said(layers)[what], "{asking:?} of {layers} layers");
        }
    }
    see(FIRST, said(1)[FIRST]);
    see(ANSWERED, said(1)[ANSWERED]);
    in_paused_time(async {
        let (shared, host) = (Shared::new(), Host::new(1));
        host.is_prompt.store(true, Ordering::Relaxed);
        host.set(REPO, Some(0));
        let node = Node::start(&shared, &host, 1, &quiet()).await;
        node.view.set_pace(TRIP);
        tokio::time::sleep(Duration::from_secs(20)).await;
        whole(&node).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        whole(&node).await;
        let heard = |wanted| {
            let row = counted(&node.view.heard(), wanted);
            node.view.listen();
            row
        };
        heard(For::Repo);
        whole(&node).await;
        see("a clone, a fetch or a poll of what is open and in the cache", heard(For::Repo));
        let repo = node.app.mirror.repo(&RepoPath::parse(REPO).unwrap()).unwrap();
        repo.settled(repo.ask()).await;
        see("a comparison that finds the primary as it was", heard(For::Repo));
        host.set(REPO, Some(1));
        repo.settled(repo.ask()).await;
        // With what follows it.
        tokio::time::sleep(Duration::from_secs(100)).await;
        see("a sync of one push", heard(For::Repo));
        let looks = 3;
        let beats = (settings().compare_every * looks).as_secs() as u32
            / node.app.mirror.beat_every().as_secs() as u32;
        tokio::time::sleep(node.app.mirror.beat_every() * beats).await;
        let calls = node.view.heard();
        // One may fall out of the time, or one more in.
        let each = |times: u32| move |all: usize| (all + times as usize / 2) / times as usize;
        see("a heartbeat of the only node", counted(&calls, For::Beat).map(each(beats)));
        see(
            "a look for new repositories, every `compare_every`",
            counted(&calls, For::News).map(each(looks)),
        );
    });
    assert_eq!(seen.iter().map(|(what, row)| (what.clone(), *row)).collect::<BTreeMap<_, _>>(), said(1));
}
