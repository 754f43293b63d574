//! The executable: reads the command line and runs what it names.

use std::process::ExitCode;

use anyhow::Context;
use heartbeat::cli::{self, Cli, Command, arguments};
use heartbeat::{
    dead_letters, explain, forget_group, monitor, payments, relay, shutdown, standalone, telemetry,
};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let cli = match arguments::read() {
        Ok(cli) => cli,
        Err(complaint) => return complaint.exit(),
    };
    let failure = cli.command.failure();
    let ended =
        tokio::runtime::Runtime::new().context("starting the runtime").and_then(|runtime| {
            let ended = runtime.block_on(Box::pin(run(cli)));
            // A name that is still being looked up must not hold up the exit.
            runtime.shutdown_background();
            ended
        });
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("heartbeat: {}", sentence(&error));
            failure
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    telemetry::start(&cli.log)?;
    let traces = cli.traces;
    match cli.command {
        Command::Standalone(args) => standalone::run(args, traces, shutdown::on_signals()?).await,
        Command::Payments(args) => role(|stop| payments::run(args, traces, stop)).await,
        Command::Relay(args) => role(|stop| relay::run(args, traces, stop)).await,
        Command::Monitor(args) => role(|stop| monitor::run(args, traces, stop)).await,
        // It alone has something to say by its exit code.
        Command::Explain(args) => return explain::run(args, traces.sampling()).await,
        Command::DeadLetters(args) => dead_letters::run(args).await,
        Command::ForgetGroup(args) => forget_group::run(args).await,
        Command::Migrate(args) => cli::migrate(args).await,
        Command::Healthcheck(args) => cli::healthcheck(args).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Runs a role until a signal tells it to stop, and then not for long.
async fn role<F>(start: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let stop = shutdown::on_signals()?;
    Box::pin(shutdown::within_deadline(start(stop.clone()), stop)).await
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
