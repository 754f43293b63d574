#!/usr/bin/env python3
"""Shows that each guard against a known trap has a test that fails without the guard.

A guard is a line that looks as if it could go: a ROLLBACK before a connection is lent, a sort, a
condition in a script. For each one, this program takes the guard out in a copy of the tree, builds,
and runs the test that belongs to it. That test must fail then, and pass with the guard in.

    tests/guards.py                         all guards; takes a long time
    tests/guards.py --only lease,trim       those whose name contains one of the words
    tests/guards.py --list                  what there is
    tests/guards.py --check                 only whether the list still fits the code; the tests do that

Guards that show only on MySQL need HEARTBEAT_TEST_MYSQLD, and are left out without it. The copy and
the builds are in --scratch; naming one that is kept, or a --target-dir, saves building all
dependencies again. Exit code 1 if a test still passes without its guard, if a test fails with it, or
if an entry of the list no longer fits.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, Optional

ROOT = Path(__file__).resolve().parent.parent
# What the copy does not need.
LEFT_OUT = {"target", ".git", "heartbeat-data"}
# How long a test may take. One that takes longer has failed.
PATIENCE_SECONDS = 120
# How long a test waits for what must come, in the tests' own `eventually`: with the guard out it
# mostly does not come.
EVENTUALLY_SECONDS = 15


class Guard(NamedTuple):
    """A guard, what the code is without it, and the test that notices."""

    name: str
    trap: str
    file: str
    old: str
    new: str
    # `lib` or `it`, and the full name of the test there.
    test: str
    # An environment variable without which the guard does not show.
    needs: Optional[str] = None
    # The test reads the sources as text: nothing has to be built.
    is_text: bool = False


MYSQL = "HEARTBEAT_TEST_MYSQLD"
SQL_TEXT = "it tidy::sql_is_what_both_databases_take_and_hides_no_fault"
CODE_TEXT = "it tidy::code_keeps_clear_of_traps_that_show_only_under_load"
ANSWERS = "it forward::each_answer_of_a_monitor_has_its_meaning"
TRIM = "it streams::what_every_group_has_acknowledged_is_deleted_and_nothing_else"
KEEP = "it streams::nothing_is_deleted_while_the_relays_group_is_gone"
SET_ASIDE = "it streams::setting_aside_and_acknowledging_happen_both_or_neither"
DELETED_STREAM = "it groups::a_deleted_stream_is_a_loss_also_when_it_is_filled_again"
NEW_RELAY = "it old_monitor::a_relay_that_starts_with_an_emptied_redis_sends_nothing_twice"
HAND_ON = "it roles::a_relay_that_is_killed_or_told_to_stop_hands_on_what_it_holds"
REFUSES_ALL = "it suspects::a_monitor_that_refuses_everything_makes_no_dead_letter"
HOLDS_UP = "it suspects::a_message_that_makes_the_monitor_fail_holds_up_no_other"
ALONE = "it payments::a_live_replicas_window_and_an_old_senders_window_are_left_alone"
FIRST_WINS = "it ingest::the_first_commit_wins_and_contradictions_are_counted"
OUTCOMES = "it ingest::each_heartbeat_of_a_batch_gets_its_own_outcome"
LATE = "it ingest::a_late_heartbeat_revises_its_own_slot_and_its_window"
SETTINGS = "it writes::each_connection_is_strict_and_reads_what_others_have_committed"

GUARDS = [
    # 1. A cancelled BEGIN leaves a transaction that swallows a later write.
    Guard(
        "roll back before lending",
        "cancelled writes",
        "src/db.rs",
        'sqlx::raw_sql("ROLLBACK").execute(connection).await?;',
        "let _ = connection;",
        "it database::an_abandoned_begin_does_not_swallow_the_next_write",
    ),
    Guard(
        "write in a task of its own",
        "cancelled writes",
        "src/db.rs",
        "task.await.unwrap_or_else(",
        "tokio_util::task::AbortOnDropHandle::new(task).await.unwrap_or_else(",
        "it writes::a_write_is_committed_although_its_caller_leaves",
    ),
    Guard(
        "no write outside of a transaction",
        "cancelled writes",
        "src/monitor/repository/windows.rs",
        ".fetch_one(pool)\n    .await?;\n    Ok(open.unsigned_abs())",
        ".fetch_one(pool)\n    .await?;\n    sqlx::query(\"DO 0\").execute(pool).await?;\n"
        "    Ok(open.unsigned_abs())",
        "it tidy::every_write_is_a_transaction",
        is_text=True,
    ),
    Guard(
        "done before only if all of it is there",
        "broken migrations",
        "src/db/schema.rs",
        "if is_there(connection, &statement.leaves()).await? {",
        "if is_there(connection, &statement.leaves()).await? || may_be_done {",
        "it schema::what_was_begun_is_done_only_if_all_of_it_is_there",
    ),
    Guard(
        "done before counts as done",
        "broken migrations",
        "src/db/schema.rs",
        "if may_be_done\n",
        "if !may_be_done && may_be_done\n",
        "it schema::broken_off::a_migration_goes_on_after_a_kill_at_each_of_its_statements",
    ),
    Guard(
        "no stranger's table is taken for ours",
        "broken migrations",
        "src/db/schema.rs",
        "    adoption::refuse_strangers(connection, &pending).await?;\n",
        "",
        "it schema::what_is_not_ours_is_left_as_it_is",
    ),
    Guard(
        "a foreign key goes before its columns change",
        "broken migrations",
        "src/db/schema.rs",
        "    for step in &before {",
        "    for step in before.iter().take(0) {",
        "it schema::the_first_senders_tables_are_adopted_while_they_go_on_sending",
    ),
    # 2. An abandoned read of Redis takes messages along.
    Guard(
        "a connection for reading alone",
        "abandoned reads",
        "src/stream/group.rs",
        "self.reader.query(&command).await?",
        "self.writer.query(&command).await?",
        "it reading::nothing_waits_behind_a_read_that_blocks",
    ),
    Guard(
        "wait longer than the server blocks",
        "abandoned reads",
        "src/stream/link.rs",
        "Some(RESPONSE_TIMEOUT + block)",
        "Some(RESPONSE_TIMEOUT)",
        "it reading::a_read_waits_for_as_long_as_the_server_blocks",
    ),
    Guard(
        "never give up a read",
        "abandoned reads",
        "src/relay/consume.rs",
        "let entries = group.read_new(self.count(slots.len())).await?;",
        "let reading = group.read_new(self.count(slots.len()));\n"
        "            let entries = tokio::time::timeout(Duration::from_millis(200), reading)\n"
        "                .await\n"
        "                .unwrap_or(Ok(Vec::new()))?;",
        "it reading::a_relay_that_waits_for_something_new_misses_nothing",
    ),
    Guard(
        "own entries first at the start",
        "abandoned reads",
        "src/relay/consume.rs",
        "let mut pending_after = Some([StreamId::default(); 2]);",
        "let mut pending_after = None;",
        "it reading::a_relay_begins_with_what_it_held_before",
    ),
    Guard(
        "own entries first after an error",
        "abandoned reads",
        "src/relay/consume.rs",
        "                    pending_after = Some([StreamId::default(); 2]);\n",
        "",
        "it reading::what_a_failed_read_was_about_to_bring_is_delivered",
    ),
    Guard(
        "a new connection after an error",
        "abandoned reads",
        "src/stream/link.rs",
        "                current.connection = None;\n",
        "",
        "it reading::what_a_failed_read_was_about_to_bring_is_delivered",
    ),
    Guard(
        "TCP_NODELAY",
        "abandoned reads",
        "src/stream/link.rs",
        ".set_nodelay(true)",
        ".set_nodelay(false)",
        "it reading::a_command_does_not_wait_for_the_last_one",
    ),
    # 3. A statement that is not kept costs 44 ms.
    Guard(
        "few shapes of statements",
        "statement cache",
        "src/db.rs",
        "longest.min(1 << rows.len().checked_ilog2()?)",
        "rows.len().checked_ilog2().map(|_| longest.min(rows.len()))?",
        "lib db::tests::chunks_have_few_lengths_and_lose_nothing",
    ),
    Guard(
        "a cache for all statements",
        "statement cache",
        "src/db.rs",
        ".statement_cache_capacity(STATEMENT_CACHE)",
        "",
        "it writes::a_connection_keeps_all_statements_that_we_use",
    ),
    Guard(
        "every statement is kept",
        "statement cache",
        "src/monitor/repository/events.rs",
        "affected += query.build().execute",
        "affected += query.build().persistent(false).execute",
        CODE_TEXT,
        is_text=True,
    ),
    # 4. Statements that hide what they did.
    Guard(
        "no INSERT IGNORE",
        "silent statements",
        "src/monitor/repository/windows.rs",
        '"INSERT INTO windows (',
        '"INSERT IGNORE INTO windows (',
        SQL_TEXT,
        is_text=True,
    ),
    Guard(
        "a row that was there counts two",
        "silent statements",
        "src/monitor/ingest.rs",
        "affected == batch.scheduled.len() as u64",
        "affected >= batch.scheduled.len() as u64",
        OUTCOMES,
    ),
    Guard(
        "a repetition changes its row",
        "silent statements",
        "src/monitor/repository/events.rs",
        "    deliveries = deliveries + VALUES(deliveries), \\\n    status =",
        "    status =",
        OUTCOMES,
    ),
    Guard(
        "strict, whatever the server is",
        "silent statements",
        "src/db.rs",
        "',STRICT_ALL_TABLES'",
        "''",
        SETTINGS,
    ),
    # 5. Deadlocks.
    Guard(
        "rows in the order of the key",
        "deadlocks",
        "src/monitor/repository/events.rs",
        'insert(connection, "events", ON_EVENT_EXISTS, &rows).await',
        "let mut rows = rows;\n    if rand::random() {\n        rows.reverse();\n    }\n"
        '    insert(connection, "events", ON_EVENT_EXISTS, &rows).await',
        "it database::batches_in_any_order_do_not_deadlock",
    ),
    Guard(
        "what is remembered is forgotten after a failure",
        "group commit",
        "src/monitor/ingest.rs",
        "                monitor.window_cache.forget();\n",
        "",
        "it ingest::what_is_remembered_of_windows_is_forgotten_after_a_failure_and_in_time",
    ),
    Guard(
        "what is remembered is forgotten in time",
        "group commit",
        "src/monitor/window_cache.rs",
        "known.read_at <= now && now < known.read_at.plus(FRESH_FOR)",
        "known.read_at <= now || now < known.read_at.plus(FRESH_FOR)",
        "it ingest::what_is_remembered_of_windows_is_forgotten_after_a_failure_and_in_time",
    ),
    Guard(
        "a beginning is counted once only where nothing is missing from it",
        "group commit",
        "src/monitor/repository/tallies.rs",
        "found.missing > 0 || self.slots + found.events != found.last_slot + 1",
        "found.missing > 0",
        "it lookups::each_answer_counts_right_whoever_took_what_came_before_and_in_whatever_order",
    ),
    Guard(
        "what has closed meanwhile is not shown as open",
        "group commit",
        "src/monitor/lookups.rs",
        "counted.is_some_and(|counted| counted.missing > 0)",
        "counted.is_some_and(|counted| counted.missing > 9_999)",
        "it lookups::each_answer_counts_right_whoever_took_what_came_before_and_in_whatever_order",
    ),
    Guard(
        "a shared question that is never answered ends",
        "group commit",
        "src/monitor/lookups.rs",
        "db::patiently(look_up(&monitor, &lookups))",
        "look_up(&monitor, &lookups)",
        "it database::what_is_never_answered_does_not_hold_up_those_who_come_next",
    ),
    Guard(
        "what is remembered of a pruned window is not relied on",
        "retention",
        "src/monitor/ingest.rs",
        "            gone.retain(|id, _| !kept.contains(id));\n",
        "            gone.retain(|id, _| kept.is_empty() && *id < 0);\n",
        "it prune::what_was_read_before_a_window_was_pruned_is_not_relied_on",
    ),
    Guard(
        "a window that was deleted does not come back",
        "retention",
        "src/monitor/register.rs",
        "partition(|sighting| ends_at(sighting) <= until);",
        "partition(|_| until.micros() == i64::MIN);",
        "it prune::a_window_that_is_gone_stays_gone",
    ),
    Guard(
        "what a window added is archived before its events go",
        "retention",
        "src/monitor/prune.rs",
        "    repository::add_totals(connection, Sums::Archived, &changes).await?;\n",
        "    drop(changes);\n",
        "it prune::totals_survive_pruning_while_heartbeats_arrive",
    ),
    Guard(
        "a rebuild leaves windows without events alone",
        "retention",
        "src/monitor/repository/counting.rs",
        "WHERE status <> 'OPEN' AND events_kept = TRUE AND id IN ",
        "WHERE status <> 'OPEN' AND id IN ",
        "it prune::totals_survive_pruning_while_heartbeats_arrive",
    ),
    Guard(
        "new rows are not written for pruned windows",
        "retention",
        "src/monitor/ingest.rs",
        "            let batch = batch.without(&gone);\n"
        "            repository::insert_unscheduled(connection, &batch.unscheduled).await?;\n"
        "            repository::insert_new_events",
        "            repository::insert_unscheduled(connection, &batch.unscheduled).await?;\n"
        "            repository::insert_new_events",
        "it prune::what_was_read_before_a_window_was_pruned_is_not_relied_on",
    ),
    Guard(
        "a rebuild begins with what is archived",
        "retention",
        "src/monitor/repository/counting.rs",
        "(restore_archived(connection, REFILLED_AT_ONCE).await?, 0)",
        "(restore_archived(connection, 0).await?, 0)",
        "it prune::totals_survive_pruning_while_heartbeats_arrive",
    ),
    Guard(
        "what is being judged is not archived",
        "retention",
        "src/monitor/prune.rs",
        "now.plus(TO_JUDGE_WITHIN)",
        "now.plus(TO_JUDGE_WITHIN / 3600)",
        "it prune_waits::what_is_being_judged_is_not_archived",
    ),
    Guard(
        "old windows that wait are passed over",
        "retention",
        "src/monitor/prune.rs",
        "passed_over, ..outcome }, last.copied())",
        "passed_over, ..outcome }, last.copied().filter(|(id, _)| *id < 0))",
        "it prune_waits::what_has_to_wait_keeps_nothing_waiting",
    ),
    Guard(
        "the horizon never passes the watermark",
        "retention",
        "src/monitor/prune.rs",
        "before.min(watermark)",
        "before.max(watermark)",
        "it prune_waits::what_an_outage_holds_up_is_not_taken_for_gone",
    ),
    Guard(
        "a shared transaction whose question is never answered ends",
        "group commit",
        "src/monitor/register.rs",
        "    let mut found = db::patiently(reading).await?;\n",
        "    let mut found = reading.await?;\n",
        "it database::what_is_never_answered_does_not_hold_up_those_who_come_next",
    ),
    Guard(
        "a bad value fails its own request only",
        "group commit",
        "src/monitor/batcher.rs",
        "Err(error) if callers.len() > 1 && is_somebodys_fault(&error) => {",
        "Err(error) if callers.len() > 1_000_000 && is_somebodys_fault(&error) => {",
        "it ingest::a_value_that_the_database_refuses_fails_its_own_request_only",
    ),
    Guard(
        "nobody who leads takes others along when he gives up",
        "group commit",
        "src/monitor/batcher.rs",
        "            tokio::spawn(async move {\n                lead(group, work).await;\n                drop(place);\n            });\n",
        "            lead(group, work).await;\n            drop(place);\n",
        "lib monitor::batcher::tests::whoever_gives_up_takes_nobody_along",
    ),
    Guard(
        "fewer requests when the monitor turns one away",
        "back-off",
        "src/relay/concurrency.rs",
        "                    self.wanted = fewer;\n",
        "",
        "lib relay::concurrency::tests::it_grows_by_one_a_round_and_halves",
    ),
    Guard(
        "windows in the order of their key",
        "deadlocks",
        "src/monitor/register.rs",
        "        let definitions: Arc<[Sighting]> = new.values().cloned().collect();\n",
        "        let mut definitions: Vec<Sighting> = new.values().cloned().collect();\n"
        "        if rand::random() {\n            definitions.reverse();\n        }\n"
        "        let definitions: Arc<[Sighting]> = definitions.into();\n",
        "it database::new_windows_in_any_order_do_not_deadlock",
    ),
    Guard(
        "one unique key on a hot table",
        "deadlocks",
        "migrations/monitor/0001_windows_and_events.sql",
        "    late             BOOLEAN       NOT NULL DEFAULT FALSE,\n",
        "    late             BOOLEAN       NOT NULL DEFAULT FALSE,\n"
        "    UNIQUE KEY events_stream_id (stream_id),\n",
        "it writes::hot_tables_have_one_unique_key",
    ),
    Guard(
        "READ COMMITTED",
        "deadlocks",
        "src/db.rs",
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \\\n",
        "\\\n",
        SETTINGS,
    ),
    Guard(
        "a deadlock is tried again",
        "deadlocks",
        "src/db.rs",
        "Class::Retry | Class::Reconnect)",
        "Class::Reconnect)",
        "it writes::a_transaction_that_loses_a_deadlock_is_tried_again",
    ),
    # 6. What removes messages silently.
    Guard(
        "no MAXLEN",
        "streams lose silently",
        "src/stream/producer.rs",
        "'XADD', KEYS[2], '*', 'payload', ARGV[i]",
        "'XADD', KEYS[2], 'MAXLEN', '1000', '*', 'payload', ARGV[i]",
        CODE_TEXT,
        is_text=True,
    ),
    Guard(
        "groups begin at 0",
        "streams lose silently",
        "src/stream/creation.rs",
        "group, '0', 'MKSTREAM'",
        "group, '$', 'MKSTREAM'",
        "it reading::what_was_written_before_the_group_existed_is_read",
    ),
    Guard(
        "follow the cursor to its end",
        "streams lose silently",
        "src/relay/consume.rs",
        "Some(next) => cursor = next,\n                None => break,",
        "_ => {\n                    cursor.clear();\n                    break;\n                }",
        "it reading::the_whole_list_is_searched_for_entries_of_the_dead",
    ),
    Guard(
        "no consumer goes with its entries",
        "streams lose silently",
        "src/stream/group.rs",
        "if consumer[2] == ARGV[2] and consumer[4] == 0 then",
        "if consumer[2] == ARGV[2] then",
        HAND_ON,
    ),
    Guard(
        "trim asks every group",
        "streams lose silently",
        "src/stream/group.rs",
        "if not floor or before(oldest, floor) then floor = oldest end",
        "if facts['name'] == ARGV[1] then floor = oldest end",
        TRIM,
    ),
    Guard(
        "trim compares numbers",
        "streams lose silently",
        "src/stream/group.rs",
        "  if #a ~= #b then return #a < #b end\n",
        "",
        "it reading::ids_of_unequal_length_are_compared_as_numbers",
    ),
    Guard(
        "trim asks for what is pending",
        "streams lose silently",
        "src/stream/group.rs",
        "oldest_pending(KEYS[1], facts) or facts['last-delivered-id']",
        "facts['last-delivered-id']",
        KEEP,
    ),
    Guard(
        "no trim without our group",
        "streams lose silently",
        "src/stream/group.rs",
        "if not ours then return 0 end\n",
        "",
        KEEP,
    ),
    # 7. A pool goes on lending a connection to a server that takes no writes.
    Guard(
        "close what is read-only",
        "read-only server",
        "src/db.rs",
        "        connection.close().await.ok();\n    }\n    ended",
        "    }\n    ended",
        "it writes::a_connection_to_a_server_that_takes_no_writes_is_closed",
    ),
    Guard(
        "know what is read-only",
        "read-only server",
        "src/db/error.rs",
        "1290 | 1836 | 1792 | 1047 => Class::Reconnect,",
        "1792 | 1047 => Class::Reconnect,",
        "lib db::error::tests::each_error_number_has_its_class",
    ),
    # 8. MySQL's default way to check passwords needs TLS over TCP.
    Guard(
        "TLS for the databases",
        "caching_sha2_password",
        "Cargo.toml",
        '"tls-rustls-ring", ',
        "",
        "it cli::a_role_connects_over_tcp_with_a_password",
        needs=MYSQL,
    ),
    Guard(
        "TLS wherever it is offered",
        "caching_sha2_password",
        "src/config/address.rs",
        "        Ok(Self { options, shown: without_password(url) })\n",
        "        let options = options.ssl_mode(sqlx::mysql::MySqlSslMode::Disabled);\n"
        "        Ok(Self { options, shown: without_password(url) })\n",
        "it cli::a_role_connects_over_tcp_with_a_password",
        needs=MYSQL,
    ),
    # 9. SQL for both databases.
    Guard(
        "no RETURNING",
        "portable SQL",
        "src/payments/repository/audit.rs",
        "WHERE window_uuid = ? AND owner = ? AND finished_at IS NULL",
        "WHERE window_uuid = ? AND owner = ? AND finished_at IS NULL RETURNING slot",
        SQL_TEXT,
        is_text=True,
    ),
    Guard(
        "no row alias",
        "portable SQL",
        "src/monitor/repository/pipelines.rs",
        "VALUES (?, ?, ?, ?, ?) ON DUPLICATE KEY UPDATE reported_at = VALUES(reported_at)",
        "VALUES (?, ?, ?, ?, ?) AS new ON DUPLICATE KEY UPDATE reported_at = new.reported_at",
        SQL_TEXT,
        is_text=True,
    ),
    Guard(
        "no FOR SHARE",
        "portable SQL",
        "src/monitor/repository/closing.rs",
        "WHERE id = ? FOR UPDATE",
        "WHERE id = ? FOR SHARE",
        SQL_TEXT,
        is_text=True,
    ),
    Guard(
        "no UUID_TO_BIN",
        "portable SQL",
        "src/payments/repository/audit.rs",
        '"SELECT service FROM report_windows WHERE window_uuid = ?"',
        '"SELECT service FROM report_windows WHERE window_uuid = UUID_TO_BIN(?)"',
        SQL_TEXT,
        is_text=True,
    ),
    Guard(
        "no ->>",
        "portable SQL",
        "migrations/monitor/0002_views.sql",
        "    e.error_message, e.late,",
        "    e.error_message->>'$' AS error_message, e.late,",
        SQL_TEXT,
        is_text=True,
    ),
    Guard(
        "a collation of both",
        "portable SQL",
        "migrations/monitor/0003_window_history.sql",
        "utf8mb4_bin",
        "utf8mb4_0900_bin",
        SQL_TEXT,
        is_text=True,
    ),
    # The sender: intent, then outcome.
    Guard(
        "audit before sending",
        "intent, then outcome",
        "src/payments/emitter.rs",
        "    let status = plan.intent(slot).status();\n",
        '    payments.producer.publish_heartbeats(&["{}".to_owned()]).await.ok();\n'
        "    let status = plan.intent(slot).status();\n",
        "it payments::a_tick_is_audited_before_it_is_sent_and_marked_after",
    ),
    Guard(
        "mark as sent after sending",
        "intent, then outcome",
        "src/payments/publish.rs",
        "    let written = payments.producer.publish_heartbeats(&payloads).await?;\n",
        "    let ids = vec![crate::stream::StreamId::default(); ticks.len()];\n"
        "    let written = Written { identity: String::new(), ids };\n"
        "    repository::mark_sent(&payments.pool, &ticks, &written).await?;\n"
        "    let written = payments.producer.publish_heartbeats(&payloads).await?;\n",
        "it outbox::what_redis_did_not_take_is_not_marked_as_sent",
    ),
    Guard(
        "mark as announced after announcing",
        "intent, then outcome",
        "src/payments/publish.rs",
        "    let now = clock::now();\n    let announcement = ",
        "    for window in windows {\n"
        "        let nothing = vec![(window.uuid, StreamId::default())];\n"
        "        repository::mark_announced(&payments.pool, nothing, \"\").await?;\n"
        "    }\n"
        "    let now = clock::now();\n    let announcement = ",
        "it outbox::what_redis_did_not_take_is_not_marked_as_sent",
    ),
    Guard(
        "an omitted tick is never sent",
        "intent, then outcome",
        "src/payments/repository/audit.rs",
        "status.map_or_else(|| OMITTED.to_owned(), ToString::to_string)",
        'status.map_or_else(|| "ok".to_owned(), ToString::to_string)',
        "it payments::a_tick_is_audited_before_it_is_sent_and_marked_after",
    ),
    Guard(
        "a live lease is respected",
        "intent, then outcome",
        "src/payments/repository/windows.rs",
        "AND (leased_until IS NULL OR leased_until < UTC_TIMESTAMP(6)) \\\n",
        "\\\n",
        ALONE,
    ),
    Guard(
        "old senders' windows are theirs",
        "intent, then outcome",
        "src/payments/repository/windows.rs",
        " AND tick_us > 0 \\\n",
        " \\\n",
        ALONE,
    ),
    Guard(
        "a new process back-dates nothing",
        "intent, then outcome",
        "src/payments/plan.rs",
        "slot.saturating_add(1)).max(current)",
        "slot.saturating_add(1)).max(current.min(0))",
        "it payments::a_process_resumes_what_another_left_and_back_dates_nothing",
    ),
    Guard(
        "a process that stood still does not",
        "intent, then outcome",
        "src/payments/emitter.rs",
        "if plan.next_slot(done, now) != Some(slot) {",
        "if false {",
        "it outbox::a_process_that_stood_still_back_dates_nothing",
    ),
    Guard(
        "what is not confirmed is sent again",
        "intent, then outcome",
        "src/payments/publish.rs",
        "first_unsent: 0 };",
        "first_unsent: window.plan.next_slot(None, clock::now()).unwrap_or(0) };",
        "it payments::a_process_resumes_what_another_left_and_back_dates_nothing",
    ),
    Guard(
        "windows are handed back",
        "stop cleanly",
        "src/payments/emitter.rs",
        "repository::release_leases(pool, *owner).await",
        "db::ping(pool).await.map(|()| owner).map(drop)",
        "it roles::a_payments_service_resumes_its_window_after_each_kind_of_end",
    ),
    # The relay: acknowledge what is committed, and nothing else.
    Guard(
        "acknowledge after the answer",
        "acknowledge what is committed",
        "src/relay/deliver.rs",
        "        let answer = self.forwarder.send(job.source, &job.items).await;\n",
        "        self.group.acknowledge(job.source, &job.ids()).await.ok();\n"
        "        let answer = self.forwarder.send(job.source, &job.items).await;\n",
        HAND_ON,
    ),
    Guard(
        "answer after the commit",
        "acknowledge what is committed",
        "src/monitor/ingest.rs",
        "    let written = store(monitor, batch, now).await?;\n",
        "    let worker = monitor.clone();\n"
        "    tokio::spawn(async move { store(&worker, batch, now).await });\n"
        "    let written = Written::default();\n",
        "it writes::a_heartbeat_is_answered_after_its_commit",
    ),
    Guard(
        "take over from the dead",
        "acknowledge what is committed",
        "src/relay/consume.rs",
        "let tended = match self.claim_all(source).await {",
        "let tended = match Ok(()) {",
        "it relay::own_pending_entries_come_first_and_those_of_the_dead_are_taken_over",
    ),
    Guard(
        "renew the lease",
        "acknowledge what is committed",
        "src/relay/held.rs",
        "for ids in delivery.held.of(source).chunks(IDS_PER_COMMAND) {",
        "for ids in delivery.held.of(source).chunks(IDS_PER_COMMAND).skip(1) {",
        "it reading::a_relay_renews_its_lease_on_what_it_holds",
    ),
    Guard(
        "a lease of three time-outs",
        "acknowledge what is committed",
        "src/relay.rs",
        "self.lease < self.http_timeout * 3",
        "self.lease < self.http_timeout",
        "it cli::options_that_cannot_be_used_are_named_with_what_to_write_instead",
    ),
    Guard(
        "create a lost group again",
        "acknowledge what is committed",
        "src/relay/consume.rs",
        "match self.delivery.group.create().await {",
        "match Err::<crate::stream::Created, _>(\"none is created\") {",
        "it relay::a_lost_group_and_an_emptied_redis_are_recovered",
    ),
    Guard(
        "hand entries back",
        "stop cleanly",
        "src/relay/deliver.rs",
        "self.give_back(&job).await;",
        "self.held.release(job.source, &job.ids());",
        HAND_ON,
    ),
    Guard(
        "an entry is in hand once",
        "acknowledge what is committed",
        "src/relay/held.rs",
        ".filter(|entry| ids.insert((entry.source, entry.id))).collect()",
        ".inspect(|entry| drop(ids.insert((entry.source, entry.id)))).collect()",
        "lib relay::held::tests::an_entry_is_in_hand_once",
    ),
    # The destination's fault is never the message's fault.
    Guard(
        "a 500 does not open the breaker",
        "whose fault it is",
        "src/relay/gate.rs",
        "Answer::Unavailable { reason, .. } | Answer::Misconfigured(reason) =>",
        "Answer::Unavailable { reason, .. }\n"
        "            | Answer::Misconfigured(reason)\n"
        "            | Answer::Failed(reason) =>",
        HOLDS_UP,
    ),
    Guard(
        "suspects step aside",
        "whose fault it is",
        "src/relay/job.rs",
        "self.items.len() == 1 && self.strikes > 0",
        "self.items.is_empty()",
        HOLDS_UP,
    ),
    Guard(
        "strikes only while others pass",
        "whose fault it is",
        "src/relay/deliver.rs",
        "job.strikes == 0 || passed > job.passed_before",
        "job.strikes == 0 || passed >= job.passed_before",
        REFUSES_ALL,
    ),
    Guard(
        "a 503 costs no message",
        "whose fault it is",
        "src/relay/deliver.rs",
        "Answer::Unavailable { wait, .. } => vec![job.again(wait, PAUSE.1)],",
        "Answer::Unavailable { reason, .. } => {\n"
        "                self.settle(&job, vec![Err(reason); job.items.len()]).await;\n"
        "                Vec::new()\n            }",
        REFUSES_ALL,
    ),
    Guard(
        "a wrong address costs no message",
        "whose fault it is",
        "src/relay/deliver.rs",
        "Answer::Misconfigured(_) => vec![job.again(None, PAUSE.1)],",
        "Answer::Misconfigured(reason) => {\n"
        "                self.settle(&job, vec![Err(reason); job.items.len()]).await;\n"
        "                Vec::new()\n            }",
        REFUSES_ALL,
    ),
    Guard(
        "a time-out of a proxy is no refusal",
        "whose fault it is",
        "src/relay/forward.rs",
        "408 | 425 | 429 | 502..=504 | 506..=599 =>",
        "408 | 425 | 429 | 500..=501 =>",
        ANSWERS,
    ),
    Guard(
        "only a monitor refuses a message",
        "whose fault it is",
        "src/relay/forward.rs",
        "400 | 413 | 422 if is_a_monitors_refusal(&body) =>",
        "400 | 413 | 422 if body.len() < usize::MAX =>",
        ANSWERS,
    ),
    Guard(
        "an unknown outcome is no commit",
        "whose fault it is",
        "src/relay/forward.rs",
        " && outcomes.iter().all(Outcome::is_known)",
        "",
        ANSWERS,
    ),
    Guard(
        "as many outcomes as items",
        "whose fault it is",
        "src/relay/forward.rs",
        "outcomes.len() == expected && ",
        "outcomes.len() <= expected && ",
        ANSWERS,
    ),
    Guard(
        "a refused batch is cut",
        "whose fault it is",
        "src/relay/deliver.rs",
        "                _ => job.halves(),\n            },",
        "                _ => {\n"
        "                    self.settle(&job, vec![Err(reason); job.items.len()]).await;\n"
        "                    Vec::new()\n                }\n            },",
        "it suspects::a_batch_that_is_refused_as_a_whole_is_cut_until_the_culprit_is_alone",
    ),
    Guard(
        "a failing batch is cut",
        "whose fault it is",
        "src/relay/deliver.rs",
        "            [_, _, ..] if job.backoff.attempts() + 1 >= ATTEMPTS_TOGETHER => job.halves(),\n",
        "",
        "it relay::a_message_that_alone_makes_the_monitor_fail_is_given_up_in_the_end",
    ),
    Guard(
        "a message is given up in the end",
        "whose fault it is",
        "src/relay/deliver.rs",
        "[only] if job.strikes > self.max_retries => {",
        "[only] if job.strikes > self.max_retries + 1_000 => {",
        "it relay::a_message_that_alone_makes_the_monitor_fail_is_given_up_in_the_end",
    ),
    Guard(
        "reading stops while it is away",
        "whose fault it is",
        "src/relay/consume.rs",
        "            self.delivery.gate.opened().await;\n",
        "",
        "it suspects::nothing_is_read_while_the_monitor_takes_nothing",
    ),
    Guard(
        "only failures in a row count",
        "whose fault it is",
        "src/retry/breaker.rs",
        "        self.failures = 0;\n",
        "",
        "lib retry::breaker::tests::only_failures_in_a_row_open_it",
    ),
    Guard(
        "one probe in each interval",
        "whose fault it is",
        "src/retry/breaker.rs",
        "                open.probe_at = now + open.interval;\n",
        "",
        "lib relay::gate::tests::while_it_is_shut_one_probe_goes_through_per_interval",
    ),
    Guard(
        "an opening ends all waiting",
        "whose fault it is",
        "src/relay/gate.rs",
        "if changes.borrow_and_update().openings > openings {",
        "if changes.borrow_and_update().openings > openings + 1 {",
        "lib relay::gate::tests::when_it_opens_all_waiting_ends",
    ),
    Guard(
        "set aside, then acknowledge",
        "whose fault it is",
        "src/stream/group.rs",
        "redis.call('XADD', KEYS[2], '*', unpack(letter))\n"
        "return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])\n",
        "redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])\n"
        "return redis.call('XADD', KEYS[2], '*', unpack(letter))\n",
        SET_ASIDE,
    ),
    Guard(
        "set aside what is still held",
        "whose fault it is",
        "src/stream/group.rs",
        "if not held then return 0 end\n",
        "held = held or {0, 0, 0, 0}\n",
        SET_ASIDE,
    ),
    # The monitor: late, and many at once.
    Guard(
        "not before the grace is over",
        "closing",
        "src/monitor/closing.rs",
        "self.now.minus(self.grace)",
        "self.now",
        "it sweep::a_window_closes_after_its_last_slot_and_the_grace_not_before",
    ),
    Guard(
        "close when a window ends",
        "closing",
        "src/monitor/sweep.rs",
        "    wait.max(SHORTEST_PAUSE).min(interval)\n",
        "    wait.max(SHORTEST_PAUSE).max(interval)\n",
        "it writes::a_monitor_closes_a_window_when_it_ends_and_not_at_the_next_interval",
    ),
    Guard(
        "late is not lost",
        "late",
        "src/monitor/ingest.rs",
        "let settled = repository::revise_closed(connection, &revised, now).await?;",
        "let settled = Vec::new();",
        LATE,
    ),
    Guard(
        "what arrived replaces MISSING",
        "late",
        "src/monitor/repository/events.rs",
        "status = IF(status = 'MISSING', VALUES(status), status)\"",
        'status = status"',
        LATE,
    ),
    Guard(
        "the first commit wins",
        "late",
        "src/monitor/repository/events.rs",
        "status = IF(status = 'MISSING', VALUES(status), status)\"",
        'status = VALUES(status)"',
        FIRST_WINS,
    ),
    Guard(
        "lock before counting again",
        "late",
        "src/monitor/repository/closing.rs",
        "WHERE id = ? FOR UPDATE",
        "WHERE id = ?",
        "it writes::two_late_heartbeats_at_once_are_both_counted",
    ),
    Guard(
        "keep each change of status",
        "late",
        "src/monitor/repository/closing.rs",
        "    if status_before != status || was_unobserved != counts.cause().is_some() {\n",
        "    if status_before.is_empty() && was_unobserved {\n",
        "it monitor_api::announcements_and_windows_are_shown_slot_by_slot",
    ),
    Guard(
        "skip what another closes",
        "many monitors",
        "src/monitor/repository/due.rs",
        '" FOR UPDATE SKIP LOCKED"',
        '" FOR UPDATE"',
        "it writes::a_sweep_does_not_wait_for_a_window_that_another_monitor_closes",
    ),
    Guard(
        "close what no other closes",
        "many monitors",
        "src/monitor/repository/due.rs",
        '" FOR UPDATE SKIP LOCKED"',
        '" "',
        "it sweep::many_sweeps_at_once_close_each_window_once",
    ),
    Guard(
        "close what is open",
        "many monitors",
        "src/monitor/closing.rs",
        "if window.status != WindowStatus::Open {",
        "if window.id < 0 {",
        "it sweep::one_window_can_be_closed_on_request",
    ),
    Guard(
        "close on the watermark",
        "closing",
        "src/monitor/closing.rs",
        "watermark.min(self.now)",
        "watermark.max(self.now)",
        "it pipeline::a_window_of_the_stream_waits_for_the_watermark_and_a_direct_one_does_not",
    ),
    Guard(
        "a watermark never goes back",
        "closing",
        "src/monitor/watermark.rs",
        "self.watermark = self.watermark.max(report.watermark);",
        "self.watermark = report.watermark;",
        "lib monitor::watermark::tests::within_one_redis_it_never_goes_back",
    ),
    Guard(
        "wait for what is sent again",
        "closing",
        "src/monitor/watermark.rs",
        "                self.frozen_until = Some(now.plus(replay_grace));\n"
        "                // Another Redis may",
        "                // Another Redis may",
        "lib monitor::watermark::tests::with_another_redis_it_waits_for_what_is_sent_again",
    ),
    Guard(
        "wait after an outage of Redis",
        "closing",
        "src/monitor/watermark.rs",
        "News::Recovery => self.frozen_until = Some(now.plus(replay_grace)),",
        "News::Recovery => (),",
        "lib monitor::watermark::tests::after_an_outage_of_redis_it_waits_once",
    ),
    Guard(
        "the watermark waits for what is pending",
        "closing",
        "src/stream/survey.rs",
        "if not is_suspect[number .. ' ' .. entry[1]] then return entry[1] end",
        "is_suspect[number .. ' ' .. entry[1]] = true",
        "it watermark::it_waits_for_what_is_unread_or_pending_on_either_stream",
    ),
    Guard(
        "the watermark goes on without suspects",
        "closing",
        "src/stream/survey.rs",
        "    is_suspect[noted[i]] = true\n",
        "",
        "it watermark::it_goes_on_without_suspects_until_they_are_settled",
    ),
    Guard(
        "a suspect holds up its own window",
        "closing",
        "src/monitor/repository/obstacles.rs",
        "    store_suspects(connection, report).await?;\n",
        "",
        "it pipeline::a_suspect_holds_up_its_own_window_only",
    ),
    Guard(
        "a service that sends again holds up its windows",
        "closing",
        "src/monitor/closing.rs",
        "self.resending.contains(window.service.as_str())",
        "self.resending.is_empty() && window.slots() == 0",
        "lib monitor::closing::tests::what_is_in_the_way_holds_up_a_window_for_a_time",
    ),
    Guard(
        "silent services are waited for when Redis is lost",
        "closing",
        "src/monitor/repository/obstacles.rs",
        "        owing.extend(services_that_wait(connection).await?);\n",
        "",
        "it pipeline::a_silent_service_is_waited_for_when_redis_is_lost",
    ),
    Guard(
        "a service is waited for until it says that it is done",
        "closing",
        "src/monitor/repository/obstacles.rs",
        "(report.resent.contains(service) || **until <= now)",
        "(report.resent.contains(service) || **until > Timestamp::from_micros(0))",
        "it pipeline::a_silent_service_is_waited_for_when_redis_is_lost",
    ),
    Guard(
        "a service that is gone is not waited for for ever",
        "closing",
        "src/monitor/repository/obstacles.rs",
        "(report.resent.contains(service) || **until <= now)",
        "(report.resent.contains(service) || **until < Timestamp::from_micros(0))",
        "it pipeline::a_service_that_never_comes_back_is_not_waited_for_for_ever",
    ),
    Guard(
        "what has arrived is not sent yet another time",
        "another Redis",
        "src/payments/resend.rs",
        "            repository::note_delivered(payments, &seen.identity, until).await?;\n",
        "",
        "it resend::what_has_arrived_meanwhile_is_not_sent_yet_another_time",
    ),
    Guard(
        "the sender's clock moves the end",
        "closing",
        "src/monitor/register.rs",
        "sighting.window.service == stored.window.service && sighting.corrects(stored)",
        "sighting.window.service == stored.window.service && stored.id < 0",
        "it pipeline::the_senders_clock_moves_the_end_of_its_windows",
    ),
    Guard(
        "unobserved is said of what was not observed",
        "closing",
        "src/monitor/closing.rs",
        "!is_obstructed && self.has_passed(window, slot)",
        "is_obstructed || !self.has_passed(window, slot)",
        "it pipeline::what_was_held_too_long_is_closed_as_unobserved_and_settled_when_the_truth_is_known",
    ),
    Guard(
        "the time without a monitor does not count",
        "closing",
        "src/monitor/repository/pipelines.rs",
        "GREATEST(0, LEAST(?, ",
        "GREATEST(0, GREATEST(?, ",
        "it pipeline::time_in_which_no_monitor_runs_does_not_count",
    ),
    Guard(
        "lost entries tell the senders",
        "intent, then outcome",
        "src/stream/creation.rs",
        "if is_lost then redis.call('SET', KEYS[3], ARGV[2]) end\n",
        "",
        DELETED_STREAM,
    ),
    Guard(
        "the survey notes what a group may lose",
        "intent, then outcome",
        "src/stream/survey.rs",
        "redis.call('HSET', KEYS[8], group, missed .. ' ' .. added_to(KEYS[2]) .. ' ' .. added_to(KEYS[3]))\n",
        "",
        DELETED_STREAM,
    ),
    Guard(
        "a group that is missing proves no loss",
        "intent, then outcome",
        "src/stream/creation.rs",
        "if missed and added < noted[number] then is_lost = true end",
        "is_lost = added > -2",
        "it groups::an_emptied_redis_is_another_redis_and_a_destroyed_group_is_not",
    ),
    Guard(
        "look before a group is created",
        "a full Redis",
        "src/stream/creation.rs",
        "if not group_of(KEYS[number], group) then",
        "if group ~= '' then",
        "it groups::a_group_that_exists_needs_no_memory",
    ),
    Guard(
        "a turn needs no memory",
        "a full Redis",
        "src/stream/turn.rs",
        "#!lua flags=allow-oom\n",
        "",
        "it groups::a_group_that_exists_needs_no_memory",
    ),
    Guard(
        "what was over before the group is skipped",
        "a first relay",
        "src/relay/missed.rs",
        "announcement.window.ends_at() <= until",
        "announcement.window.ends_at() < announcement.window.from()",
        "it groups::windows_that_were_over_before_the_group_are_skipped_and_no_others",
    ),
    # An original monitor: one at a time, and each once.
    Guard(
        "a line within a relay",
        "an original monitor",
        "src/relay/one_by_one.rs",
        "!line.is_sending && line.waiting.first() == Some(&id)",
        "!line.is_sending && line.waiting.contains(&id)",
        "lib relay::one_by_one::tests::the_earliest_heartbeat_goes_first_and_nobody_beside_it",
    ),
    Guard(
        "a turn among relays",
        "an original monitor",
        "src/relay/one_by_one.rs",
        "if !self.one_by_one.take_turn(&self.group, &self.shutdown).await {",
        "if self.shutdown.is_cancelled() {",
        "it old_monitor::two_relays_make_an_old_monitor_count_each_heartbeat_once",
    ),
    Guard(
        "a turn goes on after a request without an answer",
        "an original monitor loses counts",
        "src/relay/one_by_one.rs",
        "        if is_unanswered {",
        "        if false && is_unanswered {",
        "it old_monitor::a_monitor_that_does_not_answer_in_time_gets_nothing_beside",
    ),
    Guard(
        "a turn runs out",
        "an original monitor",
        "src/stream/turn.rs",
        "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])",
        "redis.call('SET', KEYS[1], ARGV[1])",
        "it old_monitor::a_relay_that_is_killed_in_its_turn_lets_another_go_on",
    ),
    Guard(
        "what is confirmed is not sent again",
        "an original monitor",
        "src/relay/one_by_one.rs",
        "            self.one_by_one.confirmed().add(digest);\n",
        "",
        "it old_monitor::a_service_that_starts_with_an_emptied_redis_makes_nothing_count_twice",
    ),
    Guard(
        "nothing for good measure before an original monitor",
        "an original monitor",
        "src/payments/resend.rs",
        "        if self.since_repeats.is_some() {\n            self.rest_of = None;\n        }\n",
        "",
        NEW_RELAY,
    ),
    Guard(
        "no straggler was delivered before an original monitor",
        "an original monitor",
        "src/payments/resend.rs",
        "Some(_) => self.delivered_before.map_or(lately, |before| before.max(lately)),",
        "Some(_) => lately,",
        NEW_RELAY,
    ),
    Guard(
        "deleted entries tell the senders",
        "intent, then outcome",
        "src/stream/group.rs",
        "if #claimed[3] > 0 then redis.call('SET', KEYS[2], ARGV[6]) end",
        "",
        "it watermark::senders_are_told_when_pending_entries_were_deleted",
    ),
    Guard(
        "send again what a lost Redis took along",
        "intent, then outcome",
        "src/payments/resend.rs",
        "        publish::send(payments, &ticks).await?;\n",
        "",
        "it resend::an_emptied_redis_gets_everything_again",
    ),
    Guard(
        "remember Redis from one start to the next",
        "intent, then outcome",
        "src/payments/resend.rs",
        "Ok(self.stored.clone().unwrap_or_else(|| Known::new(seen)))",
        "Ok(Known::new(seen))",
        "it resend::a_service_that_starts_again_notices_what_happened_meanwhile",
    ),
    Guard(
        "find what is marked late",
        "intent, then outcome",
        "src/payments/resend.rs",
        "        if self.looks == 0 {\n",
        "        if self.looks > LOOKS_PER_SEARCH {\n",
        "it resend::what_is_marked_late_is_found_and_sent_again",
    ),
    Guard(
        "announcing to yet another Redis ends",
        "intent, then outcome",
        "src/payments/resend.rs",
        "if publish::announce(payments, &windows).await? != identity {",
        "if publish::announce(payments, &windows).await?.is_empty() {",
        "it resend::yet_another_redis_gets_everything_once",
    ),
    Guard(
        "a Redis that loads its data is not ready",
        "acknowledge what is committed",
        "src/stream/link.rs",
        "        self.ping().await?;\n",
        "",
        "it outage::a_role_that_starts_waits_while_redis_loads_its_data",
    ),
    Guard(
        "one relay per name",
        "acknowledge what is committed",
        "src/stream/membership.rs",
        "if holder and holder ~= ARGV[1] then",
        "if holder == '' then",
        "it relay::two_relays_cannot_share_a_name",
    ),
    Guard(
        "a plain insert where two keys are unique",
        "silent statements",
        "src/monitor/repository/windows.rs",
        "        if !db::is_inserted(query.build().execute(&mut *connection).await)? {\n",
        '        query.push(" ON DUPLICATE KEY UPDATE id = id");\n'
        "        if !db::is_inserted(query.build().execute(&mut *connection).await)? {\n",
        "it tidy::tables_with_two_unique_keys_take_plain_inserts",
        is_text=True,
    ),
    Guard(
        "what is in the way is not observed",
        "closing",
        "src/monitor/closing.rs",
        "!is_obstructed && self.has_passed(window, slot)",
        "self.has_passed(window, slot)",
        "lib monitor::closing::tests::a_slot_is_observed_once_the_watermark_has_passed_it",
    ),
    Guard(
        "a Redis that stood still is waited for",
        "closing",
        "src/relay/report.rs",
        "since.unwrap_or(began).elapsed() >= OUTAGE",
        "since.is_some_and(|since| since.elapsed().is_zero())",
        "it outage::a_sender_that_is_slower_to_come_back_than_the_relay_is_waited_for",
    ),
    Guard(
        "only an operator forgets a group",
        "closing",
        "src/monitor/api/pipeline.rs",
        "    AdminToken::check(monitor.admin_token.as_ref(), &headers)?;\n",
        "    AdminToken::check(monitor.admin_token.as_ref(), &headers).ok();\n",
        "it pipeline_api::the_api_takes_reports_and_shows_them_and_forgets_on_demand",
    ),
    Guard(
        "a heartbeat beats the verdict",
        "many monitors",
        "src/monitor/repository/events.rs",
        '" ON DUPLICATE KEY UPDATE slot = slot"',
        "\" ON DUPLICATE KEY UPDATE status = 'MISSING'\"",
        "it writes::a_heartbeat_that_a_sweep_has_not_seen_is_not_overwritten",
    ),
    # Stopping, and a Redis that keeps what it has taken.
    Guard(
        "answer what has begun",
        "stop cleanly",
        "src/http/serve.rs",
        "tokio::time::timeout(DRAIN, open.shutdown()).await.ok();",
        "drop(open);",
        "it writes::a_request_that_is_being_written_when_the_monitor_must_stop_is_answered",
    ),
    Guard(
        "a role with a dead part fails",
        "stop cleanly",
        "src/shutdown.rs",
        "                first = Err(error);\n",
        "                drop(error);\n",
        "lib shutdown::tests::a_task_that_ends_early_fails_the_role_and_stops_the_others",
    ),
    Guard(
        "a role that hangs fails",
        "stop cleanly",
        "src/shutdown.rs",
        'bail!("did not stop within {} s; what was in hand will be done again by the next start", '
        "DEADLINE.as_secs()),",
        "Ok(()),",
        "lib shutdown::tests::a_role_that_hangs_is_abandoned_after_the_deadline",
    ),
    Guard(
        "an answered write is on disk",
        "a private Redis",
        "src/local/redis.rs",
        "appendfsync always",
        "appendfsync everysec",
        "it reading::a_private_redis_keeps_what_it_has_taken",
    ),
    Guard(
        "a full Redis evicts nothing",
        "a private Redis",
        "src/local/redis.rs",
        "maxmemory-policy noeviction",
        "maxmemory-policy allkeys-lru",
        "it reading::a_private_redis_keeps_what_it_has_taken",
    ),
    Guard(
        "a repair goes to the Redis of the relays",
        "intent, then outcome",
        "src/explain/repair.rs",
        "    if known != identity {\n",
        "    if known == identity {\n",
        "it explain_repair::what_cannot_be_repaired_is_said_and_left_alone",
    ),
    Guard(
        "what was repaired is in transit",
        "intent, then outcome",
        "src/explain/repair/resend.rs",
        "repository::mark_sent_again(connection, &entries, sent.redis_mark).await?;",
        "let _ = entries;",
        "it explain_repair::what_an_old_consumer_has_dropped_is_lost_until_it_is_repaired",
    ),
    Guard(
        "an unconfirmed heartbeat is sent only while nobody else has sent it",
        "intent, then outcome",
        "src/explain/repair/resend.rs",
        "match of_slot.clone().find_map(|row| row.stream_id) {",
        "match None::<StreamId> {",
        "it explain_unconfirmed::a_row_that_got_an_entry_meanwhile_is_not_sent_again",
    ),
]


class Broken(Exception):
    """An entry of the list that proves nothing, and why."""


def misfit(guard: Guard) -> Optional[str]:
    """Why an entry does not fit the code, if it does not."""
    file = ROOT / guard.file
    if not file.is_file():
        return f"there is no {guard.file}"
    found = file.read_text().count(guard.old)
    if found != 1:
        return f"its text is {found} times in {guard.file}, and must be there once: {guard.old!r}"
    kind, _, name = guard.test.partition(" ")
    *modules, function = name.split("::")
    if kind == "it":
        source = ROOT / "tests" / "it" / ("/".join(modules) + ".rs")
    else:
        source = ROOT / "src" / ("/".join(modules[:-1]) + ".rs")
    if not source.is_file() or not re.search(rf"\bfn {function}\(", source.read_text()):
        return f"there is no test {name} in {source.relative_to(ROOT)}"
    return None


class Workshop:
    """A copy of the tree in which guards are taken out, built and tested."""

    def __init__(self, scratch: Path, target: Path) -> None:
        self.tree = scratch / "tree"
        self.target = target
        self.executables = {}
        shutil.rmtree(self.tree, ignore_errors=True)
        # Every file becomes new, so that nothing of an earlier run is taken for built.
        shutil.copytree(
            ROOT,
            self.tree,
            ignore=lambda folder, names: LEFT_OUT & set(names) if Path(folder) == ROOT else set(),
            copy_function=shutil.copy,
        )

    def environment(self, needs: Optional[str] = None) -> dict:
        kept = {name: value for name, value in os.environ.items() if name != MYSQL or needs == MYSQL}
        return kept | {
            "CARGO_PROFILE_DEV_DEBUG": "0",
            "RUST_BACKTRACE": "0",
            "HEARTBEAT_TEST_PATIENCE_SECONDS": str(EVENTUALLY_SECONDS),
        }

    def build(self, kinds: set) -> None:
        """Builds test programs. Fails with the first error of the compiler."""
        targets = [["--lib"] if kind == "lib" else ["--test", kind] for kind in sorted(kinds)]
        command = ["cargo", "test", "--no-run", "--message-format=json-render-diagnostics"]
        command += ["--target-dir", str(self.target), *sum(targets, [])]
        built = subprocess.run(
            command, cwd=self.tree, env=self.environment(), capture_output=True, text=True
        )
        if built.returncode != 0:
            error = re.search(r"^error.*", built.stderr, re.MULTILINE)
            raise Broken(f"does not compile: {error[0] if error else built.stderr[-200:]}")
        for message in map(json.loads, built.stdout.splitlines()):
            if message.get("executable") and message["profile"]["test"]:
                kind = {"lib": "lib", "test": "it"}.get(message["target"]["kind"][0])
                self.executables[kind] = message["executable"]

    def run(self, kind: str, names: list, needs: Optional[str] = None) -> tuple:
        """Runs tests by their full names. Answers which passed, which failed, and the output."""
        process = subprocess.Popen(
            [self.executables[kind], "--exact", *names],
            cwd=self.tree,
            env=self.environment(needs),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=PATIENCE_SECONDS + 10 * len(names))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return set(), set(names), output + "\npanicked at -:\ndid not end in time\n"
        failed = re.search(r"\nfailures:\n((?:    \S+\n)+)\ntest result", output)
        failed = set(failed[1].split()) if failed else set()
        counted = re.search(r"test result: \w+\. (\d+) passed; (\d+) failed", output)
        if not counted or int(counted[1]) + int(counted[2]) != len(names):
            raise Broken(f"ran {counted[0] if counted else 'nothing'} instead of {len(names)} tests")
        return set(names) - failed, failed, output

    def without(self, guard: Guard) -> str:
        """Takes a guard out, and answers how its test fails; an empty text if it passes."""
        kind, _, name = guard.test.partition(" ")
        file, lock = self.tree / guard.file, self.tree / "Cargo.lock"
        original, locked = file.read_text(), lock.read_text()
        try:
            file.write_text(original.replace(guard.old, guard.new))
            if not guard.is_text:
                self.build({kind})
            _, failed, output = self.run(kind, [name], guard.needs)
            return complaint(output) if failed else ""
        finally:
            file.write_text(original)
            lock.write_text(locked)


def complaint(output: str) -> str:
    """What the first panic says, in one line."""
    said = re.search(r"panicked at [^\n]*:\n(.*?)(?:\nnote: |\n\n|\Z)", output, re.DOTALL)
    said = said or re.search(r"^(Error: .*)$", output, re.MULTILINE)
    line = " ".join(said[1].split()) if said else "it fails without a word"
    line = line.replace("assertion `left == right` failed", "not equal")
    line = line.replace("assertion `left != right` failed", "equal")
    return line if len(line) <= 110 else line[:107] + "..."


def first_line(*command: str) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except OSError:
        return f"no {command[0]}"
    return said[0].strip() if said else f"{command[0]} says nothing"


def machine() -> list:
    """When and on what this runs."""
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE)
    database = next((name for name in ("mysqld", "mariadbd") if shutil.which(name)), "mysqld")
    lines = [
        time.strftime("date      %Y-%m-%d %H:%M UTC", time.gmtime()),
        f"machine   {os.cpu_count()} cores, {system[1] if system else 'unknown system'}",
        f"redis     {version(first_line('redis-server', '--version'))}",
        f"database  {version(first_line(database, '--version'))}",
    ]
    if os.environ.get(MYSQL):
        mysql = version(first_line(os.environ[MYSQL], "--no-defaults", "--version"))
        lines.append(f"          {mysql}, where a guard shows only there")
    return lines


def version(line: str) -> str:
    """Product and number of what a server says of itself, without its path."""
    found = re.search(r"(?:Ver\s+|v=)(\S+)", line)
    product = next((p for p in ("MariaDB", "MySQL", "Valkey", "Redis") if p.lower() in line.lower()), "")
    return f"{product} {found[1]}" if found else line


class Report:
    """Lines for a person, and for a file."""

    def __init__(self, file: Optional[Path]) -> None:
        self.file = file
        self.lines = []

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    def keep(self) -> None:
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text("\n".join(self.lines) + "\n")


def prove(guards: list, workshop: Workshop, report: Report) -> int:
    """Takes each guard out. Answers for how many that did not show what it should."""
    width = max(len(guard.name) for guard in guards)
    test_width = max(len(guard.test) for guard in guards)
    workshop.build({guard.test.split()[0] for guard in guards})
    bad_tests = set()
    for kind, needs in sorted({(g.test.split()[0], g.needs) for g in guards}, key=str):
        names = {g.test.split()[1] for g in guards if (g.test.split()[0], g.needs) == (kind, needs)}
        _, failed, output = workshop.run(kind, sorted(names), needs)
        bad_tests |= failed
        for name in sorted(failed):
            report.say(f"FAILS WITH ALL GUARDS IN: {name}: {complaint(output)}")
    bad = len(bad_tests)
    # What needs no build goes first, while the programs are those of the whole tree; what builds
    # dependencies again goes last.
    order = sorted(guards, key=lambda guard: (not guard.is_text, guard.file == "Cargo.toml"))
    for guard in order:
        if guard.test.split()[1] in bad_tests:
            continue
        try:
            said = workshop.without(guard)
            verdict = f"fails without it: {said}" if said else "STILL PASSES"
        except Broken as why:
            said, verdict = "", f"PROVES NOTHING: {why}"
        bad += not said
        report.say(f"{guard.name:<{width}}  {guard.test:<{test_width}}  {verdict}")
    return bad


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="WORDS", help="guards whose name contains one of the words")
    parser.add_argument("--list", action="store_true", help="list the guards and do nothing")
    parser.add_argument("--check", action="store_true", help="check only that the list fits the code")
    parser.add_argument("--scratch", metavar="DIRECTORY", type=Path, help="keep the copy here")
    parser.add_argument("--target-dir", metavar="DIRECTORY", type=Path, help="keep the builds here")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the report here as well")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    words = options.only.split(",") if options.only else [""]
    guards = [guard for guard in GUARDS if any(word in guard.name for word in words)]
    if options.list:
        for guard in guards:
            print(f"{guard.trap:<30} {guard.name:<40} {guard.file}")
        return 0
    misfits = [(guard, misfit(guard)) for guard in guards]
    for guard, why in misfits:
        if why:
            print(f"{guard.name}: {why}", file=sys.stderr)
    if any(why for _, why in misfits) or not guards:
        return 1
    if options.check:
        return 0

    report = Report(options.output)
    only = f" --only {options.only}" if options.only else ""
    report.say(f"command   tests/guards.py{only}")
    for line in machine():
        report.say(line)
    report.say()
    left_out = [guard for guard in guards if guard.needs and not os.environ.get(guard.needs)]
    guards = [guard for guard in guards if guard not in left_out]
    for guard in left_out:
        report.say(f"LEFT OUT, because {guard.needs} is not set: {guard.name}")
    with tempfile.TemporaryDirectory(prefix="guards-") as temporary:
        scratch = (options.scratch or Path(temporary)).resolve()
        target = (options.target_dir or scratch / "target").resolve()
        began = time.monotonic()
        bad = prove(guards, Workshop(scratch, target), report)
        minutes = (time.monotonic() - began) / 60
    report.say()
    report.say(f"{len(guards)} guards, {bad} without proof, in {minutes:.0f} min")
    report.keep()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
