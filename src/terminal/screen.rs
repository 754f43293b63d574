//! A picture that is shown again and again: in place on a terminal, otherwise one after the other.
//!
//! On a terminal it has the alternate screen to itself, as an editor has, so that what was there
//! before is there again afterwards. Each picture is written at once and over the last one, and
//! nothing is cleared before, so that it does not flicker.

use std::fmt::Write;
use std::io::IsTerminal;

use console::{Term, truncate_str};

use super::show;

/// Switches to the alternate screen and hides the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// Undoes that.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Goes to the upper left corner; the terminal is to show nothing of what follows until [`END`].
const BEGIN: &str = "\x1b[?2026h\x1b[H";
/// Clears what an earlier, longer picture has left below.
const END: &str = "\x1b[J\x1b[?2026l";
/// Clears the rest of a line.
const REST_OF_LINE: &str = "\x1b[K";
/// Lines and columns of a terminal that does not say.
const USUAL_SIZE: (u16, u16) = (24, 80);

/// Where pictures are shown. Dropping it restores the terminal.
#[derive(Debug)]
pub struct Screen {
    /// None where there is no terminal, or one that cannot go back.
    terminal: Option<Term>,
}

impl Screen {
    /// Takes hold of standard output.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open() -> anyhow::Result<Self> {
        let is_dumb = std::env::var_os("TERM").is_none_or(|name| name == "dumb");
        let is_terminal = std::io::stdout().is_terminal() && !is_dumb;
        let screen = Self { terminal: is_terminal.then(Term::stdout) };
        if is_terminal {
            show(ENTER)?;
        }
        Ok(screen)
    }

    /// Whether pictures replace each other.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.terminal.is_some()
    }

    /// Shows a picture, and says whether anybody is there to see it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn show(&self, picture: &str) -> anyhow::Result<bool> {
        match &self.terminal {
            Some(terminal) => {
                show(&in_place(picture, terminal.size_checked().unwrap_or(USUAL_SIZE)))
            }
            None => show(picture),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal.is_some() {
            // Whoever cannot be told any more has no terminal to restore.
            show(LEAVE).ok();
        }
    }
}

/// A picture over the last one, cut to lines and columns.
fn in_place(picture: &str, (lines, columns): (u16, u16)) -> String {
    let (lines, columns) = (usize::from(lines), usize::from(columns));
    let all: Vec<&str> = picture.trim_end().lines().collect();
    let fits = all.len() <= lines;
    let shown = if fits { all.len() } else { lines.saturating_sub(1) };
    let more = format!("… {} more lines: enlarge the terminal", all.len() - shown);
    let more = (!fits).then_some(more.as_str());
    let mut text = BEGIN.to_owned();
    for (number, line) in all[..shown].iter().copied().chain(more).enumerate() {
        let line_break = if number == 0 { "" } else { "\r\n" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{line_break}{}{REST_OF_LINE}", truncate_str(line, columns, "…"));
    }
    text + END
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal shows that obeys.
    fn lines(picture: &str, size: (u16, u16)) -> Vec<String> {
        let text = in_place(picture, size);
        let inner = text.strip_prefix(BEGIN).and_then(|text| text.strip_suffix(END)).unwrap();
        inner
            .split("\r\n")
            .map(|line| line.strip_suffix(REST_OF_LINE).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_picture_is_cut_to_the_terminal() {
        assert_eq!(lines("one\ntwo\n", (24, 80)), ["one", "two"]);
        assert_eq!(lines("a\nb\nc\n", (3, 80)), ["a", "b", "c"]);
        assert_eq!(
            lines("a\nb\nc\nd\n", (3, 80)),
            ["a", "b", "… 2 more lines: enlarge the terminal"]
        );
        assert_eq!(lines("0123456789", (3, 5)), ["0123…"]);
        assert_eq!(lines("a\nb", (1, 3)), ["… …"]);
    }

    #[test]
    fn colours_take_no_room_and_end_where_the_line_is_cut() {
        let line = "\x1b[32m.\x1b[0m\x1b[1;41mX\x1b[0m\x1b[32m.\x1b[0m";
        assert_eq!(lines(line, (3, 3)), [line]);
        let cut = lines(line, (3, 2)).remove(0);
        assert_eq!(console::strip_ansi_codes(&cut), ".…");
        assert!(cut.ends_with("\x1b[0m"), "{cut:?}");
    }
}
