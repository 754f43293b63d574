//! What the monitor knows of the way from the senders: reports of relays, how long it has been
//! without any, and the conditions that come of both.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::watermark::News;
use super::{Monitor, repository};
use crate::wire::{PipelineReport, Timestamp};
use crate::{clock, db, shutdown};

/// A pipeline of which nothing was heard for so long, while a monitor ran, is stalled.
pub const STALLED_AFTER: Duration = Duration::from_secs(15);
/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest time that one look counts as running: longer, and no monitor ran in between.
const LONGEST_LOOK: Duration = Duration::from_secs(5);
/// A window that has been over for so long without being closed is held.
const HELD_AFTER: Duration = Duration::from_secs(5);
/// Most windows that one step finds held.
const WINDOWS_PER_STEP: u32 = 1_000;

/// What can be wrong with a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No relay reports.
    Stalled,
    /// Redis was emptied, replaced or restarted.
    RedisReplaced,
    /// A group has not read for a day, so that the stream keeps everything for it.
    GroupSilent,
}

impl Condition {
    /// The condition as the database and the API name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::RedisReplaced => "redis_replaced",
            Self::GroupSilent => "group_silent",
        }
    }
}

/// Takes a relay's report.
///
/// # Errors
/// When the database does not do its part; the next report makes up for it.
pub async fn accept(
    monitor: &Monitor,
    report: PipelineReport,
    now: Timestamp,
) -> Result<(), db::Error> {
    let (report, replay_grace) = (Arc::new(report), monitor.replay_grace);
    let told = Arc::clone(&report);
    let (news, before, after) =
        db::transaction(&monitor.pool, "take a report", move |connection| {
            let report = Arc::clone(&told);
            Box::pin(async move {
                let before = repository::lock_progress(connection, &report).await?;
                let mut progress = before.clone();
                let news = progress.learn(&report, now, replay_grace);
                repository::store_report(connection, &report, now).await?;
                if news != News::Overtaken {
                    repository::store_progress(connection, &report, &progress, now).await?;
                    repository::store_obstacles(connection, &report, news, now).await?;
                    repository::store_conditions(connection, &report, news, now).await?;
                }
                Ok((news, before, progress))
            })
        })
        .await?;
    if news == News::Replacement {
        monitor.metrics.replacements.inc();
        tracing::warn!(
            stream = report.stream,
            frozen_until = after.frozen_until.map(tracing::field::display),
            "Redis was emptied, replaced or restarted: the watermark waits for what is sent again"
        );
    }
    if after.watermark > before.watermark {
        monitor.wake_sweep.notify_one();
    }
    Ok(())
}

/// Watches the pipelines until told to stop.
///
/// # Errors
/// Never; a failure is logged, shown by `/ready`, and tried again.
pub async fn run(monitor: Monitor, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut pause = Duration::ZERO;
    while shutdown::sleep(pause, &shutdown).await {
        let outcome = tokio::select! {
            outcome = watch_once(&monitor, clock::now()) => outcome,
            () = shutdown.cancelled() => return Ok(()),
        };
        let shown = outcome.as_ref().map_err(|error| error.class.advice());
        monitor.readiness.note("watching the pipeline", &shown);
        if let Err(error) = outcome {
            tracing::warn!(%error, "watching the pipeline failed; it will be tried again");
        }
        pause = INTERVAL;
    }
    Ok(())
}

/// Counts the time that monitors run, notes which pipelines are stalled, and from when on windows
/// are held.
///
/// # Errors
/// When the database does not do its part; the next look makes up for it.
pub async fn watch_once(monitor: &Monitor, now: Timestamp) -> Result<(), db::Error> {
    let watched = db::transaction(&monitor.pool, "watch the pipeline", move |connection| {
        Box::pin(async move {
            let running_us = repository::count_uptime(connection, now, LONGEST_LOOK).await?;
            let new = repository::begin_stalls(connection, running_us, STALLED_AFTER, now).await?;
            Ok((new, repository::count_stalled(connection, running_us, STALLED_AFTER).await?))
        })
    });
    let (newly_stalled, stalled) = watched.await?;
    monitor.metrics.stalled.set(stalled);
    for stream in newly_stalled {
        tracing::error!(
            stream,
            "no relay has reported for {} s: windows stay open, for --max-hold at the most",
            STALLED_AFTER.as_secs()
        );
    }
    let rules = monitor.closing_rules(now).await?;
    monitor.metrics.watched(&rules);
    let over = rules.by_clock().minus(HELD_AFTER);
    loop {
        let held = db::transaction(&monitor.pool, "hold windows", move |connection| {
            Box::pin(async move {
                repository::hold(connection, over, rules.running_us, WINDOWS_PER_STEP).await
            })
        })
        .await?;
        if held < WINDOWS_PER_STEP as usize {
            return Ok(());
        }
    }
}
