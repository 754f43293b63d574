//! Who talks to whom: the processes of a run, and a pair with a proxy between each two that talk.

use std::net::SocketAddr;
use std::path::Path;

use heartbeat::local::{Database, Redis};

use super::cluster::{ACCOUNT, GRACE, MAX_HOLD, REPLAY_GRACE, Role};
use super::plan::{MONITORS, PAYMENTS, RELAYS};
use super::proxy::{Pair, Proxy};
use crate::support::free_address;

/// The pairs and their proxies, while they are built.
pub struct Network {
    /// Every pair until now.
    pub pairs: Vec<Pair>,
    redis: reqwest::Url,
    database: reqwest::Url,
    monitors: Vec<SocketAddr>,
}

impl Network {
    /// No pairs yet, before these servers.
    pub fn new(redis: &Redis, database: &Database) -> Self {
        let mut database = reqwest::Url::parse(&database.tcp_url("name").unwrap()).unwrap();
        database.set_username(ACCOUNT).unwrap();
        Self {
            pairs: Vec::new(),
            redis: reqwest::Url::parse(&redis.tcp_url().unwrap()).unwrap(),
            database,
            monitors: MONITORS.map(|_| free_address()).collect(),
        }
    }

    /// The processes, in the order of their numbers, each with its pairs. None is started.
    pub async fn roles(&mut self, directory: &Path, clock_offset_millis: i64) -> Vec<Role> {
        let mut roles = Vec::new();
        for (number, letter) in PAYMENTS.zip(["a", "b", "c"]) {
            let name = format!("payments-{letter}");
            let offset = if number == PAYMENTS.start { clock_offset_millis } else { 0 };
            let environment = [
                ("SERVICE_NAME", name.clone()),
                ("REDIS_URL", self.redis(&name).await),
                ("DATABASE_URL", self.database(&name, "payments").await),
                ("HEARTBEAT_CLOCK_OFFSET_MS", offset.to_string()),
            ];
            let mut payments = Role::new(&name, free_address(), directory, &[], environment);
            payments.clock_offset_millis = offset;
            roles.push(payments);
        }
        for (_, number) in RELAYS.zip(1..) {
            let name = format!("relay-{number}");
            let environment = [
                ("CONSUMER_NAME", name.clone()),
                ("REDIS_URL", self.redis(&name).await),
                ("MONITOR_URL", self.monitor_url(&name).await),
            ];
            let arguments = ["--lease", "3s", "--http-timeout", "1s"];
            roles.push(Role::new(&name, free_address(), directory, &arguments, environment));
        }
        for (address, number) in self.monitors.clone().into_iter().zip(1..) {
            let name = format!("monitor-{number}");
            let environment = [("DATABASE_URL", self.database(&name, "monitor").await)];
            let [grace, hold, replay] =
                [GRACE, MAX_HOLD, REPLAY_GRACE].map(|time| format!("{}s", time.as_secs()));
            let mut arguments = vec!["--sweep-interval", "500ms", "--grace", &grace];
            arguments.extend(["--max-hold", &hold, "--replay-grace", &replay]);
            roles.push(Role::new(&name, address, directory, &arguments, environment));
        }
        roles
    }

    async fn redis(&mut self, from: &str) -> String {
        let to = address_of(&self.redis);
        let proxy = self.connect(from, &[("redis", to)]).await;
        through(&self.redis, proxy)
    }

    async fn database(&mut self, from: &str, name: &str) -> String {
        let to = address_of(&self.database);
        let mut url = self.database.clone();
        url.set_path(name);
        let proxy = self.connect(from, &[("database", to)]).await;
        through(&url, proxy)
    }

    /// One address before both monitors, as a load balancer gives one.
    async fn monitor_url(&mut self, from: &str) -> String {
        let [first, second] = self.monitors[..] else { panic!("two monitors") };
        let proxy = self.connect(from, &[("monitor-1", first), ("monitor-2", second)]).await;
        format!("http://{proxy}")
    }

    async fn connect(&mut self, from: &str, to: &[(&str, SocketAddr)]) -> SocketAddr {
        let pairs: Vec<Pair> =
            to.iter().map(|(name, server)| Pair::new(format!("{from} {name}"), *server)).collect();
        self.pairs.extend(pairs.iter().cloned());
        Proxy::start(pairs).await.address
    }
}

fn address_of(url: &reqwest::Url) -> SocketAddr {
    let (host, port) = (url.host_str().unwrap(), url.port().unwrap());
    format!("{host}:{port}").parse().unwrap()
}

fn through(url: &reqwest::Url, proxy: SocketAddr) -> String {
    let mut url = url.clone();
    url.set_port(Some(proxy.port())).unwrap();
    url.to_string()
}
