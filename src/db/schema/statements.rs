//! What a migration is made of: its statements, and what each of them leaves in a schema.
//!
//! Pure. It reads our own files, which end each statement with a `;` at the end of a line.

/// A statement of a migration, without the comments around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement(pub(super) String);

/// Something that a statement leaves behind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    /// A table of this name.
    Table(String),
    /// A view of this name.
    View(String),
    /// A column, after its table.
    Column(String, String),
    /// A key, after its table.
    Key(String, String),
}

/// Cuts a migration into its statements, in order.
pub(super) fn statements(migration: &str) -> Vec<Statement> {
    let code = migration.lines().map(|line| line.split("--").next().unwrap_or(line).trim_end());
    let code: Vec<&str> = code.filter(|line| !line.trim().is_empty()).collect();
    let text = code.join("\n") + "\n";
    let statements = text.split(";\n").map(str::trim).filter(|text| !text.is_empty());
    statements.map(|text| Statement(text.to_owned())).collect()
}

impl Statement {
    /// As the database takes it.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Its first words, which say what it is about.
    pub(super) fn title(&self) -> String {
        self.words().take(3).collect::<Vec<_>>().join(" ")
    }

    /// The table that it is about, where its third word is one.
    pub(super) fn table(&self) -> &str {
        self.words().nth(2).unwrap_or_default()
    }

    /// The table or view that it makes, unless it takes one for its own that is there already.
    pub(super) fn makes(&self) -> Option<Thing> {
        let words: Vec<&str> = self.words().take(4).collect();
        match words.as_slice() {
            ["CREATE", "TABLE", "IF", ..] => None,
            ["CREATE", "TABLE", name, ..] => Some(Thing::Table((*name).to_owned())),
            ["CREATE", "VIEW", name, ..] => Some(Thing::View((*name).to_owned())),
            _ => None,
        }
    }

    /// Everything that is there once it is done.
    pub(super) fn leaves(&self) -> Vec<Thing> {
        let mut things: Vec<Thing> = self.makes().into_iter().collect();
        let words: Vec<&str> = self.words().take(3).collect();
        let [what, "TABLE", table] = words.as_slice() else { return things };
        let parts: Vec<&str> = match *what {
            "ALTER" => self.0.split("ADD ").skip(1).collect(),
            "CREATE" if !things.is_empty() && !self.0.contains(" LIKE ") => {
                self.0.lines().skip(1).map(str::trim).collect()
            }
            _ => Vec::new(),
        };
        things.extend(parts.iter().filter_map(|part| left_by(table, part)));
        things
    }

    /// Whether it only puts rows in.
    pub(super) fn is_insert(&self) -> bool {
        self.words().next() == Some("INSERT")
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.0.split([' ', '\n', '(']).filter(|word| !word.is_empty())
    }
}

/// What one part of a table's definition leaves: a column or a key of it.
fn left_by(table: &str, part: &str) -> Option<Thing> {
    let mut words = part.split([' ', '(']).filter(|word| !word.is_empty());
    let column = |name: &str| Thing::Column(table.to_owned(), name.to_owned());
    let key = |name: &str| Thing::Key(table.to_owned(), name.to_owned());
    // A condition is no column, whatever it begins with.
    if part.starts_with('(') {
        return None;
    }
    match (words.next()?, words.next()?) {
        ("COLUMN", name) => Some(column(name)),
        ("UNIQUE", "KEY") => words.next().map(key),
        ("KEY", name) => Some(key(name)),
        // Names of ours are in lower case, words of SQL are not.
        (name, _) if name.starts_with(|first: char| first.is_ascii_lowercase()) => {
            Some(column(name))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{MONITOR_SCHEMA, PAYMENTS_SCHEMA};

    #[test]
    fn a_migration_is_its_statements_without_comments() {
        let found = statements(
            "-- One; two.\nCREATE TABLE a (\n    -- A column.\n    id INT NOT NULL, -- its key\n    KEY a_id (id)\n);\n\n\
             INSERT INTO a (id)\nVALUES (1);\n",
        );
        let texts: Vec<&str> = found.iter().map(Statement::text).collect();
        assert_eq!(
            texts,
            [
                "CREATE TABLE a (\n    id INT NOT NULL,\n    KEY a_id (id)\n)",
                "INSERT INTO a (id)\nVALUES (1)"
            ]
        );
        assert_eq!(found[0].title(), "CREATE TABLE a");
        assert!(found[1].is_insert() && !found[0].is_insert());
    }

    #[test]
    fn a_statement_says_what_it_leaves() {
        let thing = |text: &str| Statement(text.to_owned()).leaves();
        let column = |name: &str| Thing::Column("a".to_owned(), name.to_owned());
        let key = |name: &str| Thing::Key("a".to_owned(), name.to_owned());
        assert_eq!(
            thing(
                "CREATE TABLE a (\n    id INT NOT NULL,\n    UNIQUE KEY u (id),\n    CONSTRAINT c CHECK\n        (id > 0)\n)"
            ),
            [Thing::Table("a".to_owned()), column("id"), key("u")]
        );
        assert_eq!(
            thing(
                "ALTER TABLE a\n    MODIFY id INT NULL,\n    ADD COLUMN b INT NULL,\n    DROP KEY u,\n    ADD UNIQUE KEY v (b), ADD KEY w (id, b)"
            ),
            [column("b"), key("v"), key("w")]
        );
        assert_eq!(
            thing("CREATE VIEW v AS\nSELECT\n    a.id, a.b\nFROM a"),
            [Thing::View("v".to_owned())]
        );
        assert_eq!(thing("CREATE TABLE b LIKE a"), [Thing::Table("b".to_owned())]);
        for none in [
            "CREATE TABLE IF NOT EXISTS a (\n id INT)",
            "CREATE OR REPLACE VIEW v AS",
            "UPDATE a SET b = 1",
        ] {
            assert_eq!(thing(none), [], "{none}");
        }
    }

    /// Whoever adds a migration that cannot be begun again after any of its statements learns it here.
    #[test]
    fn each_statement_of_ours_can_be_found_done_or_done_again() {
        for migration in PAYMENTS_SCHEMA.iter().chain(MONITOR_SCHEMA.iter()) {
            let sql = migration.sql.as_str();
            assert!(!sql.contains("/*") && !sql.contains('#'), "comments begin with two dashes");
            for statement in statements(sql) {
                let text = statement.text();
                let again = text.starts_with("UPDATE ")
                    || text.starts_with("CREATE OR REPLACE VIEW ")
                    || text.starts_with("CREATE TABLE IF NOT EXISTS ");
                let is_found = statement.is_insert() || !statement.leaves().is_empty();
                assert!(again || is_found, "{}: {text}", migration.version);
            }
        }
    }
}
