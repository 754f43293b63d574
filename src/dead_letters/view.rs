//! How dead letters look: a table and a page for people, JSON for programs.
//!
//! What a letter holds was written by strangers. For people, control characters are replaced, so
//! that no message can command their terminal.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::{Map, Value, json};

use crate::stream::{DeadLetter, StreamId};
use crate::terminal::{plain, printable};
use crate::wire::Timestamp;

/// Longest reason in the table, in characters; `show` has it whole.
const REASON_CHARS: usize = 60;
/// Where a fact is not known.
const UNKNOWN: &str = "-";

/// The table of some letters.
#[must_use]
pub fn table(letters: &[DeadLetter]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_header(["letter", "when", "stream", "message", "reason", "bytes"]);
    for column in table.column_iter_mut().skip(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for letter in letters {
        table.add_row([
            letter.id.to_string(),
            when(letter),
            known(&letter.stream),
            or_unknown(letter.original_id),
            cut(&known(&letter.reason)),
            letter.size_bytes.to_string(),
        ]);
    }
    table
}

/// Everything about one letter.
#[must_use]
pub fn whole(letter: &DeadLetter) -> String {
    let written = letter.original_id.and_then(time).map(|time| format!(", written {time}"));
    let attempts =
        letter.attempts.map(|attempts| format!("{attempts} (times that a relay read it)"));
    let mut text = String::new();
    for (name, value) in [
        ("letter", letter.id.to_string()),
        ("when", when(letter)),
        ("stream", known(&letter.stream)),
        ("message", or_unknown(letter.original_id) + &written.unwrap_or_default()),
        ("attempts", or_unknown(attempts)),
        ("first", known(&letter.first_at)),
        ("window", or_unknown(letter.window_uuid)),
        ("slot", or_unknown(letter.slot)),
        ("relay", known(&letter.consumer)),
        ("reason", known(&letter.reason)),
        ("bytes", letter.size_bytes.to_string()),
    ] {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<9} {value}");
    }
    for (name, value) in &letter.fields {
        let value = printable(&String::from_utf8_lossy(value), |c| c == '\n' || c == '\t');
        let _ = write!(text, "\n{}:\n{value}\n", plain(name));
    }
    text
}

/// One JSON object per letter and line, without the messages.
///
/// # Errors
/// Never in practice.
pub fn json_lines(letters: &[DeadLetter]) -> serde_json::Result<String> {
    letters.iter().map(|letter| line(&facts(letter).into())).collect()
}

/// One letter with its message, as a JSON object.
///
/// # Errors
/// Never in practice.
pub fn json_whole(letter: &DeadLetter) -> serde_json::Result<String> {
    let payload = letter.payload();
    let text = payload.map(String::from_utf8_lossy);
    let others = letter.fields.iter().filter(|(name, _)| name != "payload");
    let others: Map<String, Value> =
        others.map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into())).collect();
    let mut object = facts(letter);
    object.insert("payload".to_owned(), json!(text));
    object.insert("utf8".to_owned(), json!(payload.map(|bytes| str::from_utf8(bytes).is_ok())));
    let base64 = payload.map(|bytes| BASE64_STANDARD.encode(bytes));
    object.insert("payload_base64".to_owned(), json!(base64));
    object.insert("other_fields".to_owned(), others.into());
    line(&object.into())
}

fn facts(letter: &DeadLetter) -> Map<String, Value> {
    let facts = [
        ("id", json!(letter.id.to_string())),
        ("at", json!(letter.at)),
        ("stream", json!(letter.stream)),
        ("original_id", json!(letter.original_id.map(|id| id.to_string()))),
        ("original_at", json!(letter.original_id.and_then(time))),
        ("attempts", json!(letter.attempts)),
        ("first_at", json!(Some(&letter.first_at).filter(|at| !at.is_empty()))),
        ("window_uuid", json!(letter.window_uuid)),
        ("slot", json!(letter.slot)),
        ("consumer", json!(letter.consumer)),
        ("reason", json!(letter.reason)),
        ("size_bytes", json!(letter.size_bytes)),
    ];
    facts.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

fn line(value: &Value) -> serde_json::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

/// When a letter was set aside: as the relay says, else by its id.
fn when(letter: &DeadLetter) -> String {
    match (letter.at.as_str(), time(letter.id)) {
        ("", Some(time)) => time.to_string(),
        (at, _) => known(at),
    }
}

/// The time within an id.
fn time(id: StreamId) -> Option<Timestamp> {
    Some(id.written_at()).filter(|at| Timestamp::is_usable(at.micros()))
}

fn or_unknown(value: Option<impl ToString>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |value| value.to_string())
}

fn known(text: &str) -> String {
    if text.is_empty() { UNKNOWN.to_owned() } else { plain(text) }
}

/// The beginning of a text that is too long for a table.
fn cut(text: &str) -> String {
    match text.char_indices().nth(REASON_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(reason: &str, payload: &[u8]) -> DeadLetter {
        DeadLetter {
            id: "1795314091883-0".parse().unwrap(),
            original_id: "1795314091881-0".parse().ok(),
            reason: reason.to_owned(),
            fields: vec![("payload".to_owned(), payload.to_vec())],
            ..DeadLetter::default()
        }
    }

    #[test]
    fn a_message_does_not_command_the_terminal() {
        let hostile = letter("a\x1b[2Jb\nc", b"\x1b]0;x\x07\r\nsecond line\xc2\x9b");
        for text in [table(std::slice::from_ref(&hostile)).to_string(), whole(&hostile)] {
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        }
        assert!(whole(&hostile).contains("\nsecond line"));
    }

    #[test]
    fn a_long_reason_is_cut_in_the_table_only() {
        let long = letter(&"ñ".repeat(200), b"{}");
        assert!(table(std::slice::from_ref(&long)).to_string().contains("ñ…"));
        assert!(whole(&long).contains(&long.reason));
    }

    #[test]
    fn json_tells_text_from_bytes() {
        let parse = |letter| serde_json::from_str::<Value>(&json_whole(&letter).unwrap()).unwrap();
        let object = parse(letter("", b"\xff{"));
        assert_eq!(object["utf8"], false);
        assert_eq!(object["payload"], "\u{fffd}{");
        assert_eq!(object["payload_base64"], "/3s=");
        assert_eq!(object["original_at"], "2026-11-22T02:21:31.881000Z");
        assert_eq!(parse(letter("", b"{}"))["utf8"], true);
        assert_eq!(parse(DeadLetter::default())["payload"], Value::Null);
    }

    #[test]
    fn an_id_may_hold_any_number() {
        assert_eq!(time(StreamId { millis: u64::MAX, sequence: 0 }), None);
        assert_eq!(when(&letter("", b"")), "2026-11-22T02:21:31.883000Z");
    }
}
