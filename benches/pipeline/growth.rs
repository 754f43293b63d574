//! Whether a full database is slower than an empty one.

use super::drain::backlog;
use super::ground::Ground;
use super::history;
use super::table::{Table, Target};

/// Windows of each measured backlog, and of the one before it that warms everything up.
const WINDOWS: (usize, usize) = (3_000, 1_000);

/// Measures the rate when empty, and with ten million events stored.
pub async fn measure(ground: &Ground, table: &mut Table) {
    let (measured, warm_up) = WINDOWS;
    let database = ground.database().await;
    backlog(ground, &database, "empty-warm", warm_up, 1).await;
    let empty = backlog(ground, &database, "empty", measured, 1).await;
    database.drop().await;
    let database = history::stored(ground).await;
    backlog(ground, &database, "full-warm", warm_up, 1).await;
    let full = backlog(ground, &database, "full", measured, 1).await;
    // The next scenario asks it questions.
    ground.history.lock().await.replace(database);
    table.add("growth_ratio", full / empty, "of empty", Target::AtLeast(0.9));
}
