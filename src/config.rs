//! What the roles' command lines share: addresses, durations and where the schema comes from.
//!
//! Every value is checked when it is parsed, so that a mistake is reported by the name of its flag
//! before anything starts. Addresses hide their password wherever they are printed.

use std::ffi::OsStr;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{BoolishValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Args, Command};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use sqlx::mysql::MySqlConnectOptions;

use crate::stream::StreamName;
use crate::wire::Tick;

/// Where the streams are.
#[derive(Args, Clone, Debug)]
pub struct StreamArgs {
    /// Redis that holds the streams [default: `redis://127.0.0.1:6379/0`]
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL",
          value_parser = secret::<RedisUrl>())]
    pub redis_url: Option<RedisUrl>,

    /// Older name of --redis-url, used when that is not given
    #[arg(long, env = "REDIS_REPORTS_URL", hide = true, hide_env_values = true,
          value_parser = secret::<RedisUrl>())]
    pub redis_reports_url: Option<RedisUrl>,

    /// Older name of --redis-url, used when neither other is given
    #[arg(long, env = "CELERY_BROKER_URL", hide = true, hide_env_values = true,
          value_parser = secret::<RedisUrl>())]
    pub celery_broker_url: Option<RedisUrl>,

    /// Stream of heartbeats; announcements and dead letters go beside it
    #[arg(long, env = "STREAM_NAME", default_value = "reports", value_name = "NAME")]
    pub stream_name: StreamName,
}

impl StreamArgs {
    /// The address to use: the first of the three names that is set, else a Redis on this host.
    ///
    /// # Errors
    /// Never for an address that was given; the default is checked like any other.
    pub fn url(&self) -> anyhow::Result<RedisUrl> {
        let given = [&self.redis_url, &self.redis_reports_url, &self.celery_broker_url];
        match given.into_iter().flatten().next() {
            Some(url) => Ok(url.clone()),
            None => "redis://127.0.0.1:6379/0".parse().map_err(anyhow::Error::msg),
        }
    }
}

/// A role's database.
#[derive(Args, Clone, Debug)]
pub struct DatabaseArgs {
    /// MySQL or MariaDB database, as `mysql://USER:PASSWORD@HOST:PORT/NAME`
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL",
          value_parser = secret::<DatabaseUrl>())]
    pub database_url: DatabaseUrl,

    /// Bring the database's schema up to date at start; when false, start only if it already is
    #[arg(long, env = "CREATE_SCHEMA_ON_STARTUP", default_value = "true", value_name = "BOOL",
          value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub create_schema_on_startup: bool,
}

impl DatabaseArgs {
    /// What a person sets to name the database.
    pub const OPTION: &str = "--database-url";
}

/// How long to wait at start for servers that do not answer yet.
#[derive(Args, Clone, Debug)]
pub struct StartArgs {
    /// How long to wait at start for a server that cannot be reached
    #[arg(long, env = "CONNECT_TIMEOUT", default_value = "10s", value_name = "DURATION",
          value_parser = duration)]
    pub connect_timeout: Duration,
}

/// The tick of windows and messages that do not name one.
#[derive(Args, Clone, Debug)]
pub struct TickArgs {
    /// Seconds between two heartbeats where a window or message does not say
    #[arg(long, env = "HEARTBEAT_INTERVAL_SECONDS", default_value = "10", value_name = "SECONDS",
          value_parser = tick)]
    pub heartbeat_interval_seconds: Tick,
}

/// Reads a value that may hold a password: if it cannot be used, the complaint does not repeat it.
#[must_use]
pub fn secret<T>() -> Secret<T> {
    Secret(PhantomData)
}

/// The parser that [`secret`] makes.
#[derive(Clone, Debug)]
pub struct Secret<T>(PhantomData<fn() -> T>);

impl<T> TypedValueParser for Secret<T>
where
    T: FromStr + Clone + Send + Sync + 'static,
    T::Err: fmt::Display,
{
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> clap::error::Result<T> {
        let text = value.to_string_lossy();
        text.trim().parse().map_err(|error| {
            let name = arg.map_or_else(String::new, |arg| format!(" for '{arg}'"));
            let complaint = format!("the value{name} cannot be used: {error}\n");
            clap::Error::raw(ErrorKind::ValueValidation, complaint).with_cmd(command)
        })
    }
}

/// Reads a duration such as `500ms`, `5s` or `2m`.
///
/// # Errors
/// Text that is no duration, or longer than a year.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a duration such as 500ms, 5s or 2m"))?;
    if duration > Duration::from_hours(366 * 24) {
        return Err("longer than a year".to_owned());
    }
    Ok(duration)
}

/// Reads a duration that must not be zero.
///
/// # Errors
/// As for [`duration`], and zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|duration| match duration {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        longer => Ok(longer),
    })
}

fn tick(text: &str) -> Result<Tick, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    Tick::from_seconds(seconds).map_err(|error| error.to_string())
}

/// Address of a MySQL or MariaDB database. `mysql+pymysql://` is read as `mysql://`.
#[derive(Clone)]
pub struct DatabaseUrl {
    options: MySqlConnectOptions,
    shown: String,
}

impl DatabaseUrl {
    /// What the driver needs to connect.
    #[must_use]
    pub fn options(&self) -> &MySqlConnectOptions {
        &self.options
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const SHAPE: &str = "write it as `mysql://USER:PASSWORD@HOST:PORT/NAME`";
        let rest = ["mysql+pymysql://", "mysql://", "mariadb://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .ok_or_else(|| format!("not the address of a MySQL or MariaDB database; {SHAPE}"))?;
        let text = format!("mysql://{rest}");
        let url = Url::parse(&text).map_err(|error| format!("{error}; {SHAPE}"))?;
        if url.path().trim_matches('/').is_empty() {
            return Err(format!("names no database; {SHAPE}"));
        }
        let options =
            text.parse::<MySqlConnectOptions>().map_err(|error| format!("{error}; {SHAPE}"))?;
        Ok(Self { options, shown: without_password(url) })
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Address of a Redis: `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, or `redis+unix:///SOCKET`.
#[derive(Clone)]
pub struct RedisUrl {
    secret: SecretString,
    shown: String,
}

impl RedisUrl {
    pub(crate) fn expose(&self) -> &str {
        self.secret.expose_secret()
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const SHAPE: &str = "write it as redis://HOST:6379/0";
        let url = Url::parse(text).map_err(|error| format!("{error}; {SHAPE}"))?;
        let schemes = ["redis", "valkey", "unix", "redis+unix", "valkey+unix"];
        if !schemes.contains(&url.scheme()) {
            return Err(format!("not the address of a Redis; {SHAPE}"));
        }
        Ok(Self { secret: text.into(), shown: without_password(url) })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// An address that may be printed: passwords in it, also among its parameters, become `***`.
fn without_password(mut url: Url) -> String {
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return format!("{}://…", url.scheme());
    }
    url.set_query(None);
    url.to_string()
}

/// Address of a monitor: its base, or the full path that older relays were given.
#[derive(Clone, PartialEq, Eq)]
pub struct MonitorUrl(Url);

impl MonitorUrl {
    /// The address of one of the monitor's resources, such as `heartbeats/batch`.
    #[must_use]
    pub fn join(&self, resource: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}/api/monitor/{resource}", self.0.path().trim_end_matches('/')));
        url
    }
}

impl FromStr for MonitorUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const SHAPE: &str = "write it as http://HOST:5001";
        let mut url = Url::parse(text).map_err(|error| format!("{error}; {SHAPE}"))?;
        if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
            return Err(format!("not the address of a monitor; {SHAPE}"));
        }
        let path = url.path().trim_end_matches('/');
        let base = ["/api/monitor/heartbeats", "/api/monitor"]
            .iter()
            .find_map(|suffix| path.strip_suffix(suffix))
            .unwrap_or(path)
            .to_owned();
        url.set_path(&base);
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self(url))
    }
}

impl fmt::Display for MonitorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(self.0.clone()))
    }
}

impl fmt::Debug for MonitorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_database_address_are_read() {
        for text in [
            "mysql://monitor:secret@db:3306/monitor",
            "mysql+pymysql://monitor:secret@db:3306/monitor?charset=utf8mb4",
            "mariadb://monitor:secret@db/monitor",
        ] {
            let url: DatabaseUrl = text.parse().unwrap();
            assert_eq!(url.options().get_database(), Some("monitor"), "{text}");
        }
    }

    #[test]
    fn addresses_never_show_their_password() {
        let database: DatabaseUrl = "mysql://u:secret@db/monitor?password=secret".parse().unwrap();
        let redis: RedisUrl = "redis+unix:///run/redis.sock?pass=secret".parse().unwrap();
        let tcp: RedisUrl = "redis://:secret@redis:6379/0".parse().unwrap();
        for shown in [format!("{database} {database:?}"), format!("{redis:?}"), tcp.to_string()] {
            assert!(!shown.contains("secret"), "{shown}");
        }
    }

    #[test]
    fn unusable_addresses_are_refused_with_their_shape() {
        for text in ["", "db", "postgres://u@h/x", "mysql://u:p@h", "mysql://u:p@h/", "mysql://"] {
            let error = text.parse::<DatabaseUrl>().unwrap_err();
            assert!(error.contains("mysql://USER"), "{text}: {error}");
        }
        for text in ["", "redis", "http://h"] {
            assert!(text.parse::<RedisUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_monitor_is_named_by_its_base_or_by_the_old_full_path() {
        for text in [
            "http://monitor:5001",
            "http://monitor:5001/",
            "http://monitor:5001/api/monitor/heartbeats",
            "http://monitor:5001/api/monitor/",
        ] {
            let url: MonitorUrl = text.parse().unwrap();
            let resource = url.join("windows").to_string();
            assert_eq!(resource, "http://monitor:5001/api/monitor/windows", "{text}");
        }
        let behind_a_proxy: MonitorUrl = "https://example.org/hb".parse().unwrap();
        assert_eq!(behind_a_proxy.join("x").path(), "/hb/api/monitor/x");
        assert!("monitor:5001".parse::<MonitorUrl>().is_err());
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["5", "", "fast", "-1s", "2y"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(positive_duration("0s").is_err());
    }
}
