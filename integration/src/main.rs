//! `sheave-lab`: the part of `integration/lab` that runs where the kernel can do it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sheave_integration::lab::Kind;
use sheave_integration::scenarios::{self, Scenario};
use sheave_integration::{apiserver, bench, demo, shell, soak};

/// Runs the lab. Start it with `integration/lab`, which prepares what it needs.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// What Sheave does, in two minutes.
    Demo,
    /// Measurements, side by side.
    Bench {
        /// How many Services.
        #[arg(long, default_value_t = 10_000)]
        services: u16,
        /// Which part; all without.
        #[arg(value_enum)]
        part: Option<bench::Part>,
    },
    /// One case of a measurement, in this process.
    #[command(hide = true, subcommand)]
    BenchCase(bench::Case),
    /// The API server double with these lists, until standard input ends; then prints what was asked.
    #[command(hide = true)]
    Apiserver {
        /// Where the files of a service account go.
        account: PathBuf,
        /// Lists as an API server told them.
        lists: Vec<PathBuf>,
    },
    /// A shell in the lab.
    Shell,
    /// What holds under load, again and again; prints a table.
    Soak(soak::Options),
    /// Run scenarios; prints a line for each and then the counts.
    Scenarios {
        /// Only those whose name begins with this.
        #[arg(long, value_name = "NAME")]
        scenario: Option<String>,
        /// Print them and what they prove, and run none.
        #[arg(long)]
        list: bool,
        /// Run only those that nobody has taken yet, and take them by a file in this directory: for several that run beside each other, in network
        /// namespaces of their own.
        #[arg(long, value_name = "DIRECTORY")]
        taken: Option<PathBuf>,
    },
}

/// Files of the running lab; in memory, and each run's own.
fn work_dir() -> PathBuf {
    PathBuf::from(format!("/run/sheave-lab-{}", std::process::id()))
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match command {
        Task::Demo => done(demo::run(&sheave_binary(), &work_dir())),
        Task::Bench { services, part } => done(bench::run(part, services, &sheave_binary(), &work_dir())),
        Task::BenchCase(case) => done(bench::run_case(&case)),
        Task::Apiserver { account, lists } => done(apiserver::run(&account, &lists)),
        Task::Shell => done(shell::run(&sheave_binary(), &work_dir())),
        Task::Soak(options) => done(soak::run(&options, &sheave_binary(), &work_dir())),
        Task::Scenarios { scenario, list, taken } => {
            let prefix = scenario.unwrap_or_default();
            let chosen: Vec<(Kind, Scenario)> =
                scenarios::all().into_iter().filter(|(_, s)| s.name.starts_with(&prefix)).collect();
            if list {
                chosen.iter().for_each(|(_, s)| println!("{}: {}", s.name, s.proves));
                return ExitCode::SUCCESS;
            }
            if chosen.is_empty() {
                eprintln!("no scenario's name begins with {prefix}; --list prints them");
                return ExitCode::from(2);
            }
            run_scenarios(&chosen, taken.as_deref())
        }
    }
}

fn done(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_scenarios(chosen: &[(Kind, Scenario)], taken: Option<&Path>) -> ExitCode {
    let take =
        |scenario: &Scenario| taken.is_none_or(|dir| File::create_new(dir.join(scenario.name)).is_ok());
    let counts = scenarios::run(chosen, take, &sheave_binary(), &work_dir());
    println!("scenarios: {} passed, {} failed", counts.passed, counts.failed);
    if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The agent lies beside this program: both are built together.
fn sheave_binary() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("sheave")
}
