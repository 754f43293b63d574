//! Habits that a machine can check: who may use what, how large a file may grow, that every module
//! says what it is for, and that a migration which has landed is never edited.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules in the order of the map in `lib.rs`: each uses only those behind it.
const ORDER: [&str; 21] = [
    "cli",
    "standalone",
    "payments",
    "relay",
    "monitor",
    "dead_letters",
    "forget_group",
    "explain",
    "local",
    "stream",
    "traces",
    "metrics",
    "http",
    "db",
    "config",
    "shutdown",
    "telemetry",
    "terminal",
    "retry",
    "clock",
    "verdict",
];

/// What a file may use although the order of the map says otherwise, and why.
const EXCEPTIONS: [(&str, &str, &str); 2] = [
    ("src/stream", "config", "an address is parsed where options are"),
    ("src/config.rs", "stream", "the stream's name is an option"),
];

/// Largest file without a reason, in lines.
const MOST_LINES: usize = 400;
/// Files that may be larger, and why.
const LARGE: [(&str, &str); 0] = [];

/// Fingerprints of the migrations that have landed. Add a line for a new one; never change one.
const MIGRATIONS: &str = include_str!("migrations.txt");

fn files(root: &str, ending: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(root)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
                found.insert(name.display().to_string(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(!found.is_empty(), "{root} holds *.{ending}");
    found
}

/// A file without its tests, which may use more.
fn production(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

fn module(path: &str) -> &str {
    let name = path.trim_start_matches("src/").split('/').next().unwrap();
    name.trim_end_matches(".rs")
}

#[test]
fn modules_use_only_what_stands_below_them() {
    for (path, text) in files("src", "rs") {
        let Some(own) = ORDER.iter().position(|name| *name == module(&path)) else { continue };
        for (place, name) in ORDER.iter().enumerate() {
            let role = |place: usize| (2..=4).contains(&place);
            let forbidden = place < own || (role(own) && role(place) && place != own);
            let excepted =
                EXCEPTIONS.iter().any(|(file, used, _)| path.starts_with(file) && used == name);
            let uses = uses_module(production(&text), name);
            assert!(!(forbidden && uses) || excepted, "{path} must not use crate::{name}");
        }
    }
}

/// Whether a file names a module of the crate, alone or in a list of imports.
fn uses_module(text: &str, name: &str) -> bool {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let listed = code.split("use crate::{").skip(1).any(|list| {
        let list = list.split(';').next().unwrap_or(list);
        list.split([',', '{', '}']).any(|item| item.trim().split("::").next() == Some(name))
    });
    listed
        || code.contains(&format!("crate::{name}::"))
        || code.contains(&format!("crate::{name};"))
}

#[test]
fn each_outside_library_has_one_owner() {
    let owners: [(&str, &[&str]); 10] = [
        // `local` has a module of that name.
        ("redis::", &["src/stream", "src/local.rs"]),
        (
            "sqlx::",
            &[
                "src/db",
                "src/config/address.rs",
                "src/monitor/repository",
                "src/payments/repository",
                "src/explain/repository",
                "src/explain/repair.rs",
                "src/local",
                "src/monitor.rs",
                "src/payments.rs",
            ],
        ),
        (
            "reqwest::",
            &[
                "src/http.rs",
                "src/relay/forward.rs",
                "src/explain/ask.rs",
                "src/cli.rs",
                "src/config/address.rs",
                "src/traces",
            ],
        ),
        ("opentelemetry::", &["src/traces"]),
        ("opentelemetry_sdk::", &["src/traces"]),
        ("opentelemetry_otlp::", &["src/traces"]),
        ("opentelemetry_http::", &["src/traces"]),
        // Roles name what `metrics` lends them, so that another library is a change of one module.
        ("prometheus::", &["src/metrics"]),
        ("Utc::now", &["src/clock.rs"]),
        ("utoipa_swagger_ui::", &["src/http"]),
    ];
    for (path, text) in files("src", "rs") {
        for (library, allowed) in owners {
            let uses = production(&text).lines().any(|line| {
                !line.trim_start().starts_with("//")
                    && line.match_indices(library).any(|(at, _)| {
                        !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                    })
            });
            let may = allowed.iter().any(|owner| path.starts_with(owner));
            assert!(!uses || may, "{path} must not use {library}");
        }
    }
}

/// What no statement of ours contains, and why. In capitals, with single spaces.
const NO_SQL: [(&str, &str); 11] = [
    ("INSERT IGNORE", "it stores what it cannot store as something else, and says nothing"),
    ("REPLACE INTO", "it deletes what was there"),
    ("RETURNING", "MySQL has none"),
    (") AS NEW", "MariaDB has no row alias: VALUES(column)"),
    ("VALUES ROW", "MariaDB has none"),
    ("->>", "MariaDB has none: JSON_UNQUOTE(JSON_EXTRACT(…))"),
    ("FOR SHARE", "MariaDB has none: LOCK IN SHARE MODE"),
    ("UUID_TO_BIN", "MariaDB has none"),
    ("UTF8MB4_0900", "MariaDB has none: utf8mb4_bin"),
    ("@@TRANSACTION_ISOLATION", "MariaDB 10.11 has none, and MySQL no other name"),
    ("MAX_EXECUTION_TIME", "MariaDB has none"),
];

/// What no code of ours contains, and why.
const NO_CODE: [(&str, &str); 2] = [
    ("MAXLEN", "a stream cut by length loses what nobody has read, and its lag still says 0"),
    (".persistent(false)", "over TCP each statement that is not kept costs 44 ms"),
];

/// Text without comments, in capitals and with single spaces, also where a string goes on in the
/// next line.
fn statements(text: &str) -> String {
    let is_code = |line: &&str| !["//", "--"].iter().any(|mark| line.trim().starts_with(mark));
    let code: Vec<&str> = text.lines().filter(is_code).collect();
    let code = code.join(" ").replace('\\', " ").to_uppercase();
    code.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn sql_is_what_both_databases_take_and_hides_no_fault() {
    let sources = files("src", "rs").into_iter().chain(files("migrations", "sql"));
    for (path, text) in sources {
        let statements = statements(production(&text));
        for (forbidden, why) in NO_SQL {
            assert!(!statements.contains(forbidden), "{path} has {forbidden}: {why}");
        }
    }
}

#[test]
fn code_keeps_clear_of_traps_that_show_only_under_load() {
    for (path, text) in files("src", "rs") {
        let code = production(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for (forbidden, why) in NO_CODE {
                assert!(!line.contains(forbidden), "{path} has {forbidden}: {why}");
            }
        }
    }
}

/// What is written outside of it is cancelled when its caller gives up.
#[test]
fn every_write_is_a_transaction() {
    for (path, text) in files("src", "rs") {
        let statements = production(&text).split(".execute(").collect::<Vec<_>>();
        for two in statements.windows(2) {
            let on_a_pool = two[1].split(')').next().is_some_and(|on| on.trim().ends_with("pool"));
            let is_ping = two[0].ends_with("raw_sql(\"SELECT 1\")");
            assert!(!on_a_pool || is_ping, "{path} writes outside of db::transaction");
        }
    }
}

#[test]
fn files_stay_small_enough_to_read() {
    let mut lengths = Vec::new();
    for (path, text) in files("src", "rs") {
        let lines = text.lines().count();
        let excused = LARGE.iter().any(|(file, _)| *file == path);
        assert!(lines <= MOST_LINES || excused, "{path} has {lines} lines: split it");
        lengths.push(lines);
    }
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median <= 200, "the median file has {median} lines");
}

#[test]
fn every_module_opens_with_what_it_is_for() {
    for root in ["src", "tests", "benches"] {
        if !Path::new(env!("CARGO_MANIFEST_DIR")).join(root).exists() {
            continue;
        }
        for (path, text) in files(root, "rs") {
            assert!(
                text.starts_with("//! "),
                "{path} opens with a comment that says what it is for"
            );
        }
    }
}

/// With several inserts at a time, MariaDB 10.11 answers that all is well and leaves rows out if the
/// table has two unique keys and the statement says ON DUPLICATE KEY.
#[test]
fn tables_with_two_unique_keys_take_plain_inserts() {
    let tables = ["windows", "report_windows", "report_audit", "pipeline_conditions"];
    let mut found = BTreeSet::new();
    for (path, text) in files("src", "rs") {
        for statement in text.split("INSERT INTO ").skip(1) {
            let table = statement.split_whitespace().next().unwrap_or_default();
            // A statement ends where the next function does.
            let statement = statement.split("\n}\n").next().unwrap_or(statement);
            let statement = statement.split("INSERT INTO ").next().unwrap_or(statement);
            if tables.contains(&table) {
                found.insert(table.to_owned());
                assert!(!statement.contains("ON DUPLICATE KEY"), "{path}: {table}");
            }
        }
    }
    assert_eq!(found.len(), tables.len());
}

/// FNV-1a, which is enough to notice a change.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[test]
fn a_landed_migration_is_never_edited() {
    let found: BTreeMap<String, String> = files("migrations", "sql")
        .into_iter()
        .map(|(path, text)| (path, format!("{:016x}", fingerprint(&text))))
        .collect();
    let landed: BTreeMap<String, String> = MIGRATIONS
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(print, path)| (path.to_owned(), print.to_owned()))
        .collect();
    for (path, print) in &found {
        let known = landed.get(path);
        assert_eq!(known, Some(print), "{path}: a new migration needs its line in migrations.txt");
    }
    assert_eq!(found.len(), landed.len(), "a landed migration is gone");
}
