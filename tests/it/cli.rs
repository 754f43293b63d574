//! The command line: what a newcomer reads, and what goes wrong in one plain sentence.

use crate::support::{Ground, Process, free_address, run, shared};

#[tokio::test]
async fn help_and_version_answer() {
    let (code, out, _) = run(&["--version"], &[]).await;
    assert_eq!((code, out.trim()), (0, concat!("heartbeat ", env!("CARGO_PKG_VERSION"))));
    let (code, out, _) = run(&["--help"], &[]).await;
    assert_eq!(code, 0);
    for role in [
        "standalone",
        "payments",
        "relay",
        "monitor",
        "explain",
        "dead-letters",
        "migrate",
        "healthcheck",
    ] {
        assert!(out.contains(&format!("\n  {role} ")), "{role} in:\n{out}");
        let (code, help, _) = run(&[role, "--help"], &[]).await;
        assert_eq!(code, 0, "{role}");
        assert!(help.contains("Usage: heartbeat"), "{help}");
    }
    let (_, help, _) = run(&["explain", "--help"], &[]).await;
    assert!(help.contains("\n  3  nothing is lost, and nobody can follow some slots"), "{help}");
}

#[tokio::test]
async fn secrets_of_the_environment_are_not_shown_in_help() {
    let environment = [
        ("DATABASE_URL", "mysql://u:topsecret@h/d"),
        ("ADOPT_FROM", "mysql://u:topsecret@h/d"),
        ("REDIS_URL", "redis://:topsecret@h"),
    ];
    for role in ["payments", "relay", "monitor", "migrate"] {
        let (_, out, _) = run(&[role, "--help"], &environment).await;
        assert!(!out.contains("topsecret"), "{out}");
    }
}

/// Arguments, environment, and what standard error must say.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

async fn each_fails_plainly(cases: &[Case<'_>]) {
    for (arguments, environment, expected) in cases {
        let (code, _, err) = run(arguments, environment).await;
        assert_ne!(code, 0, "{arguments:?}");
        assert!(err.contains(expected), "{arguments:?} {environment:?}: {err}");
        for unwanted in ["backtrace", "panicked", "topsecret"] {
            assert!(!err.contains(unwanted), "{arguments:?}: {err}");
        }
    }
}

#[tokio::test]
async fn secrets_that_cannot_be_used_are_not_repeated() {
    let url = "mysql://u:topsecret@h";
    each_fails_plainly(&[
        (&["monitor"], &[("DATABASE_URL", url)], "'--database-url <URL>' cannot be used: names no"),
        (&["migrate", "monitor", "--database-url", url], &[], "names no database"),
        (
            &["migrate", "monitor"],
            &[("DATABASE_URL", "mysql://u:p@h/d"), ("ADOPT_FROM", url)],
            "'--adopt-from <URL>' cannot be used: names no",
        ),
        (
            &["monitor"],
            &[("AUDIT_DATABASE_URL", "mysql://u:p@h/d, mysql://u:pass,topsecret@h/d")],
            "'--audit-database-url <URL>' cannot be used",
        ),
        (&["relay", "--redis-url", "http://:topsecret@h"], &[], "not the address of a Redis"),
        (&["monitor", "--admin-token", "topsecret"], &[], "at least 16 printable characters"),
    ])
    .await;
}

/// Addresses in which a part of the password stands where nobody looks for one.
#[tokio::test]
async fn no_address_is_repeated_whatever_is_wrong() {
    let redis = "redis://default:2024#topsecret@redis:6379";
    let mysql = "mysql://monitor:3306/topsecret@db/monitor";
    let monitor = "http://monitor:5001/topsecret@h";
    let untold = "cannot be told apart; percent-encode what is special";
    let database = ("DATABASE_URL", "mysql://u:topsecret@127.0.0.1:1/d");
    each_fails_plainly(&[
        (&["relay"], &[("REDIS_URL", redis)], untold),
        (&["relay", "--redis-url", redis], &[], untold),
        (&["relay"], &[("CELERY_BROKER_URL", redis), ANY_PORT], "address in CELERY_BROKER_URL"),
        (&["monitor"], &[("DATABASE_URL", mysql)], untold),
        (&["monitor"], &[database, ("AUDIT_DATABASE_URL", mysql)], untold),
        (&["relay"], &[("MONITOR_URL", monitor)], untold),
        (&["healthcheck", monitor], &[], untold),
        (&["relay", "redis://:topsecret@h"], &[], "unexpected argument '***'"),
        (&["relay", "--redis=redis://:topsecret@h"], &[], "unexpected argument '--redis'"),
        (&["relay", "--batch-size=redis://:topsecret@h"], &[], "invalid value '***'"),
        (&["redis://:topsecret@h"], &[], "unrecognized subcommand '***'"),
        (&["relay"], &[("LISTEN", "redis://:topsecret@h")], "invalid value '***'"),
        (&["relay"], &[("REDIS_URL", "redis://h/topsecret")], "must be the number of a database"),
        (&["monitor"], &[("DATABASE_URL", "mysql://h/u:topsecret%40h/x")], untold),
        (&["migrate", "monitor", "u:topsecret@h/x"], &[], "unexpected argument '***'"),
    ])
    .await;
    for role in ["relay", "monitor", "payments", "explain", "healthcheck", "forget-group"] {
        let secrets = [
            "REDIS_URL",
            "DATABASE_URL",
            "MONITOR_URL",
            "AUDIT_DATABASE_URL",
            "HEALTHCHECK_URL",
            "ADMIN_TOKEN",
            "PAYMENTS_DATABASE_URL",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ];
        let environment = secrets.map(|name| (name, "http://u:topsecret@h/d"));
        let (code, out, err) = run(&[role, "--help"], &environment).await;
        assert_eq!(code, 0, "{role}: {err}");
        assert!(!out.contains("topsecret") && !err.contains("topsecret"), "{role}: {out}{err}");
    }
}

#[tokio::test]
async fn a_variable_that_is_empty_is_not_set_and_one_that_is_wrong_is_named() {
    let database = ("DATABASE_URL", "mysql://u:topsecret@127.0.0.1:1/d");
    each_fails_plainly(&[
        (&["monitor"], &[("DATABASE_URL", "")], "the following required arguments"),
        (&["monitor"], &[database, ("GRACE", "2")], "environment variable GRACE"),
        (&["monitor"], &[("DATABASE_URL", "db")], "environment variable DATABASE_URL"),
        (&["relay"], &[("BATCH_SIZE", "0")], "environment variable BATCH_SIZE"),
        (&["--log-level", "info", "relay"], &[("LEASE", "0")], "environment variable LEASE"),
    ])
    .await;
    let (_, _, err) = run(&["monitor", "--grace", "2"], &[database, ("GRACE", "5s")]).await;
    assert!(err.contains("--grace") && !err.contains("environment variable"), "{err}");
    // What compose hands on of variables that nobody has set.
    let names =
        ["GRACE", "SWEEP_INTERVAL", "AUDIT_DATABASE_URL", "ADMIN_TOKEN", "LISTEN", "LOG_FORMAT"];
    let mut environment: Vec<(&str, &str)> = names.map(|name| (name, "")).to_vec();
    environment.extend([database, ("CONNECT_TIMEOUT", "300ms")]);
    let (_, _, err) = run(&["monitor", "--listen", "127.0.0.1:0"], &environment).await;
    assert!(err.contains("cannot reach the monitor database"), "{err}");
}

/// The broker of another program is nobody's business while there is a better name.
#[tokio::test]
async fn an_older_name_is_read_only_where_no_newer_one_is_set() {
    let environment = [
        ANY_PORT,
        ("CONNECT_TIMEOUT", "300ms"),
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("CELERY_BROKER_URL", "amqp://guest:topsecret@rabbit:5672//"),
    ];
    each_fails_plainly(&[
        (&["relay"], &environment, "cannot reach Redis at redis://127.0.0.1:1"),
        (&["relay"], &[ANY_PORT, environment[3]], "not the address of a Redis"),
    ])
    .await;
}

const ANY_PORT: (&str, &str) = ("LISTEN", "127.0.0.1:0");

#[tokio::test]
async fn options_that_cannot_be_used_are_named_with_what_to_write_instead() {
    let database = ("DATABASE_URL", "mysql://u:topsecret@127.0.0.1:1/d");
    each_fails_plainly(&[
        (&["monitor"], &[], "--database-url <URL>"),
        (&["payments"], &[database], "--name <NAME>"),
        (&["monitor", "--sweep-interval", "5"], &[database], "write a duration such as"),
        (&["monitor", "--database-url", "db"], &[], "mysql://USER:PASSWORD@HOST:PORT/NAME"),
        (&["monitor", "--listen", "5001"], &[database], "invalid socket address"),
        (&["payments", "--name", "a b"], &[database], "must be 1 to 100 characters"),
        (&["relay", "--monitor-url", "monitor"], &[], "write it as http://HOST:5001"),
        (&["relay", "--lease", "5s"], &[ANY_PORT], "shorter than three times --http-timeout"),
        (
            &["monitor", "--retain-events", "60d", "--retain-windows", "30d"],
            &[database, ANY_PORT],
            "--retain-events (60d) is longer than --retain-windows (30d)",
        ),
        (&["monitor", "--retain-events", "1h"], &[database], "must be at least 1d, or `forever`"),
        (&["relay", "--batch-size", "0"], &[], "0 is not in 1..=1000"),
        (&["relay", "--log-level", "info,=,"], &[ANY_PORT], "is not a level such as info"),
        (&["relay", "--otlp-endpoint", "collector:4317"], &[], "write it as http://HOST:4318"),
        (
            &["relay"],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:topsecret@collector:4318")],
            "'--otlp-endpoint <URL>' cannot be used: a user and a password belong into",
        ),
        (&["monitor", "--trace-ratio", "10%"], &[database], "write a share from 0, which is none"),
        (&["dance"], &[], "unrecognized subcommand 'dance'"),
    ])
    .await;
}

#[tokio::test]
async fn servers_that_do_not_serve_us_are_named_with_what_to_do() {
    let ground = Ground::new().await;
    let nowhere = free_address();
    let wrong_password = ground.monitor_url.replace("heartbeat:", "heartbeat:x");
    let wrong_redis = shared().redis_url.replace("pass=", "pass=x");
    let no_password = shared().redis_url.split('?').next().unwrap_or_default();
    let no_redis = format!("redis://{nowhere}");
    let no_database = format!("mysql://u:topsecret@{nowhere}/d");
    let no_such_database = ground.monitor_url.replace("/monitor_", "/nothing_");
    let no_role = format!("http://{nowhere}");
    let quick = &[ANY_PORT, ("CONNECT_TIMEOUT", "300ms")];
    let with_database = |url| ["monitor", "--database-url", url];
    let with_redis = |url| ["relay", "--redis-url", url];
    let check = "check user, password and database name";
    each_fails_plainly(&[
        (&with_redis(&no_redis), quick, "cannot reach Redis at redis://"),
        (&with_redis(no_password), quick, "check user and password in --redis-url"),
        (&with_redis(&wrong_redis), quick, "check user and password in --redis-url"),
        (
            &with_database(&no_database),
            quick,
            "cannot reach the monitor database at mysql://u:***@",
        ),
        (&with_database(&wrong_password), quick, check),
        (&with_database(&no_such_database), quick, check),
        (
            &["migrate", "monitor", "--database-url", &no_database],
            quick,
            "cannot reach the monitor",
        ),
        (&["healthcheck", &no_role], &[], "cannot be reached: Connection refused"),
    ])
    .await;
}

#[tokio::test]
async fn a_schema_that_is_behind_is_refused_with_the_command_that_mends_it() {
    let ground = Ground::new().await;
    let redis = ("REDIS_URL", shared().redis_url.as_str());
    let payments = ("DATABASE_URL", ground.payments_url.as_str());
    let monitor = ("DATABASE_URL", ground.monitor_url.as_str());
    let no_change = ("CREATE_SCHEMA_ON_STARTUP", "false");
    let name = ["payments", "--name", "a"];
    each_fails_plainly(&[
        (&["monitor"], &[ANY_PORT, monitor, no_change], "run `heartbeat migrate monitor`"),
        (&name, &[ANY_PORT, payments, redis, no_change], "run `heartbeat migrate payments`"),
    ])
    .await;
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
