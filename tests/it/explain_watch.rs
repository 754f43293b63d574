//! The command that looks again and again, piped and on a terminal.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::support::{Process, free_address, pool, run};
use crate::verdicts::{Ledgers, everything};

/// A picture ends with the conclusion of the totals.
const CONCLUSION: &str = "2 slots are unexplained: lost.";

async fn served(ledgers: &Ledgers, address: std::net::SocketAddr) -> Process {
    let environment = [
        ("DATABASE_URL", ledgers.ground.monitor_url.as_str()),
        ("AUDIT_DATABASE_URL", ledgers.ground.payments_url.as_str()),
    ];
    Process::role_at(address, "monitor", &["--sweep-interval", "1h"], &environment).await
}

fn watch(url: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
    let arguments = ["explain", "--watch", "--interval", "100ms", "--since", "300d"];
    let mut command = Process::command(&arguments);
    let mut child =
        command.env("MONITOR_URL", url).stdout(Stdio::piped()).spawn().expect("it starts");
    let out = BufReader::new(child.stdout.take().expect("its output"));
    (child, out.lines())
}

/// Reads on to a line that contains a text.
async fn read_to(lines: &mut Lines<BufReader<ChildStdout>>, expected: &str) -> String {
    let reading = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it goes on");
            if line.contains(expected) {
                return line;
            }
        }
    };
    timeout(Duration::from_secs(30), reading).await.unwrap_or_else(|_| panic!("no {expected:?}"))
}

#[tokio::test]
async fn pictures_follow_each_other_whether_or_not_the_monitor_is_there() {
    let (ledgers, _) = everything().await;
    let address = free_address();
    let monitor = served(&ledgers, address).await;
    let (mut child, mut lines) = watch(&monitor.url(""));
    for _ in 0..2 {
        read_to(&mut lines, ", every 100ms").await;
        read_to(&mut lines, CONCLUSION).await;
        read_to(&mut lines, "  .L++!!-v~>X~X.").await;
    }
    monitor.terminate().await;
    let away = read_to(&mut lines, "cannot be reached").await;
    assert!(away.contains("every 100ms: the monitor at http://127.0.0.1"), "{away}");
    let _monitor = served(&ledgers, address).await;
    let seen = read_to(&mut lines, CONCLUSION).await;
    assert!(!seen.contains('\x1b'), "{seen:?}");
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let ended = timeout(Duration::from_secs(5), child.wait()).await.expect("it ends").unwrap();
    assert_eq!(ended.code(), Some(1), "as what it saw last");
}

#[tokio::test]
async fn it_ends_when_nobody_reads_any_more_or_nothing_was_ever_seen() {
    let (ledgers, _) = everything().await;
    let monitor = served(&ledgers, free_address()).await;
    let (mut child, mut lines) = watch(&monitor.url(""));
    read_to(&mut lines, CONCLUSION).await;
    drop(lines);
    let ended = timeout(Duration::from_secs(10), child.wait()).await.expect("it ends").unwrap();
    assert_eq!(ended.code(), Some(1));

    // What nobody can follow is told by the exit code here as well.
    sqlx::raw_sql("DELETE FROM report_audit WHERE slot IN (10, 12)")
        .execute(&pool(&ledgers.ground.payments_url).await)
        .await
        .unwrap();
    let (mut child, mut lines) = watch(&monitor.url(""));
    read_to(&mut lines, "2 slots cannot be followed: ").await;
    drop(lines);
    let ended = timeout(Duration::from_secs(10), child.wait()).await.expect("it ends").unwrap();
    assert_eq!(ended.code(), Some(3));

    let (code, _, err) = run(&["explain", "--watch", "--interval", "10ms"], &[]).await;
    assert_eq!(code, 2);
    assert!(err.contains("must be at least 100 ms"), "{err}");
    let (mut child, mut lines) = watch(&format!("http://{}", free_address()));
    read_to(&mut lines, "cannot be reached").await;
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let ended = timeout(Duration::from_secs(5), child.wait()).await.expect("it ends").unwrap();
    assert_eq!(ended.code(), Some(2), "nobody can tell");
}

/// `script` gives it a terminal of its own, and hands on what is typed.
#[tokio::test]
async fn a_terminal_is_as_it_was_after_ctrl_c() {
    let (ledgers, _) = everything().await;
    let monitor = served(&ledgers, free_address()).await;
    let program = env!("CARGO_BIN_EXE_heartbeat");
    let line = format!(
        "stty rows 40 cols 60; exec {program} explain --watch --interval 100ms --since 300d"
    );
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("MONITOR_URL", monitor.url(""));
    command.env("TERM", "xterm").env("SHELL", "/bin/sh").env_remove("NO_COLOR");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("script is installed");
    let (mut typed, mut shown) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = Vec::new();
    let reading = async {
        while String::from_utf8_lossy(&seen).matches("\x1b[J\x1b[?2026l").count() < 3 {
            assert!(shown.read_buf(&mut seen).await.unwrap() > 0, "it goes on");
        }
        typed.write_all(b"\x03").await.unwrap();
        shown.read_to_end(&mut seen).await.unwrap();
        child.wait().await.unwrap()
    };
    let ended = timeout(Duration::from_secs(30), reading).await.expect("it ends");
    assert_eq!(ended.code(), Some(1));
    let seen = String::from_utf8_lossy(&seen).into_owned();
    let (before, rest) = seen.split_once("\x1b[?1049h\x1b[?25l").expect("a screen of its own");
    let (pictures, after) = rest.split_once("\x1b[?25h\x1b[?1049l").expect("and back");
    assert!(!before.contains("unexplained"));
    assert!(after.contains(CONCLUSION) && !after.contains("\x1b[H"), "{after:?}");
    assert!(!pictures.contains("\x1b[2J"), "nothing is cleared, so that nothing flickers");
    assert!(pictures.contains("\x1b[1;41mX\x1b[0m"), "in colours");
    let pictures = pictures.split("\x1b[H").skip(1).filter_map(|text| text.split("\x1b[J").next());
    let longest = pictures.flat_map(|picture| picture.split("\r\n")).map(columns).max();
    assert!(longest <= Some(60), "{longest:?}");
}

/// Columns that a line takes.
fn columns(line: &str) -> usize {
    let mut is_command = false;
    line.chars()
        .filter(|c| {
            let shown = !is_command && !c.is_control();
            is_command = *c == '\x1b' || (is_command && !c.is_ascii_alphabetic());
            shown
        })
        .count()
}
