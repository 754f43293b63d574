//! Reading the streams: nothing is given to a reader that is gone, nothing waits behind a read, and
//! what was given and not delivered is found again.
//!
//! The relays here have leases far longer than a test waits, unless the lease is what is tested:
//! then an entry that is left lying is not found by chance.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::linux::net::TcpStreamExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heartbeat::stream::{Creation, Group, Link, Producer, Source};
use redis::aio::MultiplexedConnection;
use redis::streams::StreamPendingCountReply;
use redis::{AsyncCommands, cmd};

use crate::support::{
    Ground, Process, Proxy, eventually, free_address, heartbeat, pending, received, shared, window,
};

const GROUP: &str = "monitor-queue-group";
const LONG_LEASE: [&str; 4] = ["--lease", "10m", "--consumer-name", "me"];

/// A consumer named `me` whose reads wait for so long.
fn group(ground: &Ground, block: Duration) -> Group {
    let link = Arc::new(Link::new(&ground.redis).unwrap());
    let names = (GROUP.to_owned(), "me".to_owned());
    Group::new(&ground.redis, link, ground.stream.clone(), names, block).unwrap()
}

async fn publish(ground: &Ground, slots: std::ops::Range<u32>) {
    let window = window("payments-a", 100);
    for slot in slots {
        ground.send(heartbeat(&window, slot).to_json()).await;
    }
}

/// Creates the group, and reads up to `count` entries as a consumer that then does nothing.
async fn read_as(ground: &Ground, consumer: &str, count: u32) -> MultiplexedConnection {
    let mut redis = ground.redis().await;
    let stream = ground.stream.reports();
    let create = ["CREATE", stream, GROUP, "0", "MKSTREAM"];
    cmd("XGROUP").arg(&create).query_async::<()>(&mut redis).await.unwrap();
    let count = count.to_string();
    let read = ["GROUP", GROUP, consumer, "COUNT", &count, "STREAMS", stream, ">"];
    cmd("XREADGROUP").arg(&read).query_async::<redis::Value>(&mut redis).await.unwrap();
    redis
}

/// What is pending, with its consumer and how long that has been silent.
async fn all_pending(
    ground: &Ground,
    redis: &mut MultiplexedConnection,
) -> StreamPendingCountReply {
    redis.xpending_count(ground.stream.reports(), GROUP, "-", "+", 1_000).await.unwrap()
}

#[tokio::test]
async fn what_was_written_before_the_group_existed_is_read() {
    let ground = Ground::new().await;
    publish(&ground, 0..3).await;
    let group = group(&ground, Duration::from_millis(10));
    assert_eq!(group.create().await.unwrap().how, Creation::New);
    assert_eq!(group.read_new(10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn nothing_waits_behind_a_read_that_blocks() {
    let ground = alone_on(1).await;
    publish(&ground, 0..1).await;
    let group = Arc::new(group(&ground, Duration::from_millis(1_500)));
    group.create().await.unwrap();
    let entry = group.read_new(1).await.unwrap().remove(0);
    let reader = Arc::clone(&group);
    let reading = tokio::spawn(async move { reader.read_new(1).await.unwrap() });
    blocked(1, &ground).await;
    group.acknowledge(Source::Heartbeats, &[entry.id]).await.unwrap();
    publish(&ground, 1..2).await;
    assert_eq!(reading.await.unwrap().len(), 1, "the read was over before anything else was done");
}

/// A ground on another database of the shared Redis, in whose list of clients it is alone there.
async fn alone_on(database: u8) -> Ground {
    let url = format!("{}&db={database}", shared().redis_url);
    Ground { redis: url.parse().unwrap(), ..Ground::new().await }
}

/// Waits until Redis holds a read back on such a ground.
async fn blocked(database: u8, ground: &Ground) {
    let mut redis = ground.redis().await;
    eventually("Redis holds a read back", async || {
        let clients: String = cmd("CLIENT").arg("LIST").query_async(&mut redis).await.unwrap();
        let here = format!(" db={database} ");
        clients.lines().any(|line| line.contains(&here) && line.contains(" flags=b")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_read_waits_for_as_long_as_the_server_blocks() {
    let ground = Ground::new().await;
    let group = group(&ground, Duration::from_millis(2_500));
    group.create().await.unwrap();
    assert_eq!(group.read_new(1).await.unwrap(), []);
}

/// Redis gives an entry to a read that it holds, also when nobody waits for that read any more.
#[tokio::test]
async fn a_relay_that_waits_for_something_new_misses_nothing() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let serving = Process::monitor(&ground, &[]).await;
    let _relay = Process::relay(&ground, &serving.url(""), &LONG_LEASE).await;
    let window = window("payments-a", 10);
    for slot in 0..5 {
        // A while without anything to read, in which a reader may lose patience.
        tokio::time::sleep(Duration::from_millis(400)).await;
        let beat = heartbeat(&window, slot).to_json();
        ground.send(beat).await;
        eventually("it arrives", async || (received(&monitor).await == slot + 1).then_some(()))
            .await;
    }
}

#[tokio::test]
async fn a_relay_begins_with_what_it_held_before() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let serving = Process::monitor(&ground, &[]).await;
    publish(&ground, 0..20).await;
    read_as(&ground, "me", 10).await;
    let _relay = Process::relay(&ground, &serving.url(""), &LONG_LEASE).await;
    eventually("all arrive", async || (received(&monitor).await == 20).then_some(())).await;
}

/// An answer of Redis that never arrives has made entries pending under the relay's name.
#[tokio::test]
async fn what_a_failed_read_was_about_to_bring_is_delivered() {
    let ground = alone_on(2).await;
    let monitor = ground.monitor().await;
    let serving = Process::monitor(&ground, &[]).await;
    let url = shared().redis_tcp_url.replace("/0", "/2");
    let at = url.split(['@', '/']).find(|part| part.starts_with("127.0.0.1:")).unwrap();
    let proxy = Proxy::start(at.parse().unwrap()).await;
    let (url, stream) = (url.replace(at, &proxy.address.to_string()), ground.stream.to_string());
    let environment =
        [("REDIS_URL", url.as_str()), ("STREAM_NAME", &stream), ("MONITOR_URL", &serving.url(""))];
    let _relay = Process::role("relay", &LONG_LEASE, &environment).await;
    blocked(2, &ground).await;
    proxy.fall_silent();
    publish(&ground, 0..1).await;
    eventually("it arrives", async || (received(&monitor).await == 1).then_some(())).await;
}

/// One claim looks at ten times as many entries as it asks for, and no further.
#[tokio::test]
async fn the_whole_list_is_searched_for_entries_of_the_dead() {
    let ground = Ground::new().await;
    let monitor = ground.monitor().await;
    let serving = Process::monitor(&ground, &[]).await;
    publish(&ground, 0..31).await;
    let mut redis = read_as(&ground, "alive", 31).await;
    let ids: Vec<String> =
        all_pending(&ground, &mut redis).await.ids.into_iter().map(|entry| entry.id).collect();
    let claim = async |redis: &mut MultiplexedConnection, consumer, idle, ids: &[String]| {
        let mut command = cmd("XCLAIM");
        command.arg(&[ground.stream.reports(), GROUP, consumer, "0"]).arg(ids);
        let command = command.arg(&["IDLE", idle, "JUSTID"]);
        command.query_async::<redis::Value>(redis).await.unwrap();
    };
    claim(&mut redis, "dead", "3600000", &ids[30..]).await;
    let options = ["--lease", "2s", "--http-timeout", "500ms", "--batch-size", "1"];
    let _relay = Process::relay(&ground, &serving.url(""), &options).await;
    eventually("the last one is delivered", async || {
        claim(&mut redis, "alive", "0", &ids[..30]).await;
        (received(&monitor).await > 0).then_some(())
    })
    .await;
    eventually("what a live consumer holds is all that is left", async || {
        (pending(&ground).await == 30).then_some(())
    })
    .await;
    assert_eq!(received(&monitor).await, 1, "and is not touched");
}

#[tokio::test]
async fn a_relay_renews_its_lease_on_what_it_holds() {
    let ground = Ground::new().await;
    publish(&ground, 0..1).await;
    let options = ["--lease", "3s", "--http-timeout", "1s"];
    let _relay = Process::relay(&ground, &format!("http://{}", free_address()), &options).await;
    eventually("it holds it", async || (pending(&ground).await == 1).then_some(())).await;
    let mut redis = ground.redis().await;
    let (mut renewals, mut idle_ms) = (0, 0);
    eventually("the lease is renewed", async || {
        let entry = all_pending(&ground, &mut redis).await.ids.remove(0);
        assert_eq!(entry.times_delivered, 1, "a renewal is no delivery");
        assert!(entry.last_delivered_ms < 3_000, "the lease ran out");
        renewals += usize::from(entry.last_delivered_ms < idle_ms);
        idle_ms = entry.last_delivered_ms;
        (renewals == 3).then_some(())
    })
    .await;
}

/// Commands wait for no confirmation of the network. A delayed one takes 40 ms, so that with Nagle's
/// algorithm the quickest of ten second commands takes that long too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_does_not_wait_for_the_last_one() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}/0", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || delays(&listener, 10));
    let link = Arc::new(Link::new(&url.parse().unwrap()).unwrap());
    let producer = Producer::new(link, "reports".parse().unwrap());
    for _ in 0..10 {
        let second = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            producer.ping().await.unwrap();
        };
        let (first, ()) = tokio::join!(producer.ping(), second);
        first.unwrap();
    }
    let shortest = server.join().unwrap().into_iter().min().unwrap();
    assert!(shortest < Duration::from_millis(20), "the second command came after {shortest:?}");
}

/// A server that answers when it has two commands, and whose system delays what confirms the
/// first. Answers how long after the first the second came, for so many rounds.
fn delays(listener: &TcpListener, rounds: usize) -> Vec<Duration> {
    let (mut client, _) = listener.accept().unwrap();
    let mut delays = Vec::new();
    let (mut buffer, mut arrivals) = ([0; 4_096], Vec::new());
    while delays.len() < rounds {
        client.set_quickack(false).unwrap();
        let read = client.read(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..read]);
        arrivals.extend(text.matches("PING").map(|_| Instant::now()));
        let others = text.matches('*').count() - text.matches("PING").count();
        client.write_all("+OK\r\n".repeat(others).as_bytes()).unwrap();
        if let [first, second] = arrivals[..] {
            delays.push(second - first);
            arrivals.clear();
            client.write_all("+PONG\r\n".repeat(2).as_bytes()).unwrap();
        }
    }
    delays
}

/// Redis compares ids as numbers, of which 9 is smaller than 11.
#[tokio::test]
async fn ids_of_unequal_length_are_compared_as_numbers() {
    let ground = Ground::new().await;
    let mut redis = ground.redis().await;
    let stream = ground.stream.reports();
    for id in ["9-0", "10-0", "11-0"] {
        let add = cmd("XADD").arg(&[stream, id, "payload", "{}"]).to_owned();
        add.query_async::<String>(&mut redis).await.unwrap();
    }
    let create = ["CREATE", stream, "auditors", "0"];
    cmd("XGROUP").arg(&create).query_async::<()>(&mut redis).await.unwrap();
    let read = ["GROUP", "auditors", "one", "STREAMS", stream, ">"];
    cmd("XREADGROUP").arg(&read).query_async::<redis::Value>(&mut redis).await.unwrap();
    let group = group(&ground, Duration::from_millis(10));
    group.create().await.unwrap();
    let ids: Vec<_> = group.read_new(10).await.unwrap().iter().map(|entry| entry.id).collect();
    group.acknowledge(Source::Heartbeats, &ids).await.unwrap();
    assert_eq!(group.trim(Source::Heartbeats).await.unwrap(), 0, "another group holds all");
}

#[tokio::test]
async fn a_private_redis_keeps_what_it_has_taken() {
    let mut redis = Ground::new().await.redis().await;
    let settings =
        [("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory-policy", "noeviction")];
    for (name, wanted) in settings {
        let ask = cmd("CONFIG").arg(&["GET", name]).to_owned();
        let answer: [String; 2] = ask.query_async(&mut redis).await.unwrap();
        assert_eq!(answer, [name, wanted]);
    }
}
