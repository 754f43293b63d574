//! The consumer of the first system. It gives up on a heartbeat after a while, and says nothing.

use std::time::Duration;

use heartbeat::http;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamReadReply};
use redis::{AsyncConnectionConfig, RedisResult, cmd};

use super::{number, setting};

/// How often it posts a heartbeat.
const MAX_TRIES: u32 = 12;

/// Reads one heartbeat at a time, first what it held when it stopped.
pub async fn run() {
    let client = redis::Client::open(setting("REDIS_URL")).unwrap();
    let patient = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(10)));
    let mut redis = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
    let (stream, group) = (setting("STREAM_NAME"), setting("CONSUMER_GROUP"));
    let create = ["CREATE", &stream, &group, "0", "MKSTREAM"];
    let created: RedisResult<()> = cmd("XGROUP").arg(&create).query_async(&mut redis).await;
    if let Err(error) = created {
        assert_eq!(error.code(), Some("BUSYGROUP"), "{error}");
    }
    println!("\nready");
    for from in ["0", ">"] {
        loop {
            match read(&mut redis, from).await.unwrap() {
                Some(entry) => {
                    deliver(&entry).await;
                    let acknowledge = [&stream, &group, &entry.id];
                    cmd("XACK").arg(&acknowledge).query_async::<()>(&mut redis).await.unwrap();
                }
                None if from == "0" => break,
                None => (),
            }
        }
    }
}

async fn read(redis: &mut MultiplexedConnection, from: &str) -> RedisResult<Option<StreamId>> {
    let mut read = cmd("XREADGROUP");
    read.arg(&["GROUP", &setting("CONSUMER_GROUP"), &setting("CONSUMER_NAME"), "COUNT", "1"]);
    read.arg(&["BLOCK", "500", "STREAMS", &setting("STREAM_NAME"), from]);
    let reply: Option<StreamReadReply> = read.query_async(redis).await?;
    Ok(reply.and_then(|reply| reply.keys.into_iter().flat_map(|key| key.ids).next()))
}

/// Posts a heartbeat until the monitor takes it, or the consumer has had enough.
async fn deliver(entry: &StreamId) {
    let client = http::client(Duration::from_secs(3)).unwrap();
    let url = format!("{}/api/monitor/heartbeats", setting("MONITOR_URL"));
    let payload: String = entry.get("payload").unwrap_or_default();
    let (mut pause, longest) = (number("PAUSE_MS"), number("LONGEST_PAUSE_MS"));
    for _ in 1..MAX_TRIES {
        if is_taken(&client, &url, &payload).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(pause.unsigned_abs())).await;
        pause = (pause * 2).min(longest);
    }
    if !is_taken(&client, &url, &payload).await {
        println!("\ngave up {}", entry.id);
    }
}

async fn is_taken(client: &reqwest::Client, url: &str, payload: &str) -> bool {
    let post = client.post(url).header("content-type", "application/json").body(payload.to_owned());
    post.send().await.is_ok_and(|answer| answer.status().is_success())
}
