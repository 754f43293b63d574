//! What each failure of the database means.

use std::sync::Arc;

use sqlx::mysql::MySqlDatabaseError;

/// What there is to do about a failure of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The transaction lost against another: try it again.
    Retry,
    /// This server has stopped taking writes: close the connection and try another.
    Reconnect,
    /// The database cannot answer now; what was asked may or may not be done.
    Unavailable,
    /// The database refuses the values of this very row.
    Data,
    /// Wrong credentials, rights, or schema: a person has to change something.
    Configuration,
    /// Our own mistake.
    Bug,
}

impl Class {
    /// What to tell a person who asks why the database does not serve us; shows no detail.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Reconnect => "takes no writes now",
            Self::Configuration => "refuses our credentials or lacks our tables; see the log",
            _ => "cannot be reached",
        }
    }
}

/// A failure of the database, with what there is to do about it. Cheap to clone: all who share a
/// transaction learn of it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{source}")]
pub struct Error {
    /// What there is to do.
    pub class: Class,
    source: Arc<sqlx::Error>,
}

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        Self { class: classify(&source), source: Arc::new(source) }
    }
}

impl Error {
    /// Too many others want the same, again and again: ask later. `what` names what.
    #[must_use]
    pub fn contended(what: &str) -> Self {
        let source = sqlx::Error::Protocol(format!("others change {what} all the time"));
        Self { class: Class::Unavailable, source: Arc::new(source) }
    }

    /// The task that did the work has panicked.
    #[must_use]
    pub fn crashed() -> Self {
        Self { class: Class::Bug, source: Arc::new(sqlx::Error::WorkerCrashed) }
    }

    /// More waits already than can be written soon: ask later.
    #[must_use]
    pub fn overloaded() -> Self {
        sqlx::Error::Protocol("more waits already than can be written soon".to_owned()).into()
    }

    /// Whether a row could not be inserted because one with its key is there.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        matches!(&*self.source, sqlx::Error::Database(error) if error.is_unique_violation())
    }

    /// Whether a table or a column is missing: the schema is not what we ask for.
    #[must_use]
    pub fn lacks_schema(&self) -> bool {
        const NO_SUCH: [u16; 2] = [1054, 1146];
        self.number().is_some_and(|number| NO_SUCH.contains(&number))
    }

    /// The number that the database gave it, if it is the database that refused.
    #[must_use]
    pub fn number(&self) -> Option<u16> {
        match &*self.source {
            sqlx::Error::Database(inner) => {
                inner.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
            }
            _ => None,
        }
    }

    /// A row that a table should never hold. `what` names table, row and column.
    #[must_use]
    pub fn bad_row(what: String) -> Self {
        sqlx::Error::Decode(what.into()).into()
    }
}

/// What to do about an error of the driver. The numbers are those of MySQL 8.4 and MariaDB 10.11.
#[must_use]
pub fn classify(error: &sqlx::Error) -> Class {
    match error {
        sqlx::Error::Database(inner) => inner
            .try_downcast_ref::<MySqlDatabaseError>()
            .map_or(Class::Bug, |error| classify_number(error.number())),
        sqlx::Error::Io(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Class::Unavailable,
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => Class::Configuration,
        _ => Class::Bug,
    }
}

fn classify_number(number: u16) -> Class {
    match number {
        1213 | 1020 | 3572 | 3101 | 3100 | 1180 => Class::Retry,
        1290 | 1836 | 1792 | 1047 => Class::Reconnect,
        1406 | 1264 | 1265 | 1292 | 1366 | 1048 | 1411 | 1525 | 1690 | 3140 | 3819 | 4025 => {
            Class::Data
        }
        1044 | 1045 | 1142 | 1143 | 1049 | 1146 | 1054 | 1251 | 1698 | 2059 => Class::Configuration,
        1064 | 1153 | 1390 | 1364 | 1062 | 1136 => Class::Bug,
        _ => Class::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_number_has_its_class() {
        let table = [
            (1213, Class::Retry),
            (1205, Class::Unavailable),
            (1290, Class::Reconnect),
            (1836, Class::Reconnect),
            (1040, Class::Unavailable),
            (2013, Class::Unavailable),
            (1114, Class::Unavailable),
            (1406, Class::Data),
            (1366, Class::Data),
            (1045, Class::Configuration),
            (1146, Class::Configuration),
            (1064, Class::Bug),
        ];
        for (number, class) in table {
            assert_eq!(classify_number(number), class, "{number}");
        }
        assert_eq!(classify(&sqlx::Error::PoolTimedOut), Class::Unavailable);
    }
}
