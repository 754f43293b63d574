//! What the README says is what the program does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use clap::{Arg, Command, CommandFactory};
use heartbeat::cli::Cli;
use serde_json::Value;

use crate::support::{Ground, Process, answer, eventually, get, shared};

const README: &str = include_str!("../../README.md");
const SENDER: &str = include_str!("../../docs/sender.py");
const MAKEFILE: &str = include_str!("../../Makefile");

/// Heading of the table of options that every command takes.
const COMMON: &str = "every command";

#[test]
fn the_readme_shows_the_sender_as_it_is() {
    assert!(README.contains(&format!("\n```python\n{SENDER}```\n")), "copy docs/sender.py again");
}

#[test]
fn every_make_target_that_the_readme_names_exists() {
    let targets: BTreeSet<&str> =
        MAKEFILE.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    let code = README.split("\n    ").chain(README.split('`'));
    let named = code.filter_map(|code| code.strip_prefix("make ")?.split_whitespace().next());
    let named: Vec<&str> = named.collect();
    assert!(named.contains(&"run") && named.contains(&"test"), "{named:?}");
    for target in named {
        assert!(targets.contains(target), "make {target} is not in the Makefile");
    }
}

#[test]
fn the_tables_of_options_are_those_of_the_command_line() {
    let cli = Cli::command();
    let mut expected = BTreeMap::from([(COMMON.to_owned(), options(&cli))]);
    for command in cli.get_subcommands() {
        expected.insert(command.get_name().to_owned(), options_below(command));
    }
    let documented = documented_options();
    assert_eq!(
        documented.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "one table per command"
    );
    for (command, options) in expected {
        assert_eq!(documented[&command], options, "the options of {command}");
    }
}

/// The visible options of a command: name, environment variable, default.
fn options(command: &Command) -> BTreeSet<[String; 3]> {
    let visible = command.get_arguments().filter(|arg| !arg.is_hide_set());
    visible.map(|arg| [name(arg), environment(arg), default(arg)]).collect()
}

/// Those of a command and of the commands below it, which share one table.
fn options_below(command: &Command) -> BTreeSet<[String; 3]> {
    let below = command.get_subcommands().flat_map(options_below);
    options(command).into_iter().chain(below).collect()
}

fn name(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default();
    match (arg.get_long(), values) {
        (Some(long), _) => format!("`--{long}`"),
        (None, [value, ..]) => format!("`{value}`"),
        (None, []) => format!("`{}`", arg.get_id().as_str().to_uppercase()),
    }
}

fn environment(arg: &Arg) -> String {
    let name = arg.get_env().and_then(|name| name.to_str());
    name.map_or_else(String::new, |name| format!("`{name}`"))
}

/// The default as a table shows it: that of the parser, else the one that the help names.
fn default(arg: &Arg) -> String {
    let help = arg.get_help().map_or_else(String::new, ToString::to_string);
    let in_help = help.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
    match (arg.get_default_values(), in_help) {
        ([], Some((text, _))) => text.to_owned(),
        ([], None) if arg.is_required_set() => "required".to_owned(),
        ([], None) => "off".to_owned(),
        (values, _) => format!("`{}`", values[0].to_string_lossy()),
    }
}

/// The rows below each heading of the chapter on options, without their last column.
fn documented_options() -> BTreeMap<String, BTreeSet<[String; 3]>> {
    let (_, chapter) = README.split_once("\n## Options\n").expect("a chapter on options");
    let chapter = chapter.split("\n## ").next().expect("its text");
    let sections = chapter.split("\n### ").skip(1).map(|section| {
        let (heading, text) = section.split_once('\n').expect("a heading");
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        let rows = rows.map(|row| {
            let mut cells = row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
            std::array::from_fn(|_| cells.next().expect("a cell"))
        });
        let heading = heading.trim_matches('`').trim_start_matches("heartbeat ");
        (heading.to_ascii_lowercase(), rows.collect())
    });
    sections.collect()
}

#[tokio::test]
async fn the_sender_of_the_readme_is_watched_to_the_last_slot() {
    let ground = Ground::new().await;
    let monitor = Process::monitor(&ground, &["--grace", "0s", "--sweep-interval", "200ms"]).await;
    let _relay = Process::relay(&ground, &monitor.url(""), &[]).await;

    let well = send(&ground).await;
    let window = closed(&monitor, &well).await;
    assert_eq!(window["service"], "my-service");
    assert_eq!(counts(&window), [Some(6), Some(6), Some(0), Some(0)]);
    assert_eq!(window["status"], "closed");
    assert_eq!(window["unscheduled_reports"], 0);
}

/// Runs the sender over six slots. Answers the uuid of its window.
async fn send(ground: &Ground) -> String {
    let (password, address) = shared()
        .redis_tcp_url
        .strip_prefix("redis://:")
        .and_then(|rest| rest.strip_suffix("/0")?.split_once('@'))
        .expect("an address with a password");
    let sender = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sender.py");
    let stream = ground.stream.to_string();
    let output = tokio::process::Command::new("python3")
        .arg(sender)
        .args(["--redis", address, "--stream", &stream, "--service", "my-service"])
        .args(["--seconds", "3", "--tick", "0.5"])
        .env("REDIS_PASSWORD", password)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(30), output);
    let output = output.await.expect("it ends").expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A window once the monitor has closed it.
async fn closed(monitor: &Process, uuid: &str) -> Value {
    let url = monitor.url(&format!("/api/monitor/windows/{uuid}"));
    eventually("the window closes", async || {
        let (_, window) = answer(get(&url).await.ok()?).await;
        window["closed_at"].is_string().then_some(window)
    })
    .await
}

fn counts(window: &Value) -> [Option<u64>; 4] {
    ["expected_reports", "received_reports", "error_reports", "missing_reports"]
        .map(|name| window[name].as_u64())
}
