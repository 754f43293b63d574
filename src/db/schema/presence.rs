//! What a schema holds, as the database says.

use super::statements::Thing;
use crate::db::{Connection, Error};

/// Whether everything is there that a statement leaves.
pub(super) async fn is_there(connection: &mut Connection, things: &[Thing]) -> Result<bool, Error> {
    for thing in things {
        let (sql, names) = match thing {
            Thing::Table(name) => (
                "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() \
                 AND TABLE_NAME = ? AND TABLE_TYPE = 'BASE TABLE'",
                vec![name],
            ),
            Thing::View(name) => (
                "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() \
                 AND TABLE_NAME = ? AND TABLE_TYPE = 'VIEW'",
                vec![name],
            ),
            Thing::Column(table, name) => (
                "SELECT COUNT(*) FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() \
                 AND TABLE_NAME = ? AND COLUMN_NAME = ?",
                vec![table, name],
            ),
            Thing::Key(table, name) => (
                "SELECT COUNT(*) FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = DATABASE() \
                 AND TABLE_NAME = ? AND INDEX_NAME = ?",
                vec![table, name],
            ),
        };
        let query = names
            .into_iter()
            .fold(sqlx::query_scalar::<_, i64>(sql), |query, name| query.bind(name.as_str()));
        if query.fetch_one(&mut *connection).await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}
