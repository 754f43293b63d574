//! What the roles' command lines share: addresses, durations and where the schema comes from.
//!
//! Every value is checked when it is parsed, so that a mistake is reported by the name of its flag
//! before anything starts. Addresses hide their password wherever they are printed.

mod address;

use std::ffi::OsStr;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{BoolishValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Args, Command};

pub use self::address::{DatabaseUrl, MonitorUrl, PageUrl, RedisUrl, UnreadUrl, whole_address};
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
    #[arg(long, env = "REDIS_REPORTS_URL", hide = true, hide_env_values = true)]
    pub redis_reports_url: Option<UnreadUrl>,

    /// Older name of --redis-url, used when neither other is given
    #[arg(long, env = "CELERY_BROKER_URL", hide = true, hide_env_values = true)]
    pub celery_broker_url: Option<UnreadUrl>,

    /// Stream of heartbeats; announcements and dead letters go beside it
    #[arg(long, env = "STREAM_NAME", default_value = "reports", value_name = "NAME")]
    pub stream_name: StreamName,
}

impl StreamArgs {
    /// The address to use: the first of the three names that is set, else a Redis on this host.
    ///
    /// # Errors
    /// An address under an older name that cannot be used, if it is the one to use.
    pub fn url(&self) -> anyhow::Result<RedisUrl> {
        if let Some(url) = &self.redis_url {
            return Ok(url.clone());
        }
        let older = [
            ("REDIS_REPORTS_URL", &self.redis_reports_url),
            ("CELERY_BROKER_URL", &self.celery_broker_url),
        ];
        match older.into_iter().find_map(|(name, url)| Some((name, url.as_ref()?))) {
            Some((name, url)) => url.read().map_err(|error| {
                anyhow::anyhow!("the address in {name} cannot be used: {error}; or set REDIS_URL")
            }),
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
            let mut complaint =
                clap::Error::raw(ErrorKind::ValueValidation, complaint).with_cmd(command);
            if let Some(arg) = arg {
                let name = ContextValue::String(arg.to_string());
                complaint.insert(ContextKind::InvalidArg, name);
            }
            complaint
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

#[cfg(test)]
mod tests {
    use super::*;

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
