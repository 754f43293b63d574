//! What is deployed against the real command line: the compose file, the image and the units for
//! systemd name only commands, options and values that the executable takes.
//!
//! Nothing is started. An environment variable is turned into the option that reads it, and the
//! whole is parsed as the executable would, deaf to the environment of whoever runs the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use heartbeat::cli::{Cli, Command, HealthcheckArgs};
use heartbeat::config::duration;
use heartbeat::shutdown;
use reqwest::Url;
use serde::Deserialize;
use serde::de::IgnoredAny;

const COMPOSE: &str = include_str!("../../compose.yaml");
const DOCKERFILE: &str = include_str!("../../Dockerfile");
/// The image that every service of ours runs.
const IMAGE: &str = "heartbeat:local";
/// Each unit for systemd, its example of settings, and an instance of it.
const UNITS: [(&str, &str, &str); 3] = [
    ("heartbeat-monitor.service", "monitor.env.example", ""),
    ("heartbeat-relay@.service", "relay.env.example", "5013"),
    ("heartbeat-payments@.service", "payments.env.example", "payments-x"),
];
/// Where a host finds each service: address to publish on, its port, and the one inside.
const PORTS: [(&str, Option<&str>, u16, u16); 7] = [
    ("payments-a", None, 5002, 5000),
    ("payments-b", None, 5010, 5000),
    ("payments-c", None, 5020, 5000),
    ("monitor", None, 5001, 5001),
    ("redis", Some("127.0.0.1"), 6379, 6379),
    ("monitor-db", Some("127.0.0.1"), 3307, 3306),
    ("payments-db", Some("127.0.0.1"), 3308, 3306),
];

type Environment = BTreeMap<String, String>;

#[derive(Debug, Deserialize)]
struct Compose {
    services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<IgnoredAny>>,
}

/// A service. A key that is not here is a mistake, or must be added with a check of its own; one
/// that is missing there is empty here, and fails the check of what it says.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Service {
    image: String,
    build: Option<String>,
    pull_policy: Option<String>,
    command: Vec<String>,
    environment: Environment,
    healthcheck: Health,
    depends_on: BTreeMap<String, Dependency>,
    ports: Vec<String>,
    volumes: Vec<String>,
    networks: BTreeMap<String, Network>,
    restart: String,
    stop_grace_period: String,
    logging: Logging,
    read_only: bool,
    cap_drop: Vec<String>,
    security_opt: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Health {
    test: Vec<String>,
    interval: String,
    timeout: String,
    retries: u32,
    start_period: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Dependency {
    condition: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Network {
    aliases: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Logging {
    driver: String,
    options: BTreeMap<String, String>,
}

impl Service {
    fn is_ours(&self) -> bool {
        self.image == IMAGE
    }

    /// The port that it listens on in its container.
    fn port(&self) -> u16 {
        if self.is_ours() {
            let cli = parse(&self.command, &self.environment).unwrap();
            listen(&cli.command).port()
        } else {
            published(&self.ports[0]).2
        }
    }
}

fn compose() -> Compose {
    serde_saphyr::from_str(COMPOSE).unwrap()
}

/// Services of ours, with their names.
fn ours(compose: &Compose) -> impl Iterator<Item = (&str, &Service)> {
    compose.services.iter().filter(|(_, s)| s.is_ours()).map(|(name, s)| (name.as_str(), s))
}

/// Parses a command with the options that its environment sets.
fn parse(command: &[String], environment: &Environment) -> Result<Cli, String> {
    let cli = Cli::command();
    let role = command.first().ok_or("the command names no role")?;
    let role = cli.find_subcommand(role).ok_or_else(|| format!("{role} is no command"))?;
    let global = cli.get_arguments().filter(|arg| arg.is_global_set());
    let options: Vec<_> = role.get_arguments().chain(global).collect();
    let mut line = vec![cli.get_name().to_owned()];
    line.extend_from_slice(command);
    for (variable, value) in environment {
        let option = options
            .iter()
            .find(|option| option.get_env() == Some(OsStr::new(variable)))
            .ok_or_else(|| format!("no option of {} reads {variable}", role.get_name()))?;
        let long = option.get_long().ok_or_else(|| format!("{variable} sets no --option"))?;
        match (option.get_action().takes_values(), value.as_str()) {
            (true, value) => line.push(format!("--{long}={value}")),
            (false, "true") => line.push(format!("--{long}")),
            (false, other) => return Err(format!("{variable} is {other}; write true or leave it")),
        }
    }
    let matches = deaf(Cli::command()).try_get_matches_from(line).map_err(|e| e.to_string())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.to_string())
}

/// A command line that reads no environment.
fn deaf(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| arg.env(None::<&'static str>)).mut_subcommands(deaf)
}

fn listen(command: &Command) -> SocketAddr {
    match command {
        Command::Payments(args) => args.listen,
        Command::Relay(args) => args.listen,
        Command::Monitor(args) => args.listen,
        other => panic!("{other:?} is not a service"),
    }
}

/// Parses the arguments of a health check, which come after the path of the executable.
fn health_check(arguments: &[String]) -> HealthcheckArgs {
    let cli = parse(arguments, &Environment::new()).unwrap();
    let Command::Healthcheck(args) = cli.command else { panic!("{arguments:?} checks no health") };
    args
}

/// Address, port of the host and port of the container, of `[ADDRESS:]PORT:PORT`.
fn published(port: &str) -> (Option<&str>, u16, u16) {
    let (outside, inside) = port.rsplit_once(':').unwrap();
    let (address, outside) = match outside.rsplit_once(':') {
        Some((address, outside)) => (Some(address), outside),
        None => (None, outside),
    };
    (address, outside.parse().unwrap(), inside.parse().unwrap())
}

fn seconds(text: &str) -> Duration {
    duration(text).unwrap()
}

/// The settings of a file for systemd, and those that it shows behind a `#`.
fn settings(text: &str) -> Environment {
    let lines = text.lines().map(|line| line.trim_start_matches('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    pairs.filter(|(name, _)| is_name(name)).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

/// What follows an instruction's name in the Dockerfile's last stage, read as a list.
fn instruction(start: &str) -> Vec<String> {
    let stage = DOCKERFILE.rsplit("\nFROM ").next().unwrap().replace("\\\n", " ");
    let mut found = stage.lines().filter(|line| line.starts_with(start));
    let line = found.next().unwrap_or_else(|| panic!("the Dockerfile has no {start}"));
    assert_eq!(found.next(), None, "more than one {start}");
    serde_json::from_str(&line[line.find('[').unwrap()..]).unwrap()
}

#[test]
fn every_service_runs_a_command_that_the_executable_takes() {
    let compose = compose();
    let names: Vec<_> = ours(&compose).map(|(name, _)| name).collect();
    assert_eq!(names, ["monitor", "payments-a", "payments-b", "payments-c", "relay"]);
    for (name, service) in ours(&compose) {
        match parse(&service.command, &service.environment).unwrap().command {
            Command::Payments(args) => assert_eq!(args.name.as_str(), name),
            Command::Relay(args) => {
                assert_eq!(name, "relay");
                args.validate().unwrap();
                assert_eq!(args.consumer_name, None, "relays under one name could not be scaled");
                let aliases = &service.networks["default"].aliases;
                assert_eq!(*aliases, ["monitor-queue"], "its name in earlier installations");
            }
            Command::Monitor(_) => assert_eq!(name, "monitor"),
            other => panic!("{name} runs {other:?}"),
        }
    }
}

#[test]
fn what_the_executable_does_not_take_is_noticed() {
    const DATABASE: &str = "DATABASE_URL=mysql://u:p@h/d";
    for (command, variable, complaint) in [
        ("monitor", "GRACE=3s", ""),
        ("monitor", "DATABASE_URL=", "--database-url"),
        ("monitor", "MONITOR_URL=http://m:5001", "MONITOR_URL"),
        ("monitor", "SWEEP_INTERVAL=5", "--sweep-interval"),
        ("monitor --sweep 5s", "", "--sweep"),
        ("monitor --grace 2s", "GRACE=2s", "--grace"),
        ("payments", "", "--name"),
        ("monitor-queue", "", "monitor-queue"),
        ("", "", "no role"),
    ] {
        let command: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
        let error = parse(&command, &settings(&format!("{DATABASE}\n{variable}"))).err();
        assert_eq!(error.is_none(), complaint.is_empty(), "{command:?} {variable}: {error:?}");
        assert!(error.unwrap_or_default().contains(complaint), "{command:?} {variable}");
    }
}

#[test]
fn every_address_is_that_of_a_healthy_service() {
    let compose = compose();
    for (name, service) in ours(&compose) {
        let mut waited_for: BTreeSet<_> = service.depends_on.keys().map(String::as_str).collect();
        for (variable, value) in &service.environment {
            let Ok(url) = Url::parse(value) else { continue };
            let host = url.host_str().unwrap();
            let waits = waited_for.remove(host) || variable == "AUDIT_DATABASE_URL"; // can do without
            assert!(waits, "{name} does not wait for {host}");
            let server = &compose.services[host];
            assert_eq!(url.port(), Some(server.port()), "{name}: {url}");
            if url.scheme().starts_with("mysql") {
                let given = ["USER", "PASSWORD", "DATABASE"]
                    .map(|name| server.environment[&format!("MYSQL_{name}")].as_str());
                assert_eq!([url.username(), url.password().unwrap(), &url.path()[1..]], given);
            }
        }
        assert_eq!(waited_for, BTreeSet::new(), "{name} waits for what it does not use");
    }
    for dependency in compose.services.values().flat_map(|service| service.depends_on.values()) {
        assert_eq!(dependency.condition, "service_healthy");
    }
}

#[test]
fn health_checks_ask_the_port_that_the_service_listens_on() {
    let compose = compose();
    let executable = &instruction("ENTRYPOINT")[0];
    for (name, service) in &compose.services {
        let health = &service.healthcheck;
        assert!(health.retries > 1 && seconds(&health.interval) <= Duration::from_secs(10));
        assert!(seconds(&health.start_period) >= Duration::from_secs(30), "{name}");
    }
    for (name, service) in ours(&compose) {
        let health = &service.healthcheck;
        // There is no shell in the image.
        assert_eq!(health.test[..2], ["CMD".to_owned(), executable.clone()], "{name}");
        let check = health_check(&health.test[2..]);
        assert_eq!(check.url.url().as_str(), format!("http://127.0.0.1:{}/ready", service.port()));
        assert!(check.timeout < seconds(&health.timeout), "{name}: it could not say why");
    }
}

#[test]
fn ports_are_the_documented_ones_and_servers_stay_on_this_machine() {
    let compose = compose();
    for (name, service) in &compose.services {
        let ports: Vec<_> = service.ports.iter().map(|port| published(port)).collect();
        let documented = PORTS.iter().filter(|port| port.0 == name);
        let documented: Vec<_> = documented.map(|port| (port.1, port.2, port.3)).collect();
        assert_eq!(ports, documented, "{name}");
        for (address, _, inside) in ports {
            assert_eq!(inside, service.port(), "{name} does not listen there");
            assert!(service.is_ours() || address == Some("127.0.0.1"), "{name} is open to all");
        }
    }
    assert!(PORTS.iter().all(|port| compose.services.contains_key(port.0)));
}

#[test]
fn the_image_is_built_once_and_never_pulled() {
    let compose = compose();
    let built = |s: &Service| s.build.as_ref().map(|build| (s.image.clone(), build.clone()));
    let built: Vec<_> = compose.services.values().filter_map(built).collect();
    assert_eq!(built, [(IMAGE.to_owned(), ".".to_owned())]);
    for (name, service) in ours(&compose) {
        assert_eq!(service.pull_policy.as_deref(), Some("never"), "{name}");
        assert!(service.read_only && service.cap_drop == ["ALL"], "{name}");
        assert_eq!(service.security_opt, ["no-new-privileges:true"], "{name}");
    }
}

#[test]
fn every_named_volume_is_declared_and_used_once() {
    let compose = compose();
    let mounts = compose.services.values().flat_map(|service| &service.volumes);
    let used: Vec<_> = mounts.map(|mount| mount.split_once(':').unwrap().0).collect();
    let declared: BTreeSet<_> = compose.volumes.keys().map(String::as_str).collect();
    assert_eq!(used.iter().copied().collect::<BTreeSet<_>>(), declared);
    assert_eq!(used.len(), declared.len(), "two services share a volume");
}

#[test]
fn services_come_back_stop_in_time_and_do_not_fill_the_disk() {
    for (name, service) in compose().services {
        assert_eq!(service.restart, "unless-stopped", "{name}");
        assert!(seconds(&service.stop_grace_period) > shutdown::DEADLINE, "{name}");
        assert_eq!(service.logging.driver, "json-file", "{name}");
        let limits: Vec<_> = service.logging.options.keys().map(String::as_str).collect();
        assert_eq!(limits, ["max-file", "max-size"], "{name}");
    }
}

#[test]
fn servers_keep_what_they_have_answered() {
    let compose = compose();
    let redis = compose.services["redis"].command.join(" ");
    for option in ["--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"] {
        assert!(redis.contains(option), "{redis}");
    }
    for name in ["payments-db", "monitor-db"] {
        let options = compose.services[name].command.join(" ");
        let durable = "--innodb-flush-log-at-trx-commit=1 --sync-binlog=1 ";
        assert!(options.contains(durable), "{name}: {options}");
        assert!(options.contains("--character-set-server=utf8mb4 "), "{name}: {options}");
    }
}

#[test]
fn the_image_starts_and_checks_the_executable() {
    let executable = instruction("ENTRYPOINT");
    assert_eq!(executable.len(), 1, "compose gives the role");
    let check = instruction("HEALTHCHECK");
    assert_eq!(check[0], executable[0]);
    health_check(&check[1..]);
    assert!(DOCKERFILE.contains("\nSTOPSIGNAL SIGTERM\n"));
    let user = DOCKERFILE.lines().rev().find_map(|line| line.strip_prefix("USER ")).unwrap();
    let (user, group) = user.split_once(':').unwrap();
    assert!(user.parse::<u32>().unwrap() > 0 && group.parse::<u32>().unwrap() > 0);
    let compiler = format!("\nFROM rust:{}-", env!("CARGO_PKG_RUST_VERSION"));
    assert!(DOCKERFILE.contains(&compiler), "not the version that Cargo.toml asks for");
}

#[test]
fn units_run_commands_with_settings_that_the_executable_takes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    for (unit, example, instance) in UNITS {
        let (unit, example) = (read(unit).replace("%i", instance), read(example));
        let all = |key: &str| -> Vec<String> {
            let pairs = unit.lines().filter_map(|line| line.split_once('='));
            pairs.filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).collect()
        };
        let line: Vec<_> = all("ExecStart")[0].split(' ').map(str::to_owned).collect();
        assert_eq!(line[0], instruction("ENTRYPOINT")[0]);
        let mut environment = settings(&example);
        assert!(environment.len() > 2, "the example shows too little: {example}");
        environment.extend(settings(&all("Environment").join("\n")));
        match parse(&line[1..], &environment).unwrap().command {
            Command::Monitor(_) => assert_eq!(instance, ""),
            Command::Payments(args) => assert_eq!(args.name.as_str(), instance),
            Command::Relay(args) => {
                args.validate().unwrap();
                assert_eq!(args.listen.port().to_string(), instance);
                assert_eq!(args.consumer_name, None, "all relays of a machine would be one");
            }
            other => panic!("a unit runs {other:?}"),
        }
        let file = &all("EnvironmentFile")[0];
        assert!(example.starts_with(&format!("# {file},")), "{file} has no example");
        assert!(seconds(&all("TimeoutStopSec")[0]) > shutdown::DEADLINE);
    }
}
