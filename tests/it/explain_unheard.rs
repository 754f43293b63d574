//! Windows that only an audit knows.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::http::Uri;
use axum::routing::any;
use axum::{Json, Router};
use chrono::{DateTime, Utc};
use heartbeat::clock;
use heartbeat::config::DatabaseUrl;
use heartbeat::wire::{Rates, Tick, Window};
use serde_json::{Value, json};
use sqlx::{MySql, MySqlPool, QueryBuilder};
use uuid::Uuid;

use crate::explain::explain;
use crate::explain_repair::{QUICK, Sent};
use crate::relay::serve;
use crate::support::{
    Ground, Process, Proxy, answer, entry_id, eventually, free_address, get, pool, run, shared,
    window,
};
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
    assert!(out.contains("\n1 window is unheard: the monitor knows of it only from an audit.\n"));
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

/// Stores a window of some days ago, with slots of a second, and says that all of it was sent.
async fn sent_days_ago(audit: &MySqlPool, slots: u32) -> Window {
    let from = clock::now().minus(Duration::from_hours(72));
    let span = (from, from.plus(Duration::from_secs(slots.into())));
    let tick = Tick::from_seconds(1.0).unwrap();
    let service = "payments-a".parse().unwrap();
    let window = Window::new(Uuid::new_v4(), service, span, tick, Rates::default()).unwrap();
    audited(audit, &window).await;
    sqlx::raw_sql("UPDATE report_windows SET tick_us = 1000000").execute(audit).await.unwrap();
    let mut rows = QueryBuilder::<MySql>::new(
        "INSERT INTO report_audit (window_uuid, service, status, window_from, window_to, \
         timestamp, sent_to_queue, created_at, slot, stream_id, first_stream_id) ",
    );
    rows.push_values(0..slots, |mut row, slot| {
        let due = DateTime::<Utc>::from(window.due(slot));
        let entry = entry_id(window.due(slot)).to_string();
        row.push_bind(window.uuid.to_string()).push_bind("payments-a").push_bind("ok");
        row.push_bind(DateTime::<Utc>::from(window.from()));
        row.push_bind(DateTime::<Utc>::from(window.to()));
        row.push_bind(due).push_bind(true).push_bind(due).push_bind(slot);
        row.push_bind(entry.clone()).push_bind(entry);
    });
    rows.build().execute(audit).await.unwrap();
    window
}

/// It is more than one step sends, over a network on which each statement takes 80 ms, and arrives
/// piece by piece while windows are closed all the time.
#[tokio::test]
async fn a_window_of_days_ago_is_repaired_over_a_slow_network_without_an_alert() {
    let ground = Ground::new().await;
    ground.payments("payments-a").await;
    let audit = pool(&ground.payments_url).await;
    let window = sent_days_ago(&audit, 130).await;
    let environment =
        [("DATABASE_URL", &*ground.monitor_url), ("AUDIT_DATABASE_URL", &*ground.payments_url)];
    let monitor = Process::role("monitor", &QUICK, &environment).await;
    let pieces = ["--batch-size", "10", "--concurrency", "1"];
    let _relay = Process::relay(&ground, &monitor.url(""), &pieces).await;
    let uuid = window.uuid.to_string();
    let explained = async |expected: &str| {
        eventually(expected, async || {
            explain(&monitor, &[&uuid]).await.1.contains(expected).then_some(())
        })
        .await;
    };
    explained("130 slots are unexplained: lost.").await;

    let address: DatabaseUrl = ground.payments_url.parse().unwrap();
    let url = shared().database_tcp_url(address.options().get_database().unwrap());
    let (_, place) = url.rsplit_once('@').unwrap();
    let (server, _) = place.split_once('/').unwrap();
    let slow = Proxy::start_slow(server.parse().unwrap(), Duration::from_millis(40)).await;
    let url = url.replace(server, &slow.address.to_string());
    let (monitor_url, stream) = (monitor.url(""), ground.stream.to_string());
    let environment = [
        ("MONITOR_URL", monitor_url.as_str()),
        ("REDIS_URL", shared().redis_url.as_str()),
        ("STREAM_NAME", stream.as_str()),
        ("PAYMENTS_DATABASE_URL", url.as_str()),
    ];
    let (code, out, err) =
        run(&["explain", "--repair", "--yes", "--since", "4d"], &environment).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("\nsent 130 lost heartbeats again; "), "{out}");
    explained("  closed, 130 of 130 arrived\n").await;
    let shown = get(&monitor.url(&format!("/api/monitor/windows/{uuid}"))).await.unwrap();
    let history = answer(shown).await.1["history"].clone();
    assert_eq!(history.as_array().unwrap().len(), 1, "{history}");
}

/// Whoever asks for one of the windows of the list finds the audit gone.
#[tokio::test]
async fn an_audit_that_goes_away_after_it_was_listed_leaves_the_rest_explained() {
    let ledgers = Ledgers::new(1).await;
    let audit = pool(&ledgers.ground.payments_url).await;
    audited(&audit, &window("payments-b", 2)).await;
    let monitor = ledgers.served(&[&ledgers.ground.payments_url]).await;
    let url = monitor.url("");
    let between = move |uri: Uri| {
        let (audit, url) = (audit.clone(), url.clone());
        async move {
            if uri.path().starts_with("/api/monitor/unheard-windows/") {
                let taken = sqlx::raw_sql("RENAME TABLE report_windows TO taken_away");
                taken.execute(&audit).await.unwrap();
            }
            let (status, body) = answer(get(&format!("{url}{uri}")).await.unwrap()).await;
            (status, Json(body))
        }
    };
    let (url, _stop) = serve(Router::new().route("/{*path}", any(between))).await;
    let arguments = ["explain", "--since", "300d", "--monitor-url", url.as_str()];
    let (code, out, err) = run(&arguments, &[]).await;
    assert_eq!((code, err.as_str()), (2, ""), "{out}");
    assert!(out.contains(&ledgers.window.uuid.to_string()), "{out}");
    assert!(out.ends_with("windows that only it knows are not among these.\n"), "{out}");
}

/// Stores a window as an older sender does.
pub async fn audited(audit: &MySqlPool, window: &Window) {
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
