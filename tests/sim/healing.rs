//! Data that is lost in the bucket, and what nodes know of it after it is mended.

use std::time::Duration;

use super::checks;
use super::client::{Outcome, clone};
use super::primary::Host;
use super::schedules::in_paused_time;
use super::store::Shared;
use super::walker;
use super::world::{Node, settings};
use crate::retry::plan;
use crate::serve::listen::router;

const REPO: &str = "team/app.git";

#[test]
fn a_node_that_made_a_pack_anew_with_the_same_bytes_knows_that_it_is_whole() {
    plan(1);
    in_paused_time(async {
        let (shared, host, mut settings) = (Shared::new(), Host::new(1), settings());
        // Nothing is looked at again because it is time.
        settings.compare_every = Duration::from_secs(86_400);
        host.set(REPO, Some(0));
        let first = Node::start(&shared, &host, 1, &settings).await;
        let _ = clone(&router(first.app.clone()), REPO).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        first.kill();
        let records = walker::records(&checks::unprefixed(&shared), REPO);
        let named = walker::named(&records[0].value);
        let (pack, _) = named.iter().find(|(key, _)| key.ends_with(".pack")).unwrap();
        // Its cache is empty: it has the pack from the primary alone.
        let second = Node::start(&shared, &host, 2, &settings).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        shared.flip(&format!("farm/{pack}"), 100);
        let cloned = clone(&router(second.app.clone()), REPO).await;
        assert!(matches!(cloned, Outcome::Whole(_)), "{cloned:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let now = walker::records(&checks::unprefixed(&shared), REPO);
        assert!(now.len() > records.len(), "it was made anew");
        assert!(walker::named(&now[0].value).contains(&named[1]), "with the same bytes");
        checks::bucket(&shared, &host, REPO, None);
        checks::node(&shared, &host, REPO, &second).await;
        second.kill();
    });
}
