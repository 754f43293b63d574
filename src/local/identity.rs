//! Which product and version a server program is, and whether it may open what another one wrote.

use std::fmt;
use std::path::Path;

use anyhow::{Context, bail};

use super::Engine;

/// Everything that we know how to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Product {
    Redis,
    Valkey,
    MySql,
    MariaDb,
}

impl Product {
    const ALL: [Self; 4] = [Self::Redis, Self::Valkey, Self::MySql, Self::MariaDb];

    fn name(self) -> &'static str {
        match self {
            Self::Redis => "Redis",
            Self::Valkey => "Valkey",
            Self::MySql => "MySQL",
            Self::MariaDb => "MariaDB",
        }
    }

    /// The part of a version within which a product opens its own data in both directions.
    fn series(self, version: Version) -> (u32, u32) {
        match self {
            Self::Redis | Self::Valkey => (version.major, 0),
            Self::MySql | Self::MariaDb => (version.major, version.minor),
        }
    }
}

impl From<Engine> for Product {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::MySql => Self::MySql,
            Engine::MariaDb => Self::MariaDb,
        }
    }
}

/// Version of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// Reads the three numbers at the start of `text`, and ignores what follows them.
    fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
        let mut numbers = text.get(..end)?.split('.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self { major: next()?, minor: next()?, patch: next()? })
    }
}

/// A product in a version, written as `MariaDB 10.11.14`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) product: Product,
    pub(super) version: Version,
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.product.name(), self.version)
    }
}

impl Identity {
    /// Reads what a program prints about itself when it is asked for `--version`.
    ///
    /// MySQL and MariaDB print `mysqld  Ver 10.11.14-MariaDB for …`; either may be called `mysqld`.
    /// Redis prints `Redis server v=7.0.15 sha=…`, Valkey the same with its own name or with none.
    pub(super) fn from_version_output(output: &str) -> Option<Self> {
        let mut words = output.split_whitespace();
        if let Some(version) = words.clone().find_map(|word| word.strip_prefix("v=")) {
            let product =
                if output.starts_with("Redis") { Product::Redis } else { Product::Valkey };
            return Some(Self { product, version: Version::parse(version)? });
        }
        let version = words.find(|word| *word == "Ver").and(words.next())?;
        let product = if version.contains("MariaDB") { Product::MariaDb } else { Product::MySql };
        Some(Self { product, version: Version::parse(version)? })
    }

    /// Reads the record that [`fmt::Display`] writes.
    fn from_record(record: &str) -> Option<Self> {
        let (name, version) = record.trim_end().split_once(' ')?;
        let product = Product::ALL.into_iter().find(|product| product.name() == name)?;
        Some(Self { product, version: Version::parse(version)? })
    }

    /// Refuses to let this program open data that another product, or a later version, wrote.
    pub(super) fn check_record(self, record: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(record).with_context(|| {
            format!("{} should say which product wrote the data beside it", record.display())
        })?;
        let Some(recorded) = Self::from_record(&text) else {
            bail!("{} names no product and version that we know: {text:?}", record.display());
        };
        if !self.may_open(recorded) {
            let place = record.parent().unwrap_or(record).display();
            bail!(
                "the data in {place} was written by {recorded}, and {self} must not open it: put \
                 {recorded} or later first on PATH, or use another data directory"
            );
        }
        Ok(())
    }

    fn may_open(self, recorded: Self) -> bool {
        self.product == recorded.product
            && self.product.series(self.version) >= self.product.series(recorded.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(record: &str) -> Identity {
        Identity::from_record(record).unwrap()
    }

    #[test]
    fn each_product_is_known_by_what_it_prints() {
        let table = [
            (
                "mysqld  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)",
                "MariaDB 10.11.19",
            ),
            ("mariadbd from 11.8.3-MariaDB, client 15.2 Ver 11.8.3-MariaDB", "MariaDB 11.8.3"),
            ("/usr/sbin/mysqld  Ver 9.7.0-1 for Linux on x86_64 ((Debian))", "MySQL 9.7.0"),
            ("mysqld  Ver 8.4.5 for Linux on aarch64 (MySQL Community Server)", "MySQL 8.4.5"),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", "Redis 7.0.15"),
            ("Valkey server v=8.1.1 sha=00000000:0 malloc=jemalloc", "Valkey 8.1.1"),
            ("Server v=7.2.5 sha=00000000:0 malloc=jemalloc", "Valkey 7.2.5"),
        ];
        for (output, expected) in table {
            let found = Identity::from_version_output(output).unwrap();
            assert_eq!(found.to_string(), expected);
            assert_eq!(identity(&format!("{expected}\n")), found);
        }
        for output in ["", "Ver", "mysqld Ver x", "Redis server v=7", "command not found"] {
            assert_eq!(Identity::from_version_output(output), None, "{output}");
        }
    }

    #[test]
    fn data_is_opened_by_the_product_that_wrote_it_and_no_earlier_series() {
        let table = [
            ("MariaDB 10.11.2", "MariaDB 10.11.19", true),
            ("MariaDB 11.4.1", "MariaDB 10.11.19", true),
            ("MariaDB 10.6.9", "MariaDB 10.11.1", false),
            ("MySQL 9.7.0", "MariaDB 10.11.19", false),
            ("MariaDB 10.11.19", "MySQL 8.4.0", false),
            ("Redis 7.0.1", "Redis 7.2.4", true),
            ("Redis 6.2.1", "Redis 7.0.0", false),
            ("Valkey 8.1.0", "Redis 7.0.0", false),
        ];
        for (program, recorded, allowed) in table {
            let may = identity(program).may_open(identity(recorded));
            assert_eq!(may, allowed, "{program} on the data of {recorded}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("ENGINE");
        std::fs::write(&record, "MySQL 9.7.0\n").unwrap();
        let refusal = identity("MariaDB 10.11.19").check_record(&record).unwrap_err().to_string();
        assert!(refusal.contains("written by MySQL 9.7.0"), "{refusal}");
        assert!(refusal.contains("another data directory"), "{refusal}");
        std::fs::write(&record, "?").unwrap();
        assert!(identity("MariaDB 10.11.19").check_record(&record).is_err());
    }
}
