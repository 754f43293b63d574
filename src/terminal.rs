//! What may be printed for a person, and how.

use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::Context;

/// Text on one line, without anything that a terminal obeys. What strangers wrote must not command
/// it.
#[must_use]
pub fn plain(text: &str) -> String {
    printable(text, |_| false)
}

/// Text whose control characters are replaced, except for those to keep.
pub fn printable(text: &str, keep: impl Fn(char) -> bool) -> String {
    let shown = |c: char| if c.is_control() && !keep(c) { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).collect()
}

/// Prints to standard output. A reader that has seen enough, such as `head`, is no failure.
///
/// # Errors
/// Any other failure to write.
pub fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("printing"),
        _ => Ok(()),
    }
}

/// Whether standard output takes colours: a terminal does, unless `NO_COLOR` asks for none (see
/// <https://no-color.org>) or it is a dumb one.
#[must_use]
pub fn takes_colours() -> bool {
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    std::io::stdout().is_terminal() && variable("NO_COLOR").is_empty() && variable("TERM") != "dumb"
}
