//! A version of a schema that is still to be done, or begun again.

use sqlx::migrate::Migration;

use super::statements::Statement;

/// A version that is not done.
pub(super) struct Pending<'s> {
    /// As it is embedded.
    pub(super) migration: &'s Migration,
    /// Its statements, in order.
    pub(super) statements: Vec<Statement>,
    /// What must be done before these, because of what was there before us.
    pub(super) before: Vec<Statement>,
    /// Whether some of its statements may have been done.
    pub(super) is_begun: bool,
    /// The statement that the database refused when it was tried last, so that it is not done.
    pub(super) refused: Option<usize>,
}
