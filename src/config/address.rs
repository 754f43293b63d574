//! Addresses of servers, which may hold a password: none is ever shown.
//!
//! A password that is not percent-encoded can turn an address into another one, in which a part of it
//! stands where nobody looks for a password: in `redis://default:2024#s3cret@redis`, `default` is the
//! host. So an address is taken only if all of it is what it seems, and nothing of one that is refused
//! is repeated.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use sqlx::mysql::MySqlConnectOptions;

/// Reads an address, if no part of a password can stand anywhere but in its place.
///
/// # Errors
/// What is wrong with it, without any part of it.
pub fn whole_address(text: &str) -> Result<Url, String> {
    const ENCODE: &str = "percent-encode what is special in user and password, such as %23 for #, \
        %2F for /, %3F for ? and %40 for @";
    let url = Url::parse(text).map_err(|error| format!("{error}; {ENCODE}"))?;
    let strays = [url.path(), url.query().unwrap_or_default()];
    let is_torn = strays.iter().any(|part| part.contains('@')) || url.path().contains("%40");
    if url.fragment().is_some() || is_torn {
        return Err(format!("its parts cannot be told apart; {ENCODE}"));
    }
    Ok(url)
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
        let url = whole_address(&text).map_err(|error| format!("{error}; {SHAPE}"))?;
        if url.path().trim_matches('/').is_empty() {
            return Err(format!("names no database; {SHAPE}"));
        }
        // The driver's own words may repeat what it could not read.
        let options = text
            .parse::<MySqlConnectOptions>()
            .map_err(|_| format!("it has parameters that cannot be used; {SHAPE}"))?;
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
        let url = whole_address(text).map_err(|error| format!("{error}; {SHAPE}"))?;
        let schemes = ["redis", "valkey", "unix", "redis+unix", "valkey+unix"];
        if !schemes.contains(&url.scheme()) {
            return Err(format!("not the address of a Redis; {SHAPE}"));
        }
        let is_number = |path: &str| path.chars().all(|c| c.is_ascii_digit());
        if url.has_host() && !is_number(url.path().trim_matches('/')) {
            return Err(format!("what follows the host must be the number of a database; {SHAPE}"));
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

/// An address that may be printed: passwords in it, also among its parameters, become `***`, and so
/// does a user who has none, for that may be a password in the wrong place.
fn without_password(mut url: Url) -> String {
    let is_masked = if url.password().is_some_and(|password| !password.is_empty()) {
        url.set_password(Some("***"))
    } else if url.username().is_empty() {
        Ok(())
    } else {
        url.set_username("***")
    };
    if is_masked.is_err() {
        return format!("{}://…", url.scheme());
    }
    url.set_query(None);
    url.to_string()
}

/// An address that is read only if it is used: it may be that of another program's server.
#[derive(Clone, Debug)]
pub struct UnreadUrl(SecretString);

impl UnreadUrl {
    /// Reads it.
    ///
    /// # Errors
    /// That it is not the address of a Redis.
    pub fn read(&self) -> Result<RedisUrl, String> {
        self.0.expose_secret().trim().parse()
    }
}

impl From<String> for UnreadUrl {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// Address of a page.
#[derive(Clone, PartialEq, Eq)]
pub struct PageUrl(Url);

impl PageUrl {
    /// What an HTTP client needs.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for PageUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const SHAPE: &str = "write it as http://HOST:5001/ready";
        let url = whole_address(text).map_err(|error| format!("{error}; {SHAPE}"))?;
        if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
            return Err(format!("not the address of a page; {SHAPE}"));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for PageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(self.0.clone()))
    }
}

impl fmt::Debug for PageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
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
        let mut url = whole_address(text).map_err(|error| format!("{error}; {SHAPE}"))?;
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
    use proptest::prelude::*;

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

    /// Whether any run of characters of a secret is shown that is long enough to be no accident.
    fn shows(text: &str, secret: &str) -> bool {
        let secret: Vec<char> = secret.chars().collect();
        secret.windows(6).any(|part| text.contains(&part.iter().collect::<String>()))
    }

    proptest! {
        #[test]
        fn no_part_of_a_password_is_shown_however_it_is_written(
            before in "[0-9]{0,4}",
            special in "[#/?@:;,+%&=\\\\ ]{0,3}",
            after in "[A-Z]{8,12}",
            scheme in "(redis|valkey|mysql|mysql\\+pymysql|mariadb|http|https|redis\\+unix|unix)",
            user in "[a-z]{0,6}",
            rest in "(h|h:1|h:1/0|h/d|h:3306/d|h/d\\?charset=utf8|)",
        ) {
            let password = format!("{before}{special}{after}");
            for text in [
                format!("{scheme}://{user}:{password}@{rest}"),
                format!("{scheme}://{password}@{rest}"),
                format!("{scheme}://{user}:{password}"),
                format!("{scheme}://{rest}?password={password}"),
            ] {
                let shown = [
                    text.parse::<DatabaseUrl>().map_or_else(|error| error, |url| format!("{url} {url:?}")),
                    text.parse::<RedisUrl>().map_or_else(|error| error, |url| format!("{url} {url:?}")),
                    text.parse::<PageUrl>().map_or_else(|error| error, |url| format!("{url} {url:?}")),
                    text.parse::<MonitorUrl>().map_or_else(|error| error, |url| format!("{url} {url:?}")),
                ];
                for shown in shown {
                    // Where nothing says that it is a password, it may be a database's name, or a host.
                    let is_told = (!rest.is_empty() && text.contains(&format!("@{rest}"))) || text.contains("?password");
                    prop_assert!(!is_told || !shows(&shown, &after), "{text}: {shown}");
                }
            }
        }
    }
}
