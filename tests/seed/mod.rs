//! Where the randomness of tests comes from: a fixed seed, so that a red run is a change's fault.
//!
//! Long runs look further: `PACKMIRROR_TEST_SEED=random` draws another seed, which is printed, `PACKMIRROR_TEST_SEED=NUMBER`
//! takes that one again, and `PACKMIRROR_TEST_TIMES=20` tries 20 times as many cases. What they find becomes a committed case.
#![allow(dead_code, reason = "each kind of test uses its part")]

/// The seed without which nothing is random.
const FIXED: u64 = 1;

/// Gives the seed of this run and prints it; tests of several rounds add the number of the round.
pub fn seed() -> u64 {
    let seed = match std::env::var("PACKMIRROR_TEST_SEED").as_deref() {
        Err(_) => FIXED,
        Ok("random") => rand::random(),
        Ok(number) => number.parse().expect("PACKMIRROR_TEST_SEED is `random` or a number"),
    };
    eprintln!("PACKMIRROR_TEST_SEED={seed}");
    seed
}

/// Says how many cases to try where `usual` are usual.
pub fn times(usual: u64) -> u64 {
    let times = std::env::var("PACKMIRROR_TEST_TIMES").ok();
    usual * times.map_or(1, |times| times.parse::<u64>().expect("PACKMIRROR_TEST_TIMES is a number"))
}

/// The seeds of `usual` rounds.
pub fn rounds(usual: u64) -> impl Iterator<Item = u64> {
    let first = seed();
    (0..times(usual)).map(move |round| first.wrapping_add(round))
}

/// What every `proptest!` begins with: so many cases, from the seed of this run.
pub fn cases(usual: u32) -> proptest::test_runner::Config {
    let cases = u32::try_from(times(usual.into())).expect("fewer cases");
    proptest::test_runner::Config {
        cases,
        // A strategy that makes some cases for nothing does so at any length.
        max_global_rejects: 1024.max(cases * 4),
        rng_seed: proptest::test_runner::RngSeed::Fixed(seed()),
        ..Default::default()
    }
}
