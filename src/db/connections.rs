//! How many connections a pool has: it knows by itself, so that no server is asked.

use sqlx::MySqlPool;

/// Connections to a database.
pub type Pool = MySqlPool;

/// The connections of a pool at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Those that are open.
    pub open: u32,
    /// Those of them that nobody uses.
    pub idle: u32,
    /// Most that it opens.
    pub most: u32,
}

/// How many connections a pool has now.
#[must_use]
pub fn connections(pool: &MySqlPool) -> Connections {
    let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX);
    Connections { open: pool.size(), idle, most: pool.options().get_max_connections() }
}
