//! What `docs/guarantees.md` promises under load, again and again, and a table of what was counted and measured.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::figures::Figures;
use crate::lab::{Kind, Lab};
use crate::scenarios;

/// Scenarios whose paths are cut without a word, by which BFD's time is measured: they run at `--bfd`. In others it only has to work, as in
/// `lab test`.
const TIMED: [&str; 2] = ["failover-power-cut", "failover-leaf-cut"];

/// Scenarios by name, and how often each runs.
pub const PLAN: &[(&str, usize)] = &[
    ("failover-power-cut", 20),
    ("failover-leaf-cut", 20),
    ("failover-link-flaps", 3),
    ("failover-restarts", 50),
    ("failover-restarts-alone", 10),
    ("failover-director-leaves", 10),
    ("failover-rolled", 10),
    ("failover-rolled-local", 10),
    ("failover-peers-misbehave", 5),
    ("failover-control-power-cut", 10),
    ("failover-control-withdrawn", 10),
    ("api-server-away", 2),
    ("drain", 10),
];

/// What is run, and how.
#[derive(clap::Args)]
pub struct Options {
    /// How often each scenario runs; without, each as often as is its own.
    #[arg(long)]
    rounds: Option<usize>,
    /// Only those whose name begins with this.
    #[arg(long, value_name = "NAME", default_value = "")]
    scenario: String,
    /// Milliseconds between packets of BFD where its time is measured; three that do not come are noticed. On a busy machine that many are
    /// late.
    #[arg(long, value_name = "MS", default_value_t = 50)]
    bfd: u16,
}

/// One line of the table.
struct Row {
    name: &'static str,
    rounds: usize,
    passed: usize,
    figures: Figures,
}

/// Runs them; an error if one failed.
pub fn run(options: &Options, binary: &Path, dir: &Path) -> Result<()> {
    let Options { rounds, scenario: prefix, bfd } = options;
    let bfd = Duration::from_millis((*bfd).into());
    let all = scenarios::all();
    let chosen: Vec<_> = PLAN.iter().filter(|(name, _)| name.starts_with(prefix.as_str())).collect();
    ensure!(!chosen.is_empty(), "no scenario of the soak begins with {prefix}");
    let mut rows = Vec::new();
    let mut lab: Option<(Kind, Lab)> = None;
    for (name, planned) in chosen {
        let (kind, scenario) = all.iter().find(|(_, scenario)| scenario.name == *name).context(*name)?;
        let kind = match kind {
            Kind::Watched(_) if TIMED.contains(name) => Kind::Watched(bfd),
            kind => *kind,
        };
        let mut row =
            Row { name, rounds: rounds.unwrap_or(*planned), passed: 0, figures: Figures::default() };
        for round in 1..=row.rounds {
            let start = Instant::now();
            let (result, figures, left) = scenarios::run_one(kind, scenario, lab.take(), binary, dir);
            lab = left;
            row.figures.add(&figures);
            let outcome = if result.is_ok() { "ok" } else { "FAILED" };
            println!("{outcome} {name} {round} of {} ({:.1} s)", row.rounds, start.elapsed().as_secs_f32());
            match result {
                Ok(()) => row.passed += 1,
                Err(error) => println!("{error:#}"),
            }
        }
        // Whoever ends it early has what is done.
        println!("{}", row.line());
        rows.push(row);
    }
    print!("\n{}", table(&rows));
    let failed = rows.iter().map(|row| row.rounds - row.passed).sum::<usize>();
    ensure!(failed == 0, "{failed} rounds failed");
    Ok(())
}

impl Row {
    fn line(&self) -> String {
        let Self { name, rounds, passed, figures } = self;
        let Figures { requests, failed, long, kept, reset, silence, slowest, .. } = figures;
        let times = figures
            .router_times()
            .map_or_else(String::new, |(p50, max)| format!("{} ms, {} ms", p50.as_millis(), max.as_millis()));
        let measured = |time: &Duration| {
            if time.is_zero() { String::new() } else { format!("{} ms", time.as_millis()) }
        };
        format!(
            "| {name} | {passed} of {rounds} | {requests} | {failed} | {kept} of {long} | {reset} | {times} | {} | {} |",
            measured(silence),
            measured(slowest)
        )
    }
}

fn table(rows: &[Row]) -> String {
    let lines = rows.iter().map(|row| row.line() + "\n");
    let head = "| scenario | rounds ok | requests | failed | long connections kept | reset | router's time: p50, max | longest silence | slowest answer |\n\
                |---|---|---|---|---|---|---|---|---|\n";
    std::iter::once(head.to_owned()).chain(lines).collect()
}
