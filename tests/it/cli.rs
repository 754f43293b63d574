//! The command line: what a newcomer reads, and what goes wrong in one plain sentence.

use crate::support::{Ground, Process, free_address, run, shared};

#[tokio::test]
async fn help_and_version_answer() {
    let (code, out, _) = run(&["--version"], &[]).await;
    assert_eq!((code, out.trim()), (0, concat!("heartbeat ", env!("CARGO_PKG_VERSION"))));
    let (code, out, _) = run(&["--help"], &[]).await;
    assert_eq!(code, 0);
    for role in ["standalone", "payments", "relay", "monitor", "migrate", "healthcheck"] {
        assert!(out.contains(&format!("\n  {role} ")), "{role} in:\n{out}");
        let (code, help, _) = run(&[role, "--help"], &[]).await;
        assert_eq!(code, 0, "{role}");
        assert!(help.contains("Usage: heartbeat"), "{help}");
    }
}

#[tokio::test]
async fn secrets_of_the_environment_are_not_shown_in_help() {
    let environment =
        [("DATABASE_URL", "mysql://u:topsecret@h/d"), ("REDIS_URL", "redis://:topsecret@h")];
    for role in ["payments", "relay", "monitor"] {
        let (_, out, _) = run(&[role, "--help"], &environment).await;
        assert!(!out.contains("topsecret"), "{out}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_sentence_with_what_to_do() {
    let ground = Ground::new().await;
    let nowhere = free_address();
    let wrong_password = ground.monitor_url.replace("heartbeat:", "heartbeat:x");
    let redis = shared().redis_url.as_str();
    let wrong_redis = shared().redis_url.replace("pass=", "pass=x");
    let unreachable_redis = format!("redis://{nowhere}");
    let unreachable_database = format!("mysql://u:p@{nowhere}/d");
    let no_such_database = ground.monitor_url.replace("/monitor_", "/nothing_");
    let no_role = unreachable_redis.replace("redis", "http");
    let in_a_hurry = ("CONNECT_TIMEOUT", "300ms");
    let database = ("DATABASE_URL", ground.monitor_url.as_str());
    let any_port = ("LISTEN", "127.0.0.1:0");
    let table: Vec<(Vec<&str>, Vec<(&str, &str)>, &str)> = vec![
        (vec!["monitor"], vec![any_port], "--database-url <URL>"),
        (vec!["payments"], vec![any_port, database], "--name <NAME>"),
        (vec!["monitor", "--sweep-interval", "5"], vec![database], "write a duration such as"),
        (vec!["monitor", "--database-url", "db"], vec![], "mysql://USER:PASSWORD@HOST:PORT/NAME"),
        (vec!["monitor", "--listen", "5001"], vec![database], "invalid socket address"),
        (vec!["payments", "--name", "a b"], vec![database], "must be 1 to 100 characters"),
        (vec!["relay", "--monitor-url", "monitor"], vec![], "write it as http://HOST:5001"),
        (vec!["relay", "--lease", "5s"], vec![any_port], "shorter than three times --http-timeout"),
        (vec!["relay", "--batch-size", "0"], vec![], "0 is not in 1..=1000"),
        (vec!["relay", "--log-level", "info,=,"], vec![any_port], "is not a level such as info"),
        (
            vec!["relay", "--redis-url", &unreachable_redis],
            vec![any_port, in_a_hurry],
            "cannot reach Redis at redis://",
        ),
        (
            vec!["relay", "--redis-url", &wrong_redis],
            vec![any_port, in_a_hurry],
            "check user and password in --redis-url",
        ),
        (
            vec!["monitor", "--database-url", &unreachable_database],
            vec![any_port, in_a_hurry],
            "cannot reach the monitor database at mysql://u:***@",
        ),
        (
            vec!["monitor", "--database-url", &wrong_password],
            vec![any_port, in_a_hurry],
            "check user, password and database name",
        ),
        (
            vec!["monitor", "--database-url", &no_such_database],
            vec![any_port, in_a_hurry],
            "check user, password and database name",
        ),
        (
            vec!["monitor", "--create-schema-on-startup", "false"],
            vec![any_port, database],
            "run `heartbeat migrate monitor`",
        ),
        (
            vec![
                "payments",
                "--name",
                "a",
                "--redis-url",
                redis,
                "--create-schema-on-startup",
                "no",
            ],
            vec![any_port, ("DATABASE_URL", &ground.payments_url)],
            "run `heartbeat migrate payments`",
        ),
        (
            vec!["migrate", "monitor", "--database-url", &unreachable_database],
            vec![in_a_hurry],
            "cannot reach the monitor database",
        ),
        (vec!["healthcheck", &no_role], vec![], "cannot be reached: Connection refused"),
        (vec!["dance"], vec![], "unrecognized subcommand 'dance'"),
    ];
    for (arguments, environment, expected) in table {
        let (code, _, err) = run(&arguments, &environment).await;
        assert_ne!(code, 0, "{arguments:?}");
        assert!(err.contains(expected), "{arguments:?} {environment:?}: {err}");
        for unwanted in ["backtrace", "panicked", "topsecret"] {
            assert!(!err.contains(unwanted), "{arguments:?}: {err}");
        }
    }
}

#[tokio::test]
async fn a_schema_is_made_by_migrate_and_then_a_role_starts_without_rights_to_change_it() {
    let ground = Ground::new().await;
    let database = [("DATABASE_URL", ground.monitor_url.as_str())];
    for _ in 0..2 {
        let (code, out, err) = run(&["migrate", "monitor"], &database).await;
        assert_eq!(
            (code, out.trim()),
            (0, "the schema of the monitor database is up to date"),
            "{err}"
        );
    }
    let monitor = Process::monitor(&ground, &["--create-schema-on-startup", "false"]).await;
    let url = monitor.url("/ready");
    let (code, out, _) = run(&["healthcheck", &url], &[]).await;
    assert_eq!(code, 0);
    assert!(out.contains("200 OK"), "{out}");
    let (code, _, err) = run(&["healthcheck", &monitor.url("/nothing")], &[]).await;
    assert_eq!(code, 1);
    assert!(err.contains("answered 404"), "{err}");
    let listen = monitor.address.to_string();
    let (code, _, err) = run(&["monitor", "--listen", &listen], &database).await;
    assert_eq!(code, 1);
    assert!(
        err.contains(&format!("{listen} is in use, so the monitor cannot listen there")),
        "{err}"
    );
}

/// MySQL's default way to check passwords needs TLS over TCP, which MariaDB never shows.
#[tokio::test]
async fn a_role_connects_over_tcp_with_a_password() {
    let ground = Ground::new().await;
    let url = &ground.monitor_tcp_url;
    assert!(url.contains("@127.0.0.1:"), "{url}");
    let monitor = Process::role("monitor", &[], &[("DATABASE_URL", url)]).await;
    let (code, _, err) = run(&["healthcheck", &monitor.url("/ready")], &[]).await;
    assert_eq!(code, 0, "{err}");
}
