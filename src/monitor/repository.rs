//! The monitor's SQL. Knows rows and statements, no HTTP and no rules.
//!
//! Statements come in few shapes, so that each connection prepares each shape once: lists of values
//! are cut into chunks whose lengths are powers of two, or, where a value may be named twice and
//! somebody waits for the answer, filled up to such a length.

mod audit;
mod closing;
mod conditions;
mod counting;
mod due;
mod event_pages;
mod events;
mod first_ledger;
mod letters;
mod obstacles;
mod past_windows;
mod pipelines;
mod prune;
mod services;
mod tallies;
mod totals;
mod windows;

use sqlx::MySql;
use sqlx::query_builder::QueryBuilder;

use crate::db;

pub(super) use audit::{
    AuditPosition, Listed, NumberedRow, Wanted, audit_of_window, audited_window, audited_windows,
};
pub(super) use closing::{
    StatusChange, claim_unobserved, close, history, revise_closed, settle_unobserved,
};
pub(super) use conditions::{
    RecordedCondition, begin_stalls, conditions, count_stalled, store_conditions,
};
pub(super) use counting::{
    Turn, add_up, added_before, begin_recount, closed_after, closed_windows, count_marks,
    delete_marks, is_recounting, mark_uncounted, marks, refill_some, set_judge_at, set_mark_aside,
    store_added, store_last, store_recounted, take_turn, to_judge,
};
pub(super) use due::{ClaimLimits, claim_due, due_next, hold, lock_window, over};
pub(super) use event_pages::{
    Candidate, Candidates, DAY_US, EventFilter, ListedEvent, candidates, events_of_one,
    events_of_several, longest_window_us, next_with_events, only_candidate,
};
pub(super) use events::{
    Arrived, EventRow, MissingSlot, SlotEvent, Stored, arrived, insert_events,
    insert_lacking_events, insert_lacking_unscheduled, insert_missing, insert_new_events,
    insert_unscheduled, read_back, slot_events,
};
pub(super) use first_ledger::{
    FirstEvent, FirstTables, FirstWindow, first_events, first_tables, first_windows,
};
pub(super) use letters::{DeadHeartbeat, dead_heartbeats};
pub(super) use obstacles::{obstacles, store_obstacles};
pub(super) use past_windows::{PastEnd, PastWindow, hold_open, insert_past_windows};
pub(super) use pipelines::{
    Pipeline, Reported, await_report, count_uptime, forget, lock_progress, low_watermark,
    pipelines, reports, store_progress, store_report,
};
pub(super) use prune::{
    are_events_kept, claim_empty, claim_old, claim_to_empty, counted, database_clock,
    delete_letters_of, delete_of, delete_slices, delete_stray_letters, delete_windows,
    empty_windows, gone_until, hold_gone_until, hold_kept, let_go, marked, old_windows,
    oldest_kept, store_gone_until, store_slices_from,
};
pub(super) use services::{KnownService, services};
pub(super) use tallies::{Found, Tally, count_from};
pub(super) use totals::{
    DayFilter, Sums, add_totals, count_open, days, restore_archived, successes, sum,
};
pub(super) use windows::{
    Filter, Position, correct_windows, counts, find_windows, insert_windows, list_windows,
    open_windows, unscheduled, windows_by_id, windows_by_uuid,
};

/// Largest number of rows in one statement.
const MAX_CHUNK: usize = 512;

/// Cuts a list into chunks whose lengths are powers of two, longest first.
fn chunks<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
    db::chunks(rows, MAX_CHUNK)
}

/// Cuts a list for a question that may name a value twice: where it is too short for one of few shapes,
/// its last value is named again, so that one question is enough. `most` is a power of two.
fn filled<T>(values: &[T], most: usize) -> impl Iterator<Item = Vec<&T>> {
    values.chunks(most).map(|chunk| {
        let again = chunk.last().into_iter().cycle();
        chunk.iter().chain(again).take(chunk.len().next_power_of_two()).collect()
    })
}

/// Adds `(?, ?, …)` for a chunk of values.
fn push_list<'q, T>(query: &mut QueryBuilder<MySql>, values: impl Iterator<Item = T>)
where
    T: 'q + sqlx::Encode<'q, MySql> + sqlx::Type<MySql>,
{
    query.push("(");
    let mut list = query.separated(", ");
    for value in values {
        list.push_bind(value);
    }
    query.push(")");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_filled_up_with_their_last_value() {
        let filled = |values: &[u8], most| -> Vec<Vec<u8>> {
            filled(values, most).map(|list| list.into_iter().copied().collect()).collect()
        };
        assert_eq!(filled(&[1, 2, 3, 4, 5, 6, 7], 4), [[1, 2, 3, 4], [5, 6, 7, 7]]);
        assert_eq!(filled(&[1, 2, 3, 4, 5], 8), [[1, 2, 3, 4, 5, 5, 5, 5]]);
        assert_eq!(filled(&[1], 8), [[1]]);
        assert!(filled(&[], 8).is_empty());
    }
}
