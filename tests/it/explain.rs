//! The command that explains windows, against a real monitor that has both ledgers.

use std::time::Duration;

use heartbeat::monitor::ingest;
use heartbeat::wire::Window;
use serde_json::{Value, json};

use crate::support::{
    Ground, Process, announcement, answer, eventually, free_address, get, run, window,
};
use crate::verdicts::{Ledgers, everything, verdicts};

/// Runs `heartbeat explain` against a monitor.
pub async fn explain(monitor: &Process, arguments: &[&str]) -> (i32, String, String) {
    let url = monitor.url("");
    run(&[&["explain"], arguments].concat(), &[("MONITOR_URL", &url)]).await
}

#[tokio::test]
async fn the_command_shows_what_is_unusual_and_ends_with_whether_it_is_explained() {
    let (ledgers, _) = everything().await;
    let monitor = ledgers.served(&[&ledgers.ground.payments_url]).await;
    let uuid = ledgers.window.uuid.to_string();
    let (code, out, err) = explain(&monitor, &[&uuid]).await;
    assert_eq!((code, err.as_str()), (1, ""), "{out}");
    let head = format!(
        "{uuid}  payments-a  2026-11-21T10:00:00Z to 2026-11-21T10:02:20Z  alert, 5 of 14 arrived\n  \
         .L++!!-v~>X~X.\n"
    );
    assert!(out.starts_with(&head), "{out}");
    for line in [
        "\n  slot 2: arrived 10:00:20, although the audit says that it was omitted\n",
        "\n  slots 4, 5: refused by the monitor at 10:02:20: too odd; ",
        "\n  slot 6: the service omitted it on purpose\n",
        "\n. 2 on_time   L 1 late   - 1 never_sent   v 1 sender_down   ~ 2 unconfirmed   ",
        "\nOf 9 missing heartbeats 5 are explained.\n2 slots are unexplained: lost.\n2 slots cannot \
         be followed: ",
    ] {
        assert!(out.contains(line), "{line:?} in:\n{out}");
    }
    assert!(!out.contains('\x1b'), "no colours but on a terminal");

    let (code, out, _) = explain(&monitor, &["--since", "300d", "--verdict", "late,phantom"]).await;
    assert_eq!(code, 1, "what is not shown counts all the same");
    assert!(out.contains("slot 1: published") && out.contains("slot 3: arrived"), "{out}");
    assert!(!out.contains("omitted it on purpose"), "{out}");

    let (code, out, _) = explain(&monitor, &[&uuid, "--json", "--verdict", "lost"]).await;
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, verdicts(&shown)), (1, vec!["lost", "lost"]));
    assert_eq!((&shown["window_uuid"], &shown["slots"][1]["slot"]), (&json!(uuid), &json!(12)));

    let (code, out, err) = explain(&monitor, &["--since", "300d", "--service", "nobody"]).await;
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(err.contains("no window"), "{err}");
}

#[tokio::test]
async fn where_the_audit_cannot_be_asked_the_command_says_that_nobody_can_tell() {
    let (ledgers, _) = everything().await;
    let away = format!("mysql://u:p@{}/d", free_address());
    let monitor = ledgers.served(&[&away]).await;
    let (code, out, _) = explain(&monitor, &[&ledgers.window.uuid.to_string()]).await;
    assert_eq!(code, 2, "{out}");
    // The second letter names no slot, and only the audit knows whose entry it was.
    assert!(out.contains("\n  .L..!????????.\n"), "{out}");
    assert!(out.contains("because the audit cannot be read\n"), "{out}");
    assert!(out.ends_with("8 slots are not judged: unknown.\n"), "{out}");
}

#[tokio::test]
async fn the_command_goes_through_all_pages_and_says_that_nobody_can_tell() {
    let ledgers = Ledgers::new(1).await;
    let windows: Vec<Window> = (0..120).map(|_| window("payments-b", 1)).collect();
    let told = windows.iter().map(announcement).collect();
    ingest::announce(&ledgers.monitor, told, ledgers.window.from()).await.unwrap();
    let monitor = ledgers.served(&[&ledgers.ground.payments_url]).await;
    let arguments = ["--since", "300d", "--service", "payments-b", "--json"];
    let (code, out, err) = explain(&monitor, &arguments).await;
    assert_eq!(code, 2, "{err}");
    let mut shown: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    shown.sort_by_key(|window| window["window_uuid"].to_string());
    shown.dedup();
    assert_eq!(shown.len(), 120);
    assert!(shown.iter().all(|window| window["verdicts"] == json!({"unknown": 1})));
    let (code, out, _) = explain(&monitor, &["--since", "300d", "--service", "payments-a"]).await;
    assert_eq!(code, 0, "{out}");
    assert!(out.ends_with("Every missing heartbeat is explained: 1 of 1.\n"), "{out}");
    assert_eq!(explain(&monitor, &["--since", "1h"]).await.0, 0, "none began within that time");

    let nobody = format!("http://{}", free_address());
    let uuid = ledgers.window.uuid.to_string();
    let known = monitor.url("");
    let other = uuid::Uuid::nil().to_string();
    for (arguments, expected) in [
        (&["--monitor-url", &nobody][..], "cannot be reached: Connection refused"),
        (&["--monitor-url", &known, &other], "answered 404 Not Found: no window 00000000"),
        (&["--monitor-url", &format!("{known}/x")], "answered 404 Not Found"),
        (&["--verdict", "missing"], "must be one of on_time, late, pending, never_sent"),
        (&["--since", "1"], "write a duration such as"),
        (&["not-a-uuid"], "invalid value 'not-a-uuid'"),
        (&[&uuid, "--service", "a"], "cannot be used with"),
    ] {
        let (code, out, err) = run(&[&["explain"], arguments].concat(), &[]).await;
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
    }
}

/// The whole way, with a sender that dies in the middle.
#[tokio::test]
async fn whatever_is_missing_after_a_sender_has_died_is_explained() {
    let ground = Ground::new().await;
    let environment =
        [("DATABASE_URL", &*ground.monitor_url), ("AUDIT_DATABASE_URL", &*ground.payments_url)];
    let quick = ["--grace", "100ms", "--sweep-interval", "200ms", "--replay-grace", "1s"];
    ground.payments("payments-a").await;
    let monitor = Process::role("monitor", &quick, &environment).await;
    let _relay = Process::relay(&ground, &monitor.url(""), &[]).await;
    let service = Process::payments(&ground, "payments-a", &[]).await;
    let request = json!({"duration_sec": 4, "tick_seconds": 0.1, "error_status_no_reportado": 0.3});
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    let open = client.post(service.url("/report-windows")).body(request.to_string());
    let (_, opened) = answer(open.send().await.unwrap()).await;
    let uuid = opened["window_uuid"].as_str().unwrap();
    let url = monitor.url(&format!("/api/monitor/windows/{uuid}"));
    let window = async || answer(get(&url).await.unwrap()).await.1;
    let stats = service.url(&format!("/report-windows/{uuid}/stats"));
    eventually("some arrive, and one is withheld", async || {
        let withheld = answer(get(&stats).await.unwrap()).await.1["no_reported"].as_u64();
        let received = window().await["received_reports"].as_u64();
        (received > Some(5) && withheld > Some(0)).then_some(())
    })
    .await;
    service.kill().await;
    let closed = eventually("it closes", async || {
        Some(window().await).filter(|window| window["status"] == "alert")
    })
    .await;
    let verdicts = verdicts(&closed);
    for verdict in ["on_time", "never_sent", "sender_down"] {
        assert!(verdicts.contains(&verdict), "{verdict}: {verdicts:?}");
    }
    let (code, out, err) = explain(&monitor, &["--service", "payments-a"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let missing = closed["missing_reports"].to_string();
    let conclusion = format!("Every missing heartbeat is explained: {missing} of {missing}.\n");
    assert!(out.ends_with(&conclusion), "{out}");
}
