//! Windows that only an audit knows.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use heartbeat::wire::Window;
use serde_json::{Value, json};
use sqlx::MySqlPool;

use crate::explain::explain;
use crate::explain_repair::Sent;
use crate::support::{Ground, answer, free_address, get, pool, window};
use crate::verdicts::{Ledgers, verdicts};

/// Nothing of the window has arrived, not even its announcement.
#[tokio::test]
async fn a_window_that_is_lost_whole_is_found_and_repaired_without_an_alert() {
    let sent = Sent::new().await;
    sent.drop_messages(sent.ground.stream.windows(), 1).await;
    sent.drop_messages(sent.ground.stream.reports(), 20).await;
    let _relay = sent.relay().await;
    let (code, out) = sent.explained("20 slots are unexplained: lost.").await;
    assert_eq!(code, 1);
    assert!(out.contains("  unheard, 0 of 20 arrived\n  XXXXXXXXXXXXXXXXXXXX\n"), "{out}");
    assert_eq!(sent.shown().await, json!({"error": format!("no window {} is known", sent.uuid)}));
    for arguments in [&[][..], &["--service", "payments-a", "--since", "10m"]] {
        let (code, out, _) = explain(&sent.monitor, arguments).await;
        assert_eq!(code, 1, "{out}");
        assert!(out.contains(&sent.uuid), "{out}");
    }
    let (code, out, _) = explain(&sent.monitor, &["--service", "payments-b"]).await;
    assert_eq!((code, out.as_str()), (0, ""));

    let (code, out, err) = sent.repair(&["--yes"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("\nsent 20 lost heartbeats again; "), "{out}");
    let (code, out) = sent.explained("  closed, 20 of 20 arrived\n").await;
    assert_eq!(code, 0, "{out}");
    let history = sent.shown().await["history"].clone();
    let statuses = history.as_array().unwrap().iter().map(|change| change["status"].as_str());
    assert!(!statuses.collect::<Vec<_>>().contains(&Some("alert")), "{history}");
    let (code, out, _) = explain(&sent.monitor, &[]).await;
    assert_eq!((code, out.matches(&sent.uuid).count()), (0, 1), "{out}");
}

/// Stores a window as an older sender does.
async fn audited(audit: &MySqlPool, window: &Window) {
    sqlx::query(
        "INSERT INTO report_windows (window_uuid, service, window_from, window_to, created_at) \
         VALUES (?, ?, ?, ?, ?)",
    )
    .bind(window.uuid.to_string())
    .bind(window.service.as_str())
    .bind(DateTime::<Utc>::from(window.from()))
    .bind(DateTime::<Utc>::from(window.to()))
    .bind(DateTime::<Utc>::from(window.from()))
    .execute(audit)
    .await
    .unwrap();
}

#[tokio::test]
async fn windows_of_all_audits_are_listed_page_by_page() {
    let ledgers = Ledgers::new(1).await;
    let elsewhere = Ground::new().await;
    elsewhere.payments("payments-c").await;
    let audits = [pool(&ledgers.ground.payments_url).await, pool(&elsewhere.payments_url).await];
    let mut expected = BTreeSet::new();
    for number in 0..7 {
        let window = window("payments-b", 2);
        audited(&audits[number % 2], &window).await;
        expected.insert(window.uuid.to_string());
    }
    // What is no window hides none.
    sqlx::query(
        "INSERT INTO report_windows (window_uuid, service, window_from, window_to, created_at) \
         VALUES ('zzz', ' ', '2026-11-21 10:00:00', '2026-11-21 09:00:00', '2026-11-21 10:00:00')",
    )
    .execute(&audits[0])
    .await
    .unwrap();
    let urls = [ledgers.ground.payments_url.as_str(), elsewhere.payments_url.as_str()];
    let monitor = ledgers.served(&urls).await;
    let list = async |query: &str| {
        let url = monitor.url(&format!("/api/monitor/unheard-windows?{query}"));
        answer(get(&url).await.unwrap()).await
    };
    let from = "from=2026-11-21T10:00:00Z";
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = list(&format!("{from}&limit=2{cursor}")).await;
        assert_eq!((status.as_u16(), &page["audit"]), (200, &json!("read")), "{page}");
        let windows = page["windows"].as_array().unwrap();
        assert!(windows.len() <= 2);
        assert!(windows.iter().all(|window| window["status"] == "unheard"), "{page}");
        found.extend(
            windows.iter().map(|window| window["window_uuid"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found.len(), 7);
    assert_eq!(BTreeSet::from_iter(found), expected, "and not the one that the monitor knows");
    let (_, page) = list("from=2026-11-21T10:00:01Z").await;
    assert_eq!(page["windows"], json!([]));
    for (query, expected) in [
        ("", "from"),
        ("from=soon", "from must be an ISO 8601 time"),
        (&format!("{from}&limit=0"), "limit must be from 1 to 500"),
        (&format!("{from}&cursor=x"), "cursor must be the `next` of an earlier answer"),
        (&format!("{from}&service=%20"), "service must be"),
    ] {
        let (status, body) = list(query).await;
        assert_eq!(status, 400, "{query}: {body}");
        assert!(body["error"].as_str().unwrap().contains(expected), "{query}: {body}");
    }

    let (code, out, err) = explain(&monitor, &["--since", "300d", "--json"]).await;
    assert_eq!(code, 0, "{err}");
    let shown: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(shown.len(), 8);
    assert_eq!(verdicts(&shown[7]), ["sender_down", "sender_down"]);
}

#[tokio::test]
async fn where_an_audit_is_away_nobody_can_tell_what_it_knows() {
    let ledgers = Ledgers::new(1).await;
    let hidden = window("payments-b", 1);
    audited(&pool(&ledgers.ground.payments_url).await, &hidden).await;
    let away = format!("mysql://u:p@{}/d", free_address());
    let monitor = ledgers.served(&[&ledgers.ground.payments_url, &away]).await;
    let (code, out, _) = explain(&monitor, &["--since", "300d"]).await;
    assert_eq!(code, 2, "{out}");
    assert!(out.contains(&hidden.uuid.to_string()), "what can be read is shown: {out}");
    assert!(
        out.ends_with("An audit cannot be read: windows that only it knows are not among these.\n")
    );
    let nobody = uuid::Uuid::nil().to_string();
    let (code, _, err) = explain(&monitor, &[&nobody]).await;
    assert_eq!(code, 2);
    assert!(err.contains("an audit that may know this window cannot be read now"), "{err}");

    let monitor = ledgers.served(&[]).await;
    let (code, out, _) = explain(&monitor, &["--since", "300d", "--service", "payments-b"]).await;
    assert_eq!((code, out.as_str()), (0, ""), "there is no audit to ask");
}
