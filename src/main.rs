//! The executable: reads the command line and runs what it names.

use std::process::ExitCode;

use clap::Parser;
use heartbeat::cli::{self, Cli, Command};
use heartbeat::{monitor, payments, relay, shutdown, standalone, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heartbeat: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    telemetry::start(&cli.log)?;
    let stop = shutdown::on_signals()?;
    let told = stop.clone();
    match cli.command {
        Command::Standalone(args) => standalone::run(args, stop).await,
        Command::Payments(args) => shutdown::within_deadline(payments::run(args, stop), told).await,
        Command::Relay(args) => shutdown::within_deadline(relay::run(args, stop), told).await,
        Command::Monitor(args) => shutdown::within_deadline(monitor::run(args, stop), told).await,
        Command::Migrate(args) => cli::migrate(args).await,
        Command::Healthcheck(args) => cli::healthcheck(args).await,
    }
}

/// An error and its causes in one line, each said once: some libraries repeat their cause.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| {
        match (said.is_empty(), said.contains(&cause)) {
            (true, _) => cause,
            (false, true) => said,
            (false, false) => format!("{said}: {cause}"),
        }
    })
}
