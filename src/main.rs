//! The executable: reads the command line and runs what it names.

use std::process::ExitCode;

use clap::Parser;
use futures_util::FutureExt;
use heartbeat::cli::{self, Cli, Command};
use heartbeat::{monitor, payments, relay, shutdown, standalone, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(run(Cli::parse())).await {
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
    let deadline = |role| shutdown::within_deadline(role, told);
    match cli.command {
        Command::Standalone(args) => Box::pin(standalone::run(args, stop)).await,
        Command::Payments(args) => deadline(payments::run(args, stop).boxed()).await,
        Command::Relay(args) => deadline(relay::run(args, stop).boxed()).await,
        Command::Monitor(args) => deadline(monitor::run(args, stop).boxed()).await,
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
