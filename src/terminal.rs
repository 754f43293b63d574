//! What may be printed for a person, and how; and how a person is asked.

mod screen;

use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::Context;

pub use self::screen::Screen;

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
    show(text).map(drop)
}

/// Prints to standard output, and says whether anybody is there to read it.
///
/// # Errors
/// As for [`print()`].
pub fn show(text: &str) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("printing"),
    }
}

/// Whether there is a person to ask.
#[must_use]
pub fn can_ask() -> bool {
    std::io::stdin().is_terminal()
}

/// Asks a person a question, and takes anything but a yes for a no. Waiting here holds nobody up
/// where nothing else runs.
///
/// # Errors
/// When the answer cannot be read.
pub fn confirm(question: &str) -> anyhow::Result<bool> {
    eprint!("{question} [y/N] ");
    std::io::stderr().flush().context("asking")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}

/// Whether standard output takes colours: a terminal does, unless `NO_COLOR` asks for none (see
/// <https://no-color.org>) or it is a dumb one.
#[must_use]
pub fn takes_colours() -> bool {
    let variable = |name| std::env::var_os(name).unwrap_or_default();
    std::io::stdout().is_terminal() && variable("NO_COLOR").is_empty() && variable("TERM") != "dumb"
}
