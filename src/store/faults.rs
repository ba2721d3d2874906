//! What the bucket promises while the store fails: every call of the publishing protocol broken in turn, in every way.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;

use super::faulty::{Fault, Faulty, Op, at_once};
use super::suite::prepared;
use super::*;
use crate::git::path::RepoPath;

const FAULTS: [Fault; 7] = [
    Fault::Unavailable,
    Fault::ReplyLost,
    Fault::Refused,
    Fault::Missing,
    Fault::Conflict,
    Fault::ShortBody,
    Fault::CorruptByte,
];

/// Two nodes on one store, the first of them behind faults and with this many attempts for everything.
fn two_nodes(attempts: u32) -> (Bucket, Arc<Faulty>, Bucket) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let faulty = Faulty::shared(store.clone());
    let one = Bucket::over(faulty.clone(), "farm").with_policy(at_once(attempts));
    (one, faulty, Bucket::over(store, "farm").with_policy(at_once(attempts)))
}

fn repo() -> RepoPath {
    RepoPath::parse("r").unwrap()
}

/// Walks the bucket as it lies there: the generations are a chain and name only blobs that are whole. Returns them.
async fn walk(bucket: &Bucket) -> Vec<Generation> {
    let mut chain: Vec<Generation> = Vec::new();
    for number in 1.. {
        let Some(found) = bucket.get(&repo(), number).await.unwrap() else { break };
        assert_eq!(found.parent, chain.last().map(Generation::id), "I3: generation {number}");
        for blob in found.blobs() {
            bucket.verify(&blob).await.expect("I1: every named blob is whole");
        }
        chain.push(found);
    }
    assert_eq!(
        bucket.newest(&repo()).await.unwrap().map(|newest| newest.id()),
        chain.last().map(Generation::id)
    );
    chain
}

/// Stores and publishes like a sync; gives up at the first error.
async fn sync(
    bucket: &Bucket,
    parent: Option<&Generation>,
    seed: u64,
) -> Result<(Generation, Publish), StoreError> {
    let record = prepared(bucket, "r", parent, seed).await?;
    let outcome = bucket.publish(&record).await?;
    Ok((record, outcome))
}

/// How many calls an undisturbed sync makes.
async fn calls_of_a_sync() -> usize {
    let (one, faulty, _) = two_nodes(3);
    sync(&one, one.newest(&repo()).await.unwrap().as_ref(), 1).await.unwrap();
    faulty.total()
}

#[tokio::test]
async fn a_sync_of_one_push_costs_four_puts_and_one_create() {
    let (one, faulty, _) = two_nodes(3);
    let first = sync(&one, one.newest(&repo()).await.unwrap().as_ref(), 1).await.unwrap().0;
    faulty.reset();
    sync(&one, Some(&first), 2).await.unwrap();
    assert_eq!(faulty.counts(), [(Op::Create, 5)].into());
    faulty.reset();
    one.after(&repo(), 2).await.unwrap();
    assert_eq!(faulty.counts(), [(Op::Get, 1)].into(), "asking for news");
    let cold = Bucket::over(faulty.clone(), "farm");
    faulty.reset();
    cold.newest(&repo()).await.unwrap();
    assert_eq!(faulty.counts(), [(Op::Get, 1), (Op::List, 1)].into(), "a cold node");
}

#[tokio::test]
async fn every_single_fault_leaves_the_old_state_or_the_new_one() {
    let calls = calls_of_a_sync().await;
    assert_eq!(calls, 6, "a listing, four blobs, a record");
    for (attempts, n) in (1..=calls + 4).flat_map(|n| [(1, n), (3, n)]) {
        for fault in FAULTS {
            let case = format!("call {n}: {fault:?}, attempts: {attempts}");
            let (one, faulty, clean) = two_nodes(attempts);
            faulty.nth(n, fault.clone());
            let first = match one.newest(&repo()).await {
                Ok(newest) => sync(&one, newest.as_ref(), 1).await,
                Err(error) => Err(error),
            };
            let chain = walk(&clean).await;
            match &first {
                Ok((record, Publish::Won)) => assert_eq!(chain[0].id(), record.id(), "{case}"),
                Ok((_, Publish::Lost(_))) => panic!("{case}: lost against nobody"),
                // Nothing was published, or it was and we know that we do not know.
                Err(error) => assert!(chain.is_empty() || error.is_transient(), "{case}: {error}"),
            }
            if attempts == 3 && matches!(fault, Fault::Unavailable | Fault::ReplyLost | Fault::Conflict) {
                assert!(first.is_ok(), "{case}: one hiccup is not noticed: {first:?}");
            }
            // The same node, later, ends in exactly one more state.
            faulty.heal();
            let newest = one.newest(&repo()).await.unwrap();
            let (_, outcome) = sync(&one, newest.as_ref(), 2).await.unwrap();
            assert_eq!(outcome, Publish::Won, "{case}");
            assert_eq!(walk(&clean).await.len(), chain.len() + 1, "{case}");
        }
    }
}

/// One node publishes under faults while another publishes the same number before or after it.
async fn duel(plan: &[(usize, Fault)], rival_first: bool, attempts: u32) {
    let case = format!("{plan:?}, rival first: {rival_first}, attempts: {attempts}");
    let (one, faulty, two) = two_nodes(attempts);
    let base = sync(&two, None, 1).await.unwrap().0;
    one.newest(&repo()).await.unwrap();
    two.newest(&repo()).await.unwrap();
    let mine = prepared(&two, "r", Some(&base), 2).await.unwrap();
    let theirs = prepared(&two, "r", Some(&base), 3).await.unwrap();
    faulty.reset();
    for (n, fault) in plan {
        faulty.nth(*n, fault.clone());
    }
    let mut rival = None;
    if rival_first {
        rival = Some(two.publish(&theirs).await.unwrap());
    }
    let first = one.publish(&mine).await;
    let rival = match rival {
        Some(rival) => rival,
        None => two.publish(&theirs).await.unwrap(),
    };
    faulty.heal();
    // Whatever was left open is settled by asking again, and never against what was said before.
    let again = one.publish(&mine).await.unwrap();
    if let Ok(first) = &first {
        assert_eq!(first == &Publish::Won, again == Publish::Won, "{case}: {first:?} then {again:?}");
    }
    let winners = [&again, &rival].into_iter().filter(|outcome| **outcome == Publish::Won).count();
    assert_eq!(winners, 1, "{case}: {again:?} {rival:?}");
    let chain = walk(&two).await;
    let winner = if rival == Publish::Won { &theirs } else { &mine };
    assert_eq!((chain.len(), chain[1].id()), (2, winner.id()), "{case}");
    for outcome in [again, rival] {
        if let Publish::Lost(shown) = outcome {
            assert_eq!(shown.id(), winner.id(), "{case}");
        }
    }
}

#[tokio::test]
async fn there_are_never_two_winners() {
    for (rival_first, attempts) in [(false, 1), (true, 1), (false, 3), (true, 3)] {
        for n in 1..=6 {
            for fault in FAULTS {
                duel(&[(n, fault.clone())], rival_first, attempts).await;
                for later in n + 1..=7 {
                    for second in FAULTS {
                        duel(&[(n, fault.clone()), (later, second)], rival_first, attempts).await;
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_store_that_is_down_leaves_the_outcome_open() {
    let (one, faulty, clean) = two_nodes(3);
    let record = prepared(&one, "r", None, 1).await.unwrap();
    one.newest(&repo()).await.unwrap();
    // The write lands, then nothing is heard of the store any more.
    faulty.on(Op::Create, faulty.counts()[&Op::Create] + 1, Fault::ReplyLost);
    faulty.down(Fault::Unavailable);
    let error = one.publish(&record).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(walk(&clean).await.len(), 1);
    faulty.heal();
    assert_eq!(one.publish(&record).await.unwrap(), Publish::Won);
}

#[tokio::test]
async fn a_writer_that_overslept_does_not_believe_in_a_collected_number() {
    let (one, _, two) = two_nodes(3);
    let base = sync(&two, None, 1).await.unwrap().0;
    let late = prepared(&one, "r", Some(&base), 2).await.unwrap();
    let second = sync(&two, Some(&base), 3).await.unwrap().0;
    let third = sync(&two, Some(&second), 4).await.unwrap().0;
    two.remove(&super::generation::key(&repo().key(), 2)).await.unwrap();
    match one.publish(&late).await.unwrap() {
        Publish::Lost(newest) => assert_eq!(newest.id(), third.id()),
        Publish::Won => panic!("its number was used up"),
    }
}

#[tokio::test]
async fn big_uploads_survive_lost_replies_and_never_leave_half_a_blob() {
    let bytes = vec![7; (33 << 20) + 5];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let id = BlobId::of(&bytes);
    let silent = |_, _| {};
    // head, start, three parts, end, and the look afterwards.
    for n in 1..=7 {
        for fault in [Fault::Unavailable, Fault::ReplyLost, Fault::Refused] {
            let (one, faulty, clean) = two_nodes(3);
            faulty.nth(n, fault.clone());
            let put = one.put_blob_file(BlobKind::Pack, file.path(), Some(id), &silent).await;
            let blob = BlobRef { id, kind: BlobKind::Pack, len: bytes.len() as u64 };
            match put {
                Ok(found) => {
                    assert_eq!(found, blob);
                    clean.head(&blob).await.unwrap();
                }
                Err(_) => {
                    let head = clean.head(&blob).await;
                    assert!(
                        matches!(head, Err(StoreError::NotFound { .. })),
                        "call {n}: {fault:?}: {head:?}"
                    );
                }
            }
            faulty.heal();
            one.put_blob_file(BlobKind::Pack, file.path(), Some(id), &silent).await.unwrap();
            clean.verify(&blob).await.unwrap();
        }
    }
    let (one, faulty, _) = two_nodes(3);
    one.put_blob_file(BlobKind::Pack, file.path(), Some(id), &silent).await.unwrap();
    faulty.reset();
    one.put_blob_file(BlobKind::Pack, file.path(), Some(id), &silent).await.unwrap();
    assert_eq!(faulty.counts(), [(Op::Head, 1)].into(), "what is there is not sent again");
}

#[tokio::test]
async fn spoilt_answers_never_get_through() {
    let (one, faulty, _) = two_nodes(3);
    let bytes = bytes::Bytes::from(vec![9; (17 << 20) + 1]);
    let small = one.put_blob(BlobKind::Graph, bytes.slice(..100_000)).await.unwrap();
    let big = one.put_blob(BlobKind::Pack, bytes.clone()).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for fault in FAULTS {
        for n in 1..=4 {
            faulty.reset();
            faulty.nth(n, fault.clone());
            if let Ok(found) = one.get_blob(&small).await {
                assert_eq!(found, bytes[..100_000], "{fault:?} at {n}");
            }
            faulty.reset();
            faulty.nth(n, fault.clone());
            if one.download(&big, file.path()).await.is_ok() {
                assert!(std::fs::read(file.path()).unwrap() == bytes, "{fault:?} at {n}");
            }
        }
        for op in [Op::Get, Op::Range] {
            faulty.reset();
            faulty.always(op, fault.clone());
            let small = if op == Op::Get {
                one.get_blob(&small).await.map(drop)
            } else {
                Err(StoreError::refused("", ""))
            };
            let big = if op == Op::Range {
                one.download(&big, file.path()).await
            } else {
                Err(StoreError::refused("", ""))
            };
            assert!(small.is_err() && big.is_err(), "{fault:?} always");
        }
    }
}
