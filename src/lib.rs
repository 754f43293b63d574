//! heartbeat is a distributed heartbeat monitor with two ledgers: what each service did, and what
//! arrived.
//!
//! Services under watch write heartbeats to a Redis stream and keep an audit of what they did; a
//! relay carries the heartbeats to a monitor, which keeps a ledger of what it saw. Two independent
//! ledgers, compared slot by slot, tell a heartbeat that was never sent from one that is late or
//! lost.
//!
//! # Map
//!
//! Every module uses only modules that stand below it here; `config` and `stream` alone know each
//! other, because the stream's name is an option and its address is parsed with the options.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | the command line, and the operator's commands |
//! | [`standalone`] | all roles in one process, on private servers |
//! | [`payments`] | role: a service under watch |
//! | [`relay`] | role: from the streams to the monitor |
//! | [`monitor`] | role: windows, events, alerts, API |
//! | [`dead_letters`] | the operator's command for messages that the monitor refused |
//! | [`forget_group`] | the operator's command that ends a consumer group |
//! | [`explain`] | the operator's command that says why heartbeats are missing, and sends what is lost again |
//! | [`local`] | private Redis and MySQL servers as child processes |
//! | [`metrics`] | what a role counts and measures, as Prometheus reads it |
//! | [`http`] | serving, errors, health and readiness; the HTTP client |
//! | [`stream`] | the only user of Redis |
//! | [`traces`] | the way of one heartbeat, as OpenTelemetry shows it |
//! | [`db`] | pools, schemas, transactions, what a failure means |
//! | [`config`] | command-line values that roles share |
//! | [`shutdown`], [`telemetry`], [`terminal`], [`retry`], [`clock`] | stopping, logs, what is printed and asked, back-off, the time |
//! | [`verdict`] | what became of a slot, from both ledgers: pure |
//! | [`wire`] | heartbeats, windows and slots: pure |
//!
//! Roles never use each other. A role is a `run` function that takes its options and a token that
//! tells it to stop; each of its loops is a thin shell around a step that tests call directly.

pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod dead_letters;
pub mod explain;
pub mod forget_group;
pub mod http;
pub mod local;
pub mod metrics;
pub mod monitor;
pub mod payments;
pub mod relay;
pub mod retry;
pub mod shutdown;
pub mod standalone;
pub mod stream;
pub mod telemetry;
pub mod terminal;
pub mod traces;
pub mod verdict;
pub mod wire;
