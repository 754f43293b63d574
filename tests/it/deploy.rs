//! What `deploy` asks of Prometheus exists: each metric that its rules and its dashboard name is
//! shown by the running roles, and promtool has nothing against any of them.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::support::{Ground, Process, Scrape, eventually};

const RULES: &str = include_str!("../../deploy/prometheus/heartbeat.rules.yml");
const CONFIGURATION: &str = include_str!("../../deploy/prometheus/prometheus.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/heartbeat.json");
const README: &str = include_str!("../../README.md");

/// Every text of a document that stands under a name.
fn named(document: &Value, name: &str, found: &mut Vec<String>) {
    match document {
        Value::Object(members) => {
            for (member, value) in members {
                match value {
                    Value::String(text) if member == name => found.push(text.clone()),
                    value => named(value, name, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| named(item, name, found)),
        _ => (),
    }
}

fn texts(document: &Value, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    named(document, name, &mut found);
    assert!(!found.is_empty(), "there is some {name}");
    found
}

/// The names of ours that stand in a text, recorded ones included.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    let ours = |word: &&str| word.split(':').any(|part| part.starts_with("heartbeat_"));
    words.filter(ours).collect()
}

/// The metrics that a scrape shows, by the names that a query uses.
fn shown(scrape: &Scrape) -> BTreeSet<String> {
    let samples = scrape.text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

async fn promtool_check_metrics(scrape: &Scrape) {
    let mut command = tokio::process::Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().expect(
        "promtool is installed, with the Debian package prometheus; .ci/install test does it",
    );
    child.stdin.take().unwrap().write_all(scrape.text.as_bytes()).await.unwrap();
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output());
    let output = output.await.expect("it ends").unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{said}\n{}", scrape.text);
}

#[tokio::test]
async fn the_running_roles_show_every_metric_that_rules_and_dashboard_name() {
    let rules: Value = serde_saphyr::from_str(RULES).unwrap();
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let asked = [texts(&rules, "expr"), texts(&dashboard, "expr"), texts(&dashboard, "query")];
    let asked = asked.concat().join(" ");
    let recorded: BTreeSet<String> = texts(&rules, "record").into_iter().collect();
    for name in names(&asked).into_iter().filter(|name| name.contains(':')) {
        assert!(recorded.contains(name), "{name} is recorded by no rule");
    }
    let wanted: BTreeSet<&str> =
        names(&asked).into_iter().filter(|name| !name.contains(':')).collect();
    assert!(wanted.len() > 20, "{wanted:?}");

    let ground = Ground::new().await;
    let monitor = Process::monitor(&ground, &["--replay-grace", "100ms"]).await;
    let relay = Process::relay(&ground, &monitor.url(""), &[]).await;
    let arguments = ["--continuous", "--window-duration", "5s"];
    let payments = Process::payments(&ground, "payments-a", &arguments).await;
    let roles = [&monitor, &relay, &payments];
    eventually("every metric is shown", async || {
        let mut found = BTreeSet::new();
        for role in roles {
            found.append(&mut shown(&Scrape::role(role).await));
        }
        let lacking: Vec<&&str> = wanted.iter().filter(|name| !found.contains(**name)).collect();
        if !lacking.is_empty() {
            eprintln!("not shown yet: {lacking:?}");
        }
        lacking.is_empty().then_some(())
    })
    .await;
    for role in roles {
        let scrape = Scrape::role(role).await;
        promtool_check_metrics(&scrape).await;
        every_metric_is_documented(&scrape);
    }
}

/// The README has a row for each metric.
fn every_metric_is_documented(scrape: &Scrape) {
    let families = scrape.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for family in families.filter_map(|rest| rest.split(' ').next()) {
        assert!(README.contains(&format!("`{family}`")), "the README does not explain {family}");
    }
}

#[test]
fn the_example_scrapes_each_role_and_loads_the_rules() {
    let configuration: Value = serde_saphyr::from_str(CONFIGURATION).unwrap();
    let jobs = texts(&configuration, "job_name");
    assert_eq!(jobs, ["heartbeat-monitor", "heartbeat-relay", "heartbeat-payments"]);
    assert_eq!(configuration["rule_files"][0], "heartbeat.rules.yml");
}
