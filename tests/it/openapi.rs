//! The APIs of the monitor and of payments describe themselves, and keep to what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use flate2::read::GzDecoder;
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;

use crate::support::{Ground, Process, answer, get, heartbeat, window};

const README: &str = include_str!("../../README.md");
/// Methods that a path may take.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];
/// What is asked for where a path has a parameter.
const PARAMETERS: [(&str, &str); 2] =
    [("{uuid}", "6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10"), ("{file}", "swagger-ui.css")];
/// Requests of each operation, and phase of schemathesis.
const EXAMPLES: &str = "40";
/// How long one program may take.
const MOST_TIME: Duration = Duration::from_mins(3);
const TOKEN: &str = "a-token-of-many-characters";

/// The monitor and payments, as processes on a ground of their own.
async fn roles(ground: &Ground) -> [(&'static str, Process); 2] {
    let audit = ground.payments_url.as_str();
    let arguments = ["--admin-token", TOKEN, "--audit-database-url", audit];
    let monitor = Process::monitor(ground, &arguments).await;
    [("monitor", monitor), ("payments", Process::payments(ground, "payments-a", &[]).await)]
}

/// What a role says of its API.
async fn document(role: &Process) -> Value {
    let (status, document) = answer(get(&role.url("/openapi.json")).await.unwrap()).await;
    assert_eq!(status, StatusCode::OK);
    document
}

/// Every operation: its path, its method, and what is said of it.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let of_path = |(path, item)| {
        let item: &Value = item;
        let item = item.as_object().unwrap();
        item.iter().map(move |(method, said)| (String::as_str(path), method.as_str(), said))
    };
    paths.iter().flat_map(of_path).collect()
}

/// Everything of a document, down to each value.
fn walk<'v>(value: &'v Value, visit: &mut impl FnMut(&'v str, &'v Value)) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                visit(name, value);
                walk(value, visit);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

#[tokio::test]
async fn the_documents_name_every_route_and_nothing_else() {
    let ground = Ground::new().await;
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    for (name, role) in roles(&ground).await {
        let document = document(&role).await;
        let mut known = BTreeMap::<&str, BTreeSet<&str>>::new();
        for (path, method, _) in operations(&document) {
            known.entry(path).or_default().insert(method);
        }
        assert!(known.len() > 8, "{name}: {known:?}");
        for (path, documented) in known {
            for method in METHODS {
                let takes = takes(&client, &role, method, path).await;
                assert_eq!(takes, documented.contains(method), "{name}: {method} {path}");
            }
        }
        let (status, _) = answer(get(&role.url("/api/nothing")).await.unwrap()).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
}

/// Whether a role has such a route.
async fn takes(client: &Client, role: &Process, method: &str, path: &str) -> bool {
    let filled =
        PARAMETERS.iter().fold(path.to_owned(), |path, (name, value)| path.replace(name, value));
    let method: Method = method.to_uppercase().parse().unwrap();
    let request = client.request(method.clone(), role.url(&filled));
    let response = request.send().await.unwrap();
    let status = response.status();
    if status == StatusCode::METHOD_NOT_ALLOWED {
        assert!(response.headers().contains_key("allow"), "{method} {filled}");
    }
    let text = response.bytes().await.unwrap();
    let is_nothing = status == StatusCode::NOT_FOUND
        && String::from_utf8_lossy(&text).contains("there is nothing at this path");
    assert!(!is_nothing, "{method} {filled} leads to nothing");
    status != StatusCode::METHOD_NOT_ALLOWED
}

/// A route that is not made together with its entry would be in no document.
#[test]
fn no_route_of_the_described_roles_is_made_without_its_entry() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![root.join("monitor/api.rs"), root.join("payments/api.rs")];
    for folder in ["monitor/api", "payments/api", "http"] {
        files.extend(fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for way in [".route(", ".route_service(", ".nest_service("] {
            assert!(!text.contains(way), "{} has {way}: use `routes!`", file.display());
        }
    }
}

#[tokio::test]
async fn the_documents_are_whole_and_of_this_version() {
    let ground = Ground::new().await;
    for (name, role) in roles(&ground).await {
        let document = document(&role).await;
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1."), "{name}");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let tags: BTreeSet<&str> = document["tags"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|tag| tag["name"].as_str())
            .collect();
        let (mut ids, mut used) = (BTreeSet::new(), BTreeSet::new());
        for (path, method, said) in operations(&document) {
            let id = said["operationId"].as_str().unwrap();
            assert!(ids.insert(id), "{name}: {id} twice");
            assert!(!said["summary"].as_str().unwrap().is_empty(), "{name}: {method} {path}");
            used.extend(said["tags"].as_array().unwrap().iter().filter_map(Value::as_str));
        }
        assert_eq!(used, tags, "{name}: tags");
        let schemes = &document["components"]["securitySchemes"];
        walk(&document, &mut |member, value| match (member, value) {
            ("$ref", Value::String(target)) => {
                let found = document.pointer(target.strip_prefix('#').unwrap());
                assert!(found.is_some(), "{name}: {target} leads nowhere");
            }
            ("security", Value::Array(needs)) => {
                let needs = needs.iter().filter_map(Value::as_object).flat_map(|need| need.keys());
                needs.for_each(|need| assert!(schemes[need].is_object(), "{name}: {need}"));
            }
            _ => {}
        });
    }
}

#[tokio::test]
async fn the_readme_lists_the_routes_of_the_documents() {
    let ground = Ground::new().await;
    for (name, role) in roles(&ground).await {
        let (_, chapter) = README.split_once(&format!("\n### {name}\n")).unwrap();
        let chapter = chapter.split("\n### ").next().unwrap();
        let rows = chapter.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        // Other tables of the chapter begin their rows with members of answers.
        let routes = rows.filter(|row| row.contains(" /"));
        let listed: BTreeSet<String> =
            routes.filter_map(|row| Some(row.split('?').next()?.to_owned())).collect();
        let document = document(&role).await;
        let documented = operations(&document);
        let documented = documented.into_iter().filter(|(path, ..)| !path.starts_with("/docs/"));
        let documented: BTreeSet<String> = documented
            .map(|(path, method, _)| format!("{} {path}", method.to_uppercase()))
            .collect();
        assert_eq!(listed, documented, "{name}");
    }
}

#[tokio::test]
async fn the_page_is_whole_and_loads_nothing_from_elsewhere() {
    let ground = Ground::new().await;
    for (_, role) in roles(&ground).await {
        let found = get(&role.url("/docs")).await.unwrap();
        assert_eq!(found.status(), StatusCode::PERMANENT_REDIRECT);
        assert_eq!(found.headers()["location"], "docs/");
        let page = part(&role, "").await;
        let named = |start| page.split(start).skip(1).filter_map(|rest| rest.split('"').next());
        let parts: Vec<&str> = named("src=\"").chain(named("href=\"")).collect();
        assert!(parts.len() > 4, "{page}");
        for name in parts {
            assert!(!name.contains("//"), "{name}");
            assert!(!part(&role, name.trim_start_matches("./")).await.is_empty(), "{name}");
        }
        let start = part(&role, "swagger-initializer.js").await;
        assert!(start.contains("\"../openapi.json\""), "{start}");
        assert!(start.contains("\"validatorUrl\": \"none\""), "{start}");
        let (status, _) = answer(get(&role.url("/docs/secret.js")).await.unwrap()).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
}

/// A part of the page, as text. Says that it may load nothing from elsewhere.
async fn part(role: &Process, name: &str) -> String {
    let response = get(&role.url(&format!("/docs/{name}"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{name}");
    let policy = response.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'self';"), "{policy}");
    let is_packed = response.headers().get("content-encoding").is_some();
    let bytes = response.bytes().await.unwrap();
    let mut text = Vec::new();
    if is_packed {
        GzDecoder::new(&bytes[..]).read_to_end(&mut text).unwrap();
    } else {
        text.extend_from_slice(&bytes);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
#[ignore = "needs schemathesis: make fuzz"]
async fn fuzz() {
    let programs = std::env::var_os("HEARTBEAT_SCHEMATHESIS");
    let programs = PathBuf::from(programs.expect("HEARTBEAT_SCHEMATHESIS, as `make fuzz` sets it"));
    let ground = Ground::new().await;
    let roles = roles(&ground).await;
    fill(&roles).await;
    for (name, role) in roles {
        let document = document(&role).await;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let file = folder.join(format!("{name}-openapi.json"));
        fs::write(&file, document.to_string()).unwrap();
        run(&programs.join("openapi-spec-validator"), &[file.to_str().unwrap()]).await;
        let settings = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemathesis.toml");
        let (token, url) = (format!("Authorization: Bearer {TOKEN}"), role.url("/openapi.json"));
        let mut arguments = vec!["--config-file", settings, "run", &url];
        arguments.extend(["--header", &token, "--max-examples", EXAMPLES]);
        run(&programs.join("schemathesis"), &arguments).await;
        assert_eq!(get(&role.url("/ready")).await.unwrap().status(), StatusCode::OK, "{name}");
    }
}

/// Something to answer with.
async fn fill([(_, monitor), (_, payments)]: &[(&str, Process); 2]) {
    let client = heartbeat::http::client(Duration::from_secs(10)).unwrap();
    let window = window("payments-a", 3);
    for slot in 0..2 {
        let request = client.post(monitor.url("/api/monitor/heartbeats"));
        let taken = request.body(heartbeat(&window, slot).to_json()).send().await.unwrap();
        assert_eq!(taken.status(), StatusCode::ACCEPTED);
    }
    // No relay carries it, so that only the audit knows its window.
    let opened = client.post(payments.url("/report-windows")).send().await.unwrap();
    assert_eq!(opened.status(), StatusCode::ACCEPTED);
}

/// Runs a program that must succeed.
async fn run(program: &Path, arguments: &[&str]) {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(MOST_TIME, command.status()).await.expect("it ends");
    let status = ended.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(status.success(), "{} {status}", program.display());
}
