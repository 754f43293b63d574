//! Telling the monitor, once a second, how far delivery has come and what is in its way.
//!
//! The monitor closes a window only when the watermark has passed its end, so that nobody is
//! alerted about a heartbeat which is still on its way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::NAME_HELD;
use super::deliver::Delivery;
use crate::shutdown;
use crate::stream::{DeadLetter, DeadLetters, StreamError, Survey};
use crate::wire::{DeadLetterReport, MOST_ITEMS, PipelineReport, Timestamp};

/// Time between two reports.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// How long a monitor that knows no reports is not told of any.
const OLD_MONITOR_FOR: Duration = Duration::from_mins(1);
/// Time between two looks for groups that have not read for a day.
const SILENT_INTERVAL: Duration = Duration::from_mins(1);
/// Dead letters of one report.
const LETTERS_PER_REPORT: usize = MOST_ITEMS;
/// Longest reason of a report, in characters.
const REASON_CHARS: usize = 400;

/// What a relay tells with, and what it remembers from one report to the next.
#[derive(Debug)]
pub struct Reporter {
    /// What it tells about.
    pub delivery: Arc<Delivery>,
    /// The dead letters beside the stream.
    pub letters: DeadLetters,
    /// The relay's name in its group.
    pub relay: String,
    /// This process, which the name belongs to.
    pub process: String,
    /// The group.
    pub group: String,
    /// Key of the heartbeats' stream.
    pub stream: String,
    /// What it remembers.
    pub memory: Memory,
}

/// What a reporter remembers from one report to the next.
#[derive(Debug, Default)]
pub struct Memory {
    /// Whether Redis could not be reached when it was last asked.
    is_cut_off: bool,
    /// When it was reached again, by its own clock.
    recovered_at: Option<Timestamp>,
    /// Until when the monitor is taken for one that knows no reports.
    old_until: Option<Instant>,
    /// The watermark that the monitor was told last.
    watermark: Option<Timestamp>,
    silent_groups: Vec<String>,
    silent_asked_at: Option<Instant>,
}

/// Reports until told to stop.
///
/// # Errors
/// That another relay has taken this one's name. Failures of reports are logged, shown by `/ready`,
/// and made good by the next.
pub async fn run(mut reporter: Reporter) -> anyhow::Result<()> {
    let delivery = Arc::clone(&reporter.delivery);
    let (group, process) = (&delivery.group, reporter.process.clone());
    let mut pause = Duration::ZERO;
    while shutdown::sleep(pause, &delivery.shutdown).await {
        if let Ok(Some(_)) = group.hold_name(&process, NAME_HELD).await {
            bail!(
                "another relay has taken the name {}: give each a --consumer-name of its own",
                reporter.relay
            );
        }
        if let Err(error) = reporter.report_once().await {
            tracing::debug!(%error, "telling the monitor where delivery stands failed");
        }
        pause = INTERVAL;
    }
    if let Err(error) = group.let_name_go(&process).await {
        tracing::debug!(%error, "letting the name go failed; it runs out");
    }
    Ok(())
}

/// Why a report was not made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Redis did not say where delivery stands.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The monitor did not take the report.
    #[error("{0}")]
    Monitor(String),
}

impl Reporter {
    /// Surveys the group, which publishes its watermark for the senders, and tells the monitor
    /// unless that is an old one.
    ///
    /// # Errors
    /// When Redis did not answer or the monitor did not take the report.
    pub async fn report_once(&mut self) -> Result<(), ReportError> {
        let survey = self.survey().await?;
        if self.memory.old_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        let letters = self.letters.untold(&self.group, LETTERS_PER_REPORT).await?;
        self.look_for_silent_groups().await?;
        let mut report = self.compose(survey, &letters);
        if let Some(told) = self.memory.watermark.filter(|_| letters.len() == LETTERS_PER_REPORT) {
            // There may be more. What the watermark is past and the monitor does not have is lost,
            // unless it knows by then that it was set aside.
            report.watermark = report.watermark.min(told);
        }
        let answer = self.delivery.forwarder.report(&report).await;
        self.delivery.readiness.note("reporting", &answer);
        let is_known = answer.map_err(ReportError::Monitor)?;
        self.memory.watermark = Some(report.watermark);
        self.memory.old_until = (!is_known).then(|| Instant::now() + OLD_MONITOR_FOR);
        if let Some(last) = letters.last().filter(|_| is_known) {
            self.letters.told(&self.group, last.id).await?;
        }
        Ok(())
    }

    /// Asks Redis, and once more if it fails: a connection that broke is no outage. After an outage
    /// the senders have to catch up, and the monitor must know.
    async fn survey(&mut self) -> Result<Survey, StreamError> {
        let group = &self.delivery.group;
        let mut surveyed = group.survey().await;
        if surveyed.is_err() {
            surveyed = group.survey().await;
        }
        match &surveyed {
            Ok(survey) if self.memory.is_cut_off => {
                self.memory.is_cut_off = false;
                self.memory.recovered_at = Some(survey.now);
            }
            Ok(_) | Err(StreamError::NoGroup(_)) => (),
            Err(_) => self.memory.is_cut_off = true,
        }
        surveyed
    }

    async fn look_for_silent_groups(&mut self) -> Result<(), StreamError> {
        let is_recent = |at: Instant| at.elapsed() < SILENT_INTERVAL;
        if self.memory.silent_asked_at.is_some_and(is_recent) {
            return Ok(());
        }
        self.memory.silent_groups = self.delivery.group.silent_groups().await?;
        self.memory.silent_asked_at = Some(Instant::now());
        for group in &self.memory.silent_groups {
            tracing::warn!(
                group,
                "this group has not read for a day, so that the stream keeps everything for it; \
                 if nobody needs it: heartbeat forget-group {group}"
            );
        }
        Ok(())
    }

    fn compose(&self, survey: Survey, letters: &[DeadLetter]) -> PipelineReport {
        PipelineReport {
            relay: self.relay.clone(),
            group: self.group.clone(),
            stream: self.stream.clone(),
            redis_identity: survey.identity,
            redis_time: survey.now,
            watermark: survey.watermark,
            recovered_at: self.memory.recovered_at,
            windows: survey.windows,
            heartbeats: survey.heartbeats,
            breaker: self.delivery.gate.report(),
            // Beyond that, the grace after a loss has to do.
            suspects: survey.suspects.into_iter().take(MOST_ITEMS).collect(),
            resending: survey.resending.into_iter().take(MOST_ITEMS).collect(),
            dead_letters_total: survey.dead_letters,
            dead_letters: letters.iter().filter_map(told).collect(),
            silent_groups: self.memory.silent_groups.clone(),
        }
    }
}

/// What the monitor is told of a letter. Nothing of one that names no message of a stream.
fn told(letter: &DeadLetter) -> Option<DeadLetterReport> {
    Some(DeadLetterReport {
        stream: Some(letter.stream.clone()).filter(|stream| !stream.is_empty())?,
        stream_id: letter.original_id?,
        window_uuid: letter.window_uuid,
        slot: letter.slot,
        reason: letter.reason.chars().take(REASON_CHARS).collect(),
        at: Timestamp::parse(&letter.at).unwrap_or_else(|_| letter.id.written_at()),
    })
}
