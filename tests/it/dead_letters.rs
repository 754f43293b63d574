//! The operator's command for dead letters, against a real Redis and, where messages go back, a
//! real relay and monitor.

use heartbeat::stream::{Facts, StreamId};
use redis::streams::StreamRangeReply;
use redis::{AsyncCommands, cmd, pipe};
use serde_json::Value;

use crate::support::{
    Ground, Process, answer, at, eventually, get, heartbeat, run, shared, window,
};

/// Runs `heartbeat dead-letters` on a ground.
async fn dead_letters(ground: &Ground, arguments: &[&str]) -> (i32, String, String) {
    let stream = ground.stream.to_string();
    let environment =
        [("REDIS_URL", shared().redis_url.as_str()), ("STREAM_NAME", stream.as_str())];
    run(&[&["dead-letters"], arguments].concat(), &environment).await
}

/// Sends a message and sets it aside as a relay does. Answers the ids of the letter and of the
/// message.
async fn set_aside(ground: &Ground, payload: &str, reason: &str) -> [String; 2] {
    let original = ground.send(payload).await;
    let group = ground.group("relay-7");
    group.create().await.unwrap();
    let read = group.read_new(10).await.unwrap();
    assert_eq!(read.len(), 1);
    let facts = Facts {
        reason: reason.to_owned(),
        first_at: at("2026-11-21T10:00:00.5Z"),
        at: at("2026-11-21T10:00:01Z"),
        window_uuid: None,
        slot: Some(7),
    };
    group.dead_letter(read[0].source, original, &facts).await.unwrap();
    [letters(ground).await.pop().unwrap(), original.to_string()]
}

/// Writes a letter by hand, with the facts that older relays write. Answers its id.
async fn write(ground: &Ground, stream: &str, message: &[(&str, &[u8])]) -> String {
    let mut command = cmd("XADD");
    command.arg(ground.stream.dead()).arg("*");
    command.arg(&["stream", stream, "id", "1795314091881-0", "reason", "because"]);
    command.arg(&["at", "2026-11-22T02:21:31.883321Z", "consumer", "relay-1"]);
    for (name, value) in message {
        command.arg(name).arg(value);
    }
    command.query_async(&mut ground.redis().await).await.unwrap()
}

/// The ids of the letters.
async fn letters(ground: &Ground) -> Vec<String> {
    let all: StreamRangeReply =
        ground.redis().await.xrange_all(ground.stream.dead()).await.unwrap();
    all.ids.into_iter().map(|entry| entry.id).collect()
}

async fn written(ground: &Ground, stream: &str) -> Vec<Vec<u8>> {
    let all: StreamRangeReply = ground.redis().await.xrange_all(stream).await.unwrap();
    all.ids.iter().map(|entry| entry.get("payload").unwrap()).collect()
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn where_there_are_none_that_is_said() {
    let ground = Ground::new().await;
    for arguments in
        [&["list"][..], &["list", "--json"], &["replay", "--all"], &["drop", "--all", "--yes"]]
    {
        let (code, out, err) = dead_letters(&ground, arguments).await;
        assert_eq!(code, 0, "{arguments:?}: {err}");
        assert!((out + &err).contains("there are no dead letters"), "{arguments:?}");
    }
}

#[tokio::test]
async fn they_are_listed_page_by_page() {
    let ground = Ground::new().await;
    let mut ids = Vec::new();
    for number in 0..5_u8 {
        let payload = vec![b'x'; usize::from(number)];
        ids.push(write(&ground, ground.stream.reports(), &[("payload", &payload)]).await);
    }
    let (code, out, err) = dead_letters(&ground, &["list", "--limit", "2"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&ids[0]) && out.contains(&ids[1]) && !out.contains(&ids[2]), "{out}");
    assert!(out.contains("because") && out.contains("2026-11-22T02:21:31.883321Z"), "{out}");
    assert!(err.contains(&format!("--after {}", ids[1])), "{err}");

    let mut seen = Vec::new();
    let mut after = "0-0".to_owned();
    for more in [true, true, false] {
        let arguments = ["list", "--json", "--limit", "2", "--after", &after];
        let (code, out, err) = dead_letters(&ground, &arguments).await;
        assert_eq!((code, err.contains("next page")), (0, more), "{err}");
        seen.extend(json(&out));
        after = seen.last().unwrap()["id"].as_str().unwrap().to_owned();
    }
    let listed: Vec<&str> = seen.iter().map(|letter| letter["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids);
    assert_eq!(seen[4]["size_bytes"], 4);
    assert_eq!(seen[4]["original_id"], "1795314091881-0");
    assert_eq!(seen[4]["stream"], ground.stream.reports());
    assert_eq!(seen[4]["attempts"], Value::Null, "an older relay does not say");
    let (code, out, _) = dead_letters(&ground, &["list", "--limit", "5", "--after", "9-"]).await;
    assert_eq!((code, out.as_str()), (2, ""));
    let (_, out, err) = dead_letters(&ground, &["list", "--limit", "5"]).await;
    assert!(out.contains(&ids[4]) && err.is_empty(), "{err}");
}

#[tokio::test]
async fn one_is_shown_whole() {
    let ground = Ground::new().await;
    let payload = format!("{{\"service\":\"ñ\",\"stream\":\"{}\"}}", "x".repeat(100_000));
    let [id, original] = set_aside(&ground, &payload, "it is too long").await;
    let (code, out, err) = dead_letters(&ground, &["show", &id]).await;
    assert_eq!(code, 0, "{err}");
    for expected in [&payload, &original, "relay-7", "it is too long", "2026-11-21T10:00:01Z"] {
        assert!(out.contains(expected), "{expected} in {out}");
    }
    let (_, out, _) = dead_letters(&ground, &["show", "--json", &id]).await;
    let letter = &json(&out)[0];
    assert_eq!((&letter["payload"], &letter["utf8"]), (&payload.into(), &true.into()));
    assert_eq!(letter["attempts"], 1, "it was read once");
    assert_eq!(letter["original_id"], original);

    let fields: [(&str, &[u8]); 3] = [("id", b"7"), ("payload", b"\xff\0"), ("note", b"n")];
    let binary = write(&ground, ground.stream.reports(), &fields).await;
    let (_, out, _) = dead_letters(&ground, &["show", "--json", &binary]).await;
    let letter = &json(&out)[0];
    assert_eq!((&letter["utf8"], &letter["payload_base64"]), (&false.into(), &"/wA=".into()));
    assert_eq!(letter["other_fields"], serde_json::json!({"id": "7", "note": "n"}));
    assert_eq!(letter["original_id"], "1795314091881-0");
    let (code, _, err) = dead_letters(&ground, &["show", "1-1"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("there is no dead letter 1-1"), "{err}");
}

#[tokio::test]
async fn a_replayed_heartbeat_arrives_and_counts_once() {
    let ground = Ground::new().await;
    let window = window("payments-a", 5);
    let [id, _] = set_aside(&ground, &heartbeat(&window, 2).to_json(), "a mistake").await;
    let monitor = Process::monitor(&ground, &[]).await;
    let _relay = Process::relay(&ground, &monitor.url(""), &[]).await;

    let (code, out, err) = dead_letters(&ground, &["replay", &id]).await;
    assert_eq!((code, out.trim()), (0, "replayed 1 dead letter"), "{err}");
    let (code, out, err) = dead_letters(&ground, &["replay", &id]).await;
    assert_eq!((code, out.trim()), (0, "replayed 0 dead letters; 1 was gone already"));
    assert!(err.contains(&format!("{id} is gone")), "{err}");
    // What is sent afterwards arrives after it.
    ground.send(heartbeat(&window, 3).to_json()).await;
    let url = monitor.url(&format!("/api/monitor/windows/{}", window.uuid));
    let seen = eventually("both arrive", async || {
        let (_, seen) = answer(get(&url).await.ok()?).await;
        (seen["received_reports"] == 2).then_some(seen)
    })
    .await;
    assert_eq!(seen["slots"][2]["status"], "ok");
    assert_eq!(seen["slots"][2]["deliveries"], 1);
    assert!(letters(&ground).await.is_empty());
}

#[tokio::test]
async fn a_replay_of_all_ends_although_they_are_refused_again() {
    let ground = Ground::new().await;
    let mut commands = pipe();
    for _ in 0..450 {
        commands.cmd("XADD").arg(ground.stream.dead()).arg("*");
        commands.arg(&["stream", ground.stream.reports(), "reason", "x", "payload", "{}"]);
    }
    let first: Vec<String> = commands.query_async(&mut ground.redis().await).await.unwrap();
    let monitor = Process::monitor(&ground, &[]).await;
    let quiet = ["--log-level", "off"];
    let _relay = Process::relay(&ground, &monitor.url(""), &quiet).await;
    let (code, out, err) = dead_letters(&ground, &["replay", "--all"]).await;
    assert_eq!((code, out.trim(), err.as_str()), (0, "replayed 450 dead letters", ""));
    let again = eventually("all are refused again", async || {
        let letters = letters(&ground).await;
        (letters.len() == 450).then_some(letters)
    })
    .await;
    let id = |text: &String| text.parse::<StreamId>().unwrap();
    assert!(id(&again[0]) > id(first.last().unwrap()), "each of them is a new letter");
}

#[tokio::test]
async fn what_cannot_be_replayed_stays_and_stops_nothing_else() {
    let ground = Ground::new().await;
    let (reports, windows) = (ground.stream.reports(), ground.stream.windows());
    let foreign = write(&ground, "elsewhere", &[("payload", b"f")]).await;
    let without = write(&ground, reports, &[("body", b"b")]).await;
    write(&ground, reports, &[("payload", b"\xffr"), ("stream", b"elsewhere")]).await;
    write(&ground, windows, &[("payload", b"w")]).await;
    let (code, out, err) = dead_letters(&ground, &["replay", "--all"]).await;
    assert_eq!((code, out.trim()), (1, "replayed 2 dead letters"));
    assert!(err.contains(&format!("{foreign} cannot be replayed: it is from the stream")), "{err}");
    assert!(err.contains(&format!("{without} cannot be replayed: its message has no")), "{err}");
    assert!(err.contains("2 dead letters could not be replayed"), "{err}");
    assert_eq!(letters(&ground).await, [foreign, without]);
    assert_eq!(written(&ground, reports).await, [b"\xffr"]);
    assert_eq!(written(&ground, windows).await, [b"w"]);
    assert!(!ground.redis().await.exists::<_, bool>("elsewhere").await.unwrap());
}

#[tokio::test]
async fn dropping_is_confirmed() {
    let ground = Ground::new().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(write(&ground, ground.stream.reports(), &[("payload", b"x")]).await);
    }
    for arguments in [["drop", "--all"], ["drop", &ids[0]]] {
        let (code, out, err) = dead_letters(&ground, &arguments).await;
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(err.contains("add --yes if you mean it"), "{err}");
    }
    assert_eq!(letters(&ground).await, ids);
    let arguments = ["drop", "--yes", &ids[1], &ids[1], "1-1"];
    let (code, out, _) = dead_letters(&ground, &arguments).await;
    assert_eq!((code, out.trim()), (0, "dropped 1 dead letter; 1 was gone already"));
    assert_eq!(letters(&ground).await, [ids[0].clone(), ids[2].clone()]);
    let (code, out, _) = dead_letters(&ground, &["drop", "--yes", "--all"]).await;
    assert_eq!((code, out.trim()), (0, "dropped 2 dead letters"));
    assert!(letters(&ground).await.is_empty());
    assert!(written(&ground, ground.stream.reports()).await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let ground = Ground::new().await;
    let cases: [(&[&str], &str); 8] = [
        (&[], "Usage: heartbeat dead-letters"),
        (&["show", "x"], "must be an id such as 1732183210000-0"),
        (&["show"], "<ID>"),
        (&["replay"], "<ID|--all>"),
        (&["replay", "1-x"], "must be an id such as"),
        (&["drop", "--all", "1-1"], "cannot be used with"),
        (&["list", "--limit", "0"], "0 is not in 1..=1000"),
        (&["list", "--after", "-"], "must be an id"),
    ];
    for (arguments, expected) in cases {
        let (code, out, err) = dead_letters(&ground, arguments).await;
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
    }
}
