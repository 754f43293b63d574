//! What the senders wrote: the audits that the monitor was told of, asked slot by slot.
//!
//! An audit that cannot be read keeps the monitor from nothing but verdicts, so that it is neither
//! waited for nor a reason not to be ready.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use uuid::Uuid;

use super::repository::{self, Listed, NumberedRow, Wanted};
use crate::config::DatabaseUrl;
use crate::db::{self, Reader};
use crate::verdict::{Audit, AuditRow};
use crate::wire::{Slot, Tick, Window};

/// How long one audit may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The payments databases that the monitor reads.
#[derive(Clone, Debug, Default)]
pub struct Audits(Arc<[Database]>);

#[derive(Debug)]
struct Database {
    url: DatabaseUrl,
    reader: Reader,
    /// Whether the last question was left without an answer.
    is_away: AtomicBool,
}

/// What the audits say of one window: its rows by slot, or its definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found<T = HashMap<u32, AuditRow>> {
    /// There is none to ask.
    Unasked,
    /// One that may know the window cannot be read.
    Unreachable,
    /// One that may know the window has another schema than the one that is read.
    NotMigrated,
    /// None knows the window.
    UnknownWindow,
    /// One knows it.
    Known(T),
}

/// The windows of all audits that can be read.
#[derive(Debug)]
pub(super) struct Overview {
    /// The latest first. One that several audits know is there several times.
    pub(super) windows: Vec<Listed>,
    /// Whether all could be read.
    pub(super) is_whole: bool,
}

impl Audits {
    /// The audits at these addresses. Nobody connects before the first question.
    #[must_use]
    pub fn new(urls: &[DatabaseUrl]) -> Self {
        let database = |url: &DatabaseUrl| Database {
            url: url.clone(),
            reader: Reader::new(url, PATIENCE),
            is_away: AtomicBool::new(false),
        };
        Self(urls.iter().map(database).collect())
    }

    /// Whether there is none to ask.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What they say of a window: that which knows it, if any does.
    pub(super) async fn look_up(&self, window: &Window) -> Found {
        let answers = self.0.iter().map(|database| database.rows(window.uuid));
        match first_to_know(answers).await {
            Found::Known(rows) => Found::Known(by_slot(window, rows)),
            Found::Unasked => Found::Unasked,
            Found::Unreachable => Found::Unreachable,
            Found::NotMigrated => Found::NotMigrated,
            Found::UnknownWindow => Found::UnknownWindow,
        }
    }

    /// The definition of a window.
    pub(super) async fn define(&self, uuid: Uuid, default_tick: Tick) -> Found<Window> {
        first_to_know(self.0.iter().map(|database| database.window(uuid, default_tick))).await
    }

    /// The windows that they list, at most `wanted.limit` over all.
    pub(super) async fn overview(&self, wanted: &Wanted) -> Overview {
        let answers = join_all(self.0.iter().map(|database| database.windows(wanted))).await;
        let is_whole = answers.iter().all(Result::is_ok);
        let mut windows: Vec<Listed> = answers.into_iter().flatten().flatten().collect();
        windows.sort_by(|one, other| other.place.cmp(&one.place));
        windows.truncate(wanted.limit as usize);
        Overview { windows, is_whole }
    }

    /// Says farewell to all of them.
    pub(super) async fn close(&self) {
        join_all(self.0.iter().map(|database| database.reader.close())).await;
    }
}

/// The first answer of a database that knows a window. Nobody waits for one that is away once another
/// knows it.
async fn first_to_know<T>(
    answers: impl Iterator<Item = impl Future<Output = Result<Option<T>, db::Error>>>,
) -> Found<T> {
    let mut answers: FuturesUnordered<_> = answers.collect();
    if answers.is_empty() {
        return Found::Unasked;
    }
    let (mut is_any_away, mut is_any_old) = (false, false);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(Some(known)) => return Found::Known(known),
            Ok(None) => (),
            Err(error) if error.lacks_schema() => is_any_old = true,
            Err(_) => is_any_away = true,
        }
    }
    match (is_any_away, is_any_old) {
        (true, _) => Found::Unreachable,
        (false, true) => Found::NotMigrated,
        (false, false) => Found::UnknownWindow,
    }
}

impl Database {
    async fn rows(&self, uuid: Uuid) -> Result<Option<Vec<NumberedRow>>, db::Error> {
        self.ask(|connection| Box::pin(repository::audit_of_window(connection, uuid))).await
    }

    async fn window(&self, uuid: Uuid, default_tick: Tick) -> Result<Option<Window>, db::Error> {
        self.ask(|connection| Box::pin(repository::audited_window(connection, uuid, default_tick)))
            .await
    }

    async fn windows(&self, wanted: &Wanted) -> Result<Vec<Listed>, db::Error> {
        self.ask(|connection| {
            let wanted = wanted.clone();
            Box::pin(async move { repository::audited_windows(connection, &wanted).await })
        })
        .await
    }

    async fn ask<T, F>(&self, question: F) -> Result<T, db::Error>
    where
        F: for<'c> Fn(&'c mut db::Connection) -> BoxFuture<'c, Result<T, db::Error>>,
    {
        let read = self.reader.read(question).await;
        // Said once when it goes, however many windows are asked for, and once when it is back.
        let was_away = self.is_away.swap(read.is_err(), Ordering::Relaxed);
        match &read {
            Err(error) if !was_away && error.lacks_schema() => {
                tracing::warn!(
                    audit = %self.url, %error,
                    "the audit is not migrated: run `heartbeat migrate payments` with its address as \
                     --database-url; what is missing stays unexplained until then"
                );
            }
            Err(error) if !was_away => {
                tracing::warn!(
                    audit = %self.url, %error,
                    "the audit cannot be read: what is missing stays unexplained meanwhile"
                );
            }
            Ok(_) if was_away => tracing::info!(audit = %self.url, "the audit can be read again"),
            _ => (),
        }
        read
    }
}

impl Found {
    /// What they say of one slot.
    pub(super) fn slot(&self, slot: u32) -> Audit<'_> {
        match self {
            Self::Unasked => Audit::Unasked,
            Self::Unreachable => Audit::Unreachable,
            Self::NotMigrated => Audit::NotMigrated,
            Self::UnknownWindow => Audit::UnknownWindow,
            Self::Known(rows) => Audit::Known(rows.get(&slot)),
        }
    }

    /// The same of the whole window, as the API names it.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Unasked => "not_configured",
            Self::Unreachable => "unreachable",
            Self::NotMigrated => "not_migrated",
            Self::UnknownWindow => "unknown_window",
            Self::Known(_) => "known",
        }
    }
}

/// Rows by the slot that they name or, in those of older senders, fall into. Of several for one
/// slot the one counts by which most was done: one heartbeat is enough.
fn by_slot(window: &Window, rows: Vec<NumberedRow>) -> HashMap<u32, AuditRow> {
    let done = |row: &AuditRow| (!row.is_omitted(), row.stream_id, row.sent_to_queue);
    let mut found: HashMap<u32, AuditRow> = HashMap::with_capacity(rows.len());
    for NumberedRow { slot, row } in rows {
        let place = window.slot_of(slot.map(i64::from), row.timestamp);
        let Slot::Scheduled(slot) = place else { continue };
        if found.get(&slot).is_none_or(|known| done(known) < done(&row)) {
            found.insert(slot, row);
        }
    }
    found
}
