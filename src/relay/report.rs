//! Telling the monitor, once a second, how far delivery has come and what is in its way.
//!
//! The monitor closes a window only when the watermark has passed its end, so that nobody is
//! alerted about a heartbeat which is still on its way.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::deliver::Delivery;
use crate::shutdown;
use crate::stream::{DeadLetter, DeadLetters, Repeats, StreamError, Survey};
use crate::wire::{DeadLetterReport, LONGEST_NAME, MOST_ITEMS, PipelineReport, Timestamp};

/// Time between two reports.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// How long a monitor that knows no reports is not told of any.
const OLD_MONITOR_FOR: Duration = Duration::from_secs(5);
/// How long Redis has to be out of reach for the senders to have noticed.
const OUTAGE: Duration = Duration::from_secs(1);
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
    /// The group.
    pub group: String,
    /// Key of the heartbeats' stream.
    pub stream: String,
    /// What it remembers.
    pub memory: Memory,
}

/// What a reporter remembers from one report to the next.
#[derive(Debug)]
pub struct Memory {
    /// Since when Redis could not be reached, if it could not when it was last asked.
    cut_off_since: Option<Instant>,
    /// Whether it was never reached: there may have been an outage before this process.
    is_new: bool,
    /// When it was reached again, by its own clock.
    recovered_at: Option<Timestamp>,
    /// Until when the monitor is taken for one that knows no reports.
    old_until: Option<Instant>,
    /// The watermark that the monitor was told last.
    watermark: Option<Timestamp>,
    silent_groups: Vec<String>,
    silent_asked_at: Option<Instant>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            cut_off_since: None,
            is_new: true,
            recovered_at: None,
            old_until: None,
            watermark: None,
            silent_groups: Vec::new(),
            silent_asked_at: None,
        }
    }
}

/// Reports until told to stop.
///
/// # Errors
/// Never. Failures are logged, shown by `/ready`, and made good by the next report.
pub async fn run(mut reporter: Reporter) -> anyhow::Result<()> {
    let delivery = Arc::clone(&reporter.delivery);
    let mut pause = Duration::ZERO;
    while shutdown::sleep(pause, &delivery.shutdown).await {
        match reporter.report_once().await {
            Ok(()) => (),
            Err(ReportError::Stream(error)) => {
                tracing::debug!(%error, "Redis did not say where delivery stands");
            }
            Err(ReportError::Monitor(reason)) => {
                tracing::warn!(reason, "the monitor did not take a report; it gets the next");
            }
        }
        pause = INTERVAL;
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
        self.delivery.metrics.surveyed(&survey);
        if self.memory.old_until.is_some_and(|until| Instant::now() < until) {
            if self.delivery.forwarder.takes_one_by_one() {
                self.tell_senders(Repeats::CountedAgain).await;
            }
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
        if is_known {
            self.tell_senders(Repeats::CountedOnce).await;
        } else if self.delivery.forwarder.takes_one_by_one() {
            self.tell_senders(Repeats::CountedAgain).await;
        }
        self.memory.watermark = Some(report.watermark);
        self.memory.old_until = (!is_known).then(|| Instant::now() + OLD_MONITOR_FOR);
        if let Some(last) = letters.last().filter(|_| is_known) {
            self.letters.told(&self.group, last.id).await?;
        }
        Ok(())
    }

    /// Tells the senders, in Redis, what the monitor makes of what comes again. Each time, because
    /// Redis may have been emptied.
    async fn tell_senders(&self, repeats: Repeats) {
        if let Err(error) = self.delivery.group.publish_repeats(repeats).await {
            tracing::debug!(%error, "the senders cannot be told what the monitor is");
        }
    }

    /// Asks Redis, and once more if it fails: a connection that broke is no outage. After an outage
    /// the senders have to catch up, and the monitor must know.
    async fn survey(&mut self) -> Result<Survey, StreamError> {
        let group = &self.delivery.group;
        let began = Instant::now();
        let mut surveyed = group.survey().await;
        if surveyed.is_err() {
            surveyed = group.survey().await;
        }
        match &surveyed {
            Ok(survey) => {
                let since = self.memory.cut_off_since.take();
                if self.memory.is_new || since.unwrap_or(began).elapsed() >= OUTAGE {
                    self.memory.recovered_at = Some(survey.now);
                }
                self.memory.is_new = false;
            }
            Err(StreamError::NoGroup(_)) => (),
            Err(_) => {
                self.memory.cut_off_since.get_or_insert(began);
            }
        }
        surveyed
    }

    async fn look_for_silent_groups(&mut self) -> Result<(), StreamError> {
        let is_recent = |at: Instant| at.elapsed() < SILENT_INTERVAL;
        if self.memory.silent_asked_at.is_some_and(is_recent) {
            return Ok(());
        }
        // Names of others: one that is too long for a report is not worth the report.
        let mut silent = self.delivery.group.silent_groups().await?;
        silent.retain(|group| !group.is_empty() && group.len() <= LONGEST_NAME);
        silent.truncate(MOST_ITEMS);
        let count = i64::try_from(silent.len()).unwrap_or(i64::MAX);
        self.delivery.metrics.silent_groups.set(count);
        self.memory.silent_groups = silent;
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
            suspects: survey.suspects,
            resending: survey.resending,
            resent: survey.resent,
            dead_letters_total: survey.dead_letters,
            dead_letters: letters.iter().filter_map(told).collect(),
            silent_groups: self.memory.silent_groups.clone(),
        }
    }
}

/// What the monitor is told of a letter. Nothing of one that names no message of a stream.
fn told(letter: &DeadLetter) -> Option<DeadLetterReport> {
    Some(DeadLetterReport {
        stream: Some(letter.stream.clone())
            .filter(|stream| !stream.is_empty() && stream.len() <= LONGEST_NAME)?,
        stream_id: letter.original_id?,
        window_uuid: letter.window_uuid,
        slot: letter.slot,
        reason: letter.reason.chars().take(REASON_CHARS).collect(),
        at: Timestamp::parse(&letter.at).unwrap_or_else(|_| letter.id.written_at()),
    })
}
