//! The monitor's SQL. Knows rows and statements, no HTTP and no rules.
//!
//! Statements come in few shapes: lists of values are cut into chunks whose lengths are powers of
//! two, so that each connection prepares each shape once.

mod closing;
mod events;
mod windows;

use sqlx::MySql;
use sqlx::query_builder::QueryBuilder;

pub(super) use closing::{StatusChange, close, history, revise_closed};
pub(super) use events::{
    EventRow, SlotEvent, Stored, insert_events, insert_missing, insert_unscheduled, present_slots,
    read_back, slot_events,
};
pub(super) use windows::{
    Filter, Position, claim_due, counts, ending_next, find_window, held, insert_windows,
    list_windows, lock_window, open_windows, windows_by_id, windows_by_uuid,
};

/// Largest number of rows in one statement.
const MAX_CHUNK: usize = 512;

/// Cuts a list into chunks whose lengths are powers of two, longest first.
fn chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let length = MAX_CHUNK.min(1 << rows.len().checked_ilog2()?);
        let (chunk, rest) = rows.split_at(length);
        rows = rest;
        Some(chunk)
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
    fn chunks_have_few_lengths_and_lose_nothing() {
        let rows: Vec<usize> = (0..1_333).collect();
        let lengths: Vec<usize> = chunks(&rows).map(<[usize]>::len).collect();
        assert_eq!(lengths, [512, 512, 256, 32, 16, 4, 1]);
        assert_eq!(chunks(&rows).flatten().copied().collect::<Vec<_>>(), rows);
        assert_eq!(chunks::<u8>(&[]).count(), 0);
    }
}
