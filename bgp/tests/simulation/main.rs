//! Networks of speakers in simulated time: what the sessions of two come to, and what route reflectors do with routes.
//!
//! Everything follows from the seed. A failure names it; `SEED=n cargo test -p sheave-bgp --test simulation NAME` runs it
//! alone, `SEEDS=n` so many.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod random;
mod reflection;
mod sessions;

/// Runs a simulation with each seed.
fn with_seeds(test: &str, seeds: u64, run: fn(u64)) {
    let seeds = match environment("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..environment("SEEDS").unwrap_or(seeds),
    };
    // Each thread takes its share.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let seeds = seeds.clone().skip(thread).step_by(threads);
            scope.spawn(move || {
                for seed in seeds {
                    let outcome = std::panic::catch_unwind(|| run(seed));
                    assert!(
                        outcome.is_ok(),
                        "seed {seed}: SEED={seed} cargo test -p sheave-bgp --test simulation {test}"
                    );
                }
            });
        }
    });
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}
