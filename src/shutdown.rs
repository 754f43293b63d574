//! Stopping cleanly: who says stop, who waits for whom, and for how long.
//!
//! A role stops in two stages. The token is cancelled and every loop finishes what it has in hand;
//! whatever has not ended within [`DEADLINE`] is abandoned. Nothing is lost by that, because
//! nothing is acknowledged before it is durable.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a role may take to stop.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// A signal that comes so soon after the first is the same word said twice, as when a program and
/// its group are both told.
const SAME_WORD: Duration = Duration::from_millis(500);
/// Exit code of a process that was told twice to stop.
const EXIT_AT_ONCE: i32 = 130;

/// A token that SIGTERM, SIGINT or SIGHUP (a terminal that closes) cancels. A second signal ends the process at once.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signals() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut hang_up = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut told: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
                _ = hang_up.recv() => (),
            }
            match told {
                None => {
                    tracing::info!("told to stop: finishing what is in hand");
                    told = Some(Instant::now());
                    cancelled.cancel();
                }
                Some(first) if first.elapsed() < SAME_WORD => (),
                Some(_) => {
                    tracing::warn!("told twice to stop: leaving at once");
                    std::process::exit(EXIT_AT_ONCE);
                }
            }
        }
    });
    Ok(token)
}

/// Runs a role until it ends, or until [`DEADLINE`] after it was told to stop.
///
/// # Errors
/// What the role returns, or that it did not stop in time.
pub async fn within_deadline(
    role: impl Future<Output = anyhow::Result<()>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DEADLINE).await;
    };
    tokio::select! {
        ended = role => ended,
        () = overdue => bail!("did not stop within {} s; what was in hand will be done again by the next start", DEADLINE.as_secs()),
    }
}

/// Waits for all of a role's tasks. The first that fails, or that ends although nobody said stop,
/// cancels the others: a role whose part has died must not look alive.
///
/// # Errors
/// The first failure.
pub async fn join_all(
    mut tasks: JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut first = Ok(());
    while let Some(joined) = tasks.join_next().await {
        let mut ended = joined.context("a task panicked").flatten();
        if ended.is_ok() && !shutdown.is_cancelled() {
            ended = Err(anyhow::anyhow!("a task ended although nobody told it to stop"));
        }
        if let Err(error) = ended {
            shutdown.cancel();
            if first.is_ok() {
                first = Err(error);
            }
        }
    }
    first
}

/// Sleeps, unless told to stop first. Answers whether to go on.
pub async fn sleep(duration: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => false,
        () = tokio::time::sleep(duration) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_early_fails_the_role_and_stops_the_others() {
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let told = shutdown.clone();
        tasks.spawn(async move {
            told.cancelled().await;
            Ok(())
        });
        tasks.spawn(async { Ok(()) });
        assert!(join_all(tasks, &shutdown).await.is_err());
        assert!(shutdown.is_cancelled());
    }

    #[tokio::test]
    async fn tasks_that_end_after_the_word_are_a_success() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async { Ok(()) });
        assert!(join_all(tasks, &shutdown).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_role_that_hangs_is_abandoned_after_the_deadline() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let ended = within_deadline(std::future::pending(), shutdown).await;
        assert!(ended.is_err());
    }
}
