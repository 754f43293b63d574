//! Ten thousand requests through a real balancer over three monitors, one of which is killed.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::client::Client;
use super::ground::Ground;
use super::load;
use super::process::Process;
use super::table::{Table, Target};

const REQUESTS: u32 = 10_000;
const CLIENTS: u32 = 50;
/// How often a client tries again what was not answered.
const ATTEMPTS: u32 = 20;

/// Measures what is answered, committed and lost.
pub async fn measure(ground: &Ground, table: &mut Table) {
    let database = ground.database().await;
    let mut monitors = Vec::new();
    for _ in 0..3 {
        monitors.push(Process::monitor(&database).await);
    }
    let (balancer, address) = balance(&monitors).await;
    let answered = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(post(address.clone(), Arc::clone(&answered)));
    }
    while answered.load(Ordering::Relaxed) < u64::from(REQUESTS) / 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    monitors.remove(1).kill().await;
    clients.join_all().await;
    let answered = answered.load(Ordering::Relaxed);
    let committed = database.count("SELECT COUNT(*) FROM events").await;
    drop((balancer, monitors));
    database.drop().await;
    let all = Target::AtLeast(f64::from(REQUESTS));
    table.add("balanced_10000_answered", answered as f64, "posts", all);
    table.add("balanced_10000_committed", committed as f64, "rows", all);
    let lost = answered.saturating_sub(committed);
    table.add("balanced_10000_lost", lost as f64, "posts", Target::AtMost(0.0));
}

/// Starts the balancer over some monitors. Answers where it listens.
async fn balance(monitors: &[Process]) -> (Child, String) {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let servers: Vec<String> = monitors
        .iter()
        .enumerate()
        .map(|(number, monitor)| format!("  server monitor-{number} {} check\n", monitor.address))
        .collect();
    let configuration = format!(
        "global\n  maxconn 2000\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 30s\n  \
         timeout server 15s\n  retries 3\n  option redispatch\nfrontend monitors\n  \
         bind {address}\n  default_backend monitors\nbackend monitors\n  balance leastconn\n  \
         option httpchk GET /ready\n  default-server inter 500ms fall 2 rise 1\n{}",
        servers.concat()
    );
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-haproxy.cfg");
    std::fs::write(&path, configuration).unwrap();
    let search = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let balancer = Command::new("haproxy")
        .env("PATH", search)
        .args(["-db", "-f"])
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("haproxy is installed (.ci/install bench)");
    let address = address.to_string();
    while Client::connect(&address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (balancer, address)
}

/// Posts its share, each until it is answered: what a sender does.
async fn post(address: String, answered: Arc<AtomicU64>) {
    let window = load::windows(1, REQUESTS / CLIENTS).remove(0);
    let mut client = None;
    for slot in 0..REQUESTS / CLIENTS {
        let body = load::heartbeat(&window, slot).to_json();
        for _ in 0..ATTEMPTS {
            if let Some(202) = attempt(&mut client, &address, &body).await {
                answered.fetch_add(1, Ordering::Relaxed);
                break;
            }
            client = None;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn attempt(client: &mut Option<Client>, address: &str, body: &str) -> Option<u16> {
    let client = match client {
        Some(client) => client,
        None => client.insert(Client::connect(address).await.ok()?),
    };
    client.post("/api/monitor/heartbeats", body).await.ok()
}
