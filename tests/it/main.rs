//! Tests against real servers and the real executable, one file per subject.
//!
//! One private Redis and one private database serve the whole run; each test has databases and a
//! stream of its own in them. `HEARTBEAT_TEST_MYSQLD` names the database server to use instead of
//! the one on the path, which is how the same tests run on MySQL and on MariaDB.

#![allow(unreachable_pub, reason = "nobody uses a test binary as a library")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::type_complexity, reason = "tables of cases are read, not passed around")]
#![allow(clippy::float_cmp, reason = "the metrics that are compared are whole numbers")]
#![allow(clippy::similar_names, reason = "`status` and `stats` are the API's words")]

mod support;

mod adopt;
mod chaos;
mod cli;
mod compose;
mod counting;
mod database;
mod dead_letters;
mod deploy;
mod event_api;
mod explain;
mod explain_prompt;
mod explain_repair;
mod explain_unconfirmed;
mod explain_unheard;
mod explain_watch;
mod first_system;
mod forget_group;
mod forward;
mod groups;
mod guards;
mod ingest;
mod local;
mod lookups;
mod metrics;
mod monitor_api;
mod old_monitor;
mod openapi;
mod outage;
mod outbox;
mod payments;
mod pipeline;
mod pipeline_api;
mod plans;
mod prune;
mod prune_stops;
mod prune_waits;
mod query_api;
mod reading;
mod readme;
mod relay;
mod resend;
mod roles;
mod schema;
mod seed_sql;
mod standalone;
mod streams;
mod suspects;
mod sweep;
mod tidy;
mod totals;
mod traces;
mod verdicts;
mod watermark;
mod writes;
