//! How fast heartbeat is against the limit of the database under it: `make bench`.
//!
//! Everything is real: private servers with every durability setting on, the release build of the
//! executable as processes of their own, HTTP and Redis in between. The yardstick is measured in the
//! same run: the same rows into the same table by multi-row INSERT, and nothing else.
//!
//! Prints a table and writes it to `target/bench/pipeline.json`. A figure that misses its target is
//! shown as such; the exit code says only whether everything could be measured.

#![allow(unreachable_pub, reason = "nobody uses a benchmark as a library")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure stops")]
#![allow(clippy::cast_precision_loss, reason = "figures are rounded for people")]

mod api;
mod balanced;
mod client;
mod drain;
mod ground;
mod growth;
mod history;
mod latency;
mod load;
mod memory;
mod post;
mod process;
mod prune;
mod questions;
mod raw;
mod stored;
mod sweep;
mod table;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use heartbeat::local::Engine;

use self::ground::Ground;
use self::table::Table;

/// What is measured, one after the other. Later ones use the figures of earlier ones.
const SCENARIOS: [&str; 10] =
    ["raw", "drain", "post", "latency", "sweep", "growth", "api", "prune", "memory", "balanced"];

/// How long one of them may take.
const PATIENCE: Duration = Duration::from_mins(8);

/// Options of the benchmark.
#[derive(Debug, Parser)]
struct Options {
    /// Which product to measure on
    #[arg(long, value_enum, default_value = "mysql")]
    engine: Engine,

    /// The server to start; otherwise the first of that product on the path
    #[arg(long, value_name = "FILE")]
    mysqld: Option<PathBuf>,

    /// Measure only these; `raw` is always measured, because others are compared with it
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,

    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    for name in &options.only {
        assert!(SCENARIOS.contains(&name.as_str()), "{name} is none of {SCENARIOS:?}");
    }
    let start = Instant::now();
    let ground = Ground::start(options.engine, options.mysqld.as_deref()).await;
    println!("{}", ground.describe());
    let mut table = Table::default();
    let wanted = |name: &&str| {
        *name == "raw" || options.only.is_empty() || options.only.iter().any(|only| only == name)
    };
    for name in SCENARIOS.into_iter().filter(wanted) {
        let began = Instant::now();
        let measured = tokio::time::timeout(PATIENCE, measure(name, &ground, &mut table));
        measured.await.expect("it ends");
        eprintln!("{name}: measured in {:.0} s", began.elapsed().as_secs_f64());
    }
    println!("{table}");
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    table.write_down();
    ground.stop().await;
}

async fn measure(name: &str, ground: &Ground, table: &mut Table) {
    match name {
        "raw" => raw::measure(ground, table).await,
        "drain" => drain::measure(ground, table).await,
        "post" => post::measure(ground, table).await,
        "latency" => latency::measure(ground, table).await,
        "sweep" => sweep::measure(ground, table).await,
        "growth" => growth::measure(ground, table).await,
        "api" => api::measure(ground, table).await,
        "prune" => prune::measure(ground, table).await,
        "memory" => memory::measure(ground, table).await,
        "balanced" => balanced::measure(ground, table).await,
        _ => unreachable!("names are checked first"),
    }
}
