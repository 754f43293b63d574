//! Databases and a stream that one test has to itself.

use std::sync::Arc;
use std::time::Duration;

use heartbeat::config::{DatabaseArgs, DatabaseUrl, RedisUrl};
use heartbeat::db;
use heartbeat::http::Readiness;
use heartbeat::monitor::Monitor;
use heartbeat::monitor::audits::Audits;
use heartbeat::monitor::retention::{Retain, RetentionArgs};
use heartbeat::payments::Payments;
use heartbeat::stream::{
    DeadLetters, Group, Link, Observation, Producer, StreamError, StreamId, StreamName,
};
use heartbeat::wire::{Tick, Timestamp};
use redis::AsyncCommands;
use sqlx::mysql::MySqlPoolOptions;
use sqlx::{AssertSqlSafe, MySqlPool};
use uuid::Uuid;

use super::shared;

/// A test's own databases and stream.
pub struct Ground {
    /// Address of the shared Redis.
    pub redis: RedisUrl,
    /// This test's stream.
    pub stream: StreamName,
    /// Address of this test's payments database, which starts empty.
    pub payments_url: String,
    /// Address of this test's monitor database, which starts empty.
    pub monitor_url: String,
    /// The same over TCP.
    pub monitor_tcp_url: String,
}

impl Ground {
    /// New, empty databases and a new name for the stream.
    pub async fn new() -> Self {
        let shared = shared();
        let id = Uuid::new_v4().simple().to_string();
        let names = [format!("payments_{id}"), format!("monitor_{id}")];
        let scratch = pool(&shared.database_url("scratch")).await;
        for name in &names {
            let statement = AssertSqlSafe(format!("CREATE DATABASE {name}"));
            sqlx::raw_sql(statement).execute(&scratch).await.unwrap();
        }
        scratch.close().await;
        Self {
            redis: shared.redis_url.parse().unwrap(),
            stream: format!("reports-{id}").parse().unwrap(),
            payments_url: shared.database_url(&names[0]),
            monitor_url: shared.database_url(&names[1]),
            monitor_tcp_url: shared.database_tcp_url(&names[1]),
        }
    }

    /// A monitor's state on this ground, with a grace of 2 s.
    pub async fn monitor(&self) -> Monitor {
        monitor_at(&self.monitor_url, &self.payments_url).await
    }

    /// A payments service's state on this ground.
    pub async fn payments(&self, name: &str) -> Payments {
        let url: DatabaseUrl = self.payments_url.parse().unwrap();
        let pool =
            db::connect(&url, ("payments database", DatabaseArgs::OPTION), Duration::from_secs(5))
                .await
                .unwrap();
        db::migrate(&pool, &db::PAYMENTS_SCHEMA, "payments database").await.unwrap();
        Payments {
            service: name.parse().unwrap(),
            pool,
            producer: self.producer(),
            default_tick: Tick::DEFAULT,
            owner: Uuid::new_v4(),
            readiness: Readiness::default(),
            metrics: Arc::default(),
            tracer: None,
        }
    }

    /// A way to write to this ground's stream.
    pub fn producer(&self) -> Producer {
        Producer::new(Arc::new(Link::new(&self.redis).unwrap()), self.stream.clone())
    }

    /// Writes one message to the heartbeats' stream.
    pub async fn send(&self, payload: impl Into<String>) -> StreamId {
        self.producer().publish_heartbeats(&[payload.into()]).await.unwrap().ids[0]
    }

    /// Writes one message to the announcements' stream.
    pub async fn announce(&self, payload: impl Into<String>) -> StreamId {
        self.producer().publish_announcements(&[payload.into()]).await.unwrap().ids[0]
    }

    /// A consumer of the relays' group.
    pub fn group(&self, consumer: &str) -> Group {
        let link = Arc::new(Link::new(&self.redis).unwrap());
        let names = ("monitor-queue-group".to_owned(), consumer.to_owned());
        let block = Duration::from_millis(100);
        Group::new(&self.redis, link, self.stream.clone(), names, block).unwrap()
    }

    /// What a sender sees of Redis that has seen to nothing.
    pub async fn observe(&self) -> Result<Observation, StreamError> {
        self.producer().observe(("payments-z", "test"), ("", Timestamp::from_micros(0))).await
    }

    /// The dead letters of this ground's stream.
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters::new(Arc::new(Link::new(&self.redis).unwrap()), self.stream.clone())
    }

    /// Destroys everything of this ground in Redis, as FLUSHALL does to all.
    pub async fn empty_redis(&self) {
        let mut redis = self.redis().await;
        let mut keys: Vec<String> = redis.keys(format!("{{{}}}:*", self.stream)).await.unwrap();
        keys.push(self.stream.to_string());
        redis.del::<_, ()>(keys).await.unwrap();
    }

    /// A plain connection to Redis.
    pub async fn redis(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(shared().redis_url.as_str()).unwrap();
        // It is shared by all tests: what one fills, the others wait for.
        let patient =
            redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
        client.get_multiplexed_async_connection_with_config(&patient).await.unwrap()
    }
}

/// A monitor's state on a database, with a grace of 2 s, that reads an audit.
pub async fn monitor_at(monitor_url: &str, audit_url: &str) -> Monitor {
    let url: DatabaseUrl = monitor_url.parse().unwrap();
    let pool =
        db::connect(&url, ("monitor database", DatabaseArgs::OPTION), Duration::from_secs(5))
            .await
            .unwrap();
    db::migrate(&pool, &db::MONITOR_SCHEMA, "monitor database").await.unwrap();
    let audit: DatabaseUrl = audit_url.parse().unwrap();
    Monitor {
        pool,
        audits: Audits::new(&[audit]),
        default_tick: Tick::DEFAULT,
        grace: Duration::from_secs(2),
        replay_grace: Duration::from_secs(30),
        max_hold: Duration::from_mins(10),
        retention: RetentionArgs {
            retain_events: Retain::For(Duration::from_hours(30 * 24)),
            retain_windows: Retain::For(Duration::from_hours(400 * 24)),
        },
        admin_token: None,
        window_cache: Arc::default(),
        arrivals: Arc::default(),
        lookups: Arc::default(),
        places: Arc::default(),
        pruned_to: Arc::default(),
        wake_sweep: Arc::default(),
        readiness: Readiness::default(),
        metrics: Arc::default(),
        tracer: None,
    }
}

/// A plain pool, as any client of the database has.
pub async fn pool(url: &str) -> MySqlPool {
    MySqlPoolOptions::new().max_connections(2).connect(url).await.unwrap()
}
