//! The operator's command that ends a consumer group.

use redis::AsyncCommands;
use redis::cmd;
use serde_json::json;

use crate::support::{Ground, Process, answer, eventually, get, run, shared};

async fn forget(ground: &Ground, arguments: &[&str]) -> (i32, String, String) {
    let stream = ground.stream.to_string();
    let environment =
        [("REDIS_URL", shared().redis_url.as_str()), ("STREAM_NAME", stream.as_str())];
    run(&[&["forget-group"], arguments].concat(), &environment).await
}

#[tokio::test]
async fn a_deserted_group_is_forgotten_and_one_at_work_is_not() {
    let ground = Ground::new().await;
    let mut redis = ground.redis().await;
    let stream = ground.stream.reports();
    let create = ["CREATE", stream, "auditors", "0", "MKSTREAM"];
    cmd("XGROUP").arg(&create).query_async::<()>(&mut redis).await.unwrap();
    ground.group("me").create().await.unwrap();
    ground.send("{}").await;
    ground.group("me").read_new(1).await.unwrap();

    let refusals: [(&[&str], &str); 4] = [
        (&["nobody", "--yes"], "has no group nobody"),
        (
            &["monitor-queue-group", "--yes"],
            "stop its relays, and try again when the last has been gone for 60 s",
        ),
        (&["auditors"], "add --yes"),
        (&["auditors", "--monitor-url", "http://127.0.0.1:9"], "--admin-token"),
    ];
    for (arguments, expected) in refusals {
        let (code, _, err) = forget(&ground, arguments).await;
        assert_ne!(code, 0, "{arguments:?}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
    }
    let (code, out, err) = forget(&ground, &["auditors", "--yes"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("keeps nothing for auditors"), "{out}");
    let groups: redis::streams::StreamInfoGroupsReply = redis.xinfo_groups(stream).await.unwrap();
    let names: Vec<&str> = groups.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["monitor-queue-group"]);
}

#[tokio::test]
async fn the_monitor_forgets_it_too() {
    let ground = Ground::new().await;
    let token = "a-token-of-many-characters";
    let monitor = Process::monitor(&ground, &["--admin-token", token]).await;
    let relay = Process::relay(&ground, &monitor.url(""), &[]).await;
    let url = monitor.url("/api/monitor/pipeline");
    let known = async || {
        let (_, shown) = answer(get(&url).await.unwrap()).await;
        shown["pipelines"].as_array().unwrap().len()
    };
    eventually("it is known", async || (known().await == 1).then_some(())).await;
    relay.terminate().await;
    let group = "monitor-queue-group";
    let base = monitor.url("");
    let (code, out, err) =
        forget(&ground, &[group, "--yes", "--monitor-url", &base, "--admin-token", token]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("the monitor waits for"), "{out}");
    assert_eq!(known().await, 0);
    assert_eq!(json!(out.contains(token)), json!(false));
}
