//! How explained windows look: a line of glyphs for the slots, a sentence for each that is unusual,
//! and the totals.

use std::collections::HashMap;
use std::fmt::Write;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::account::{Account, Said};
use super::ask::Window;
use super::conclusion::conclusion;
use crate::terminal::plain;
use crate::verdict::Verdict;

/// Slots on one line.
const SLOTS_PER_LINE: usize = 100;
/// Sentences about one window at the most; with `--json` there are all.
const MOST_SENTENCES: usize = 30;
/// Slots, or runs of slots, that one sentence names at the most.
const MOST_RUNS: usize = 12;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Whether the terminal takes colours. Nothing is told by colour alone.
    pub in_colour: bool,
}

impl Style {
    /// A window: what it is, its slots, and a sentence for each unusual one that is to be shown.
    pub fn window(self, window: &Window, shows: impl Fn(Verdict) -> bool) -> String {
        let mut text = format!(
            "{}  {}  {} to {}  {}, {} of {} arrived\n",
            window.window_uuid,
            plain(&window.service),
            window.window_from,
            window.window_to,
            plain(&window.status),
            window.received_reports,
            window.expected_reports,
        );
        if !window.events_kept {
            text.push_str("  its events are no longer kept: it is too old to be explained\n");
        }
        for line in window.slots.chunks(SLOTS_PER_LINE) {
            let glyphs: String = line.iter().map(|slot| self.glyph(slot.verdict)).collect();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {glyphs}");
        }
        let sentences = sentences(window, shows);
        for (sentence, slots) in sentences.iter().take(MOST_SENTENCES) {
            let _ = writeln!(text, "  {}: {}", named(slots), plain(sentence));
        }
        if let Some(more) = sentences.len().checked_sub(MOST_SENTENCES).filter(|more| *more > 0) {
            let _ = writeln!(text, "  and {more} more sentences; --json has them all");
        }
        text + "\n"
    }

    /// What all windows add up to, and whether anything is left unexplained.
    #[must_use]
    pub fn totals(self, account: &Account) -> String {
        let counts = account
            .verdicts
            .iter()
            .map(|(verdict, slots)| format!("{} {slots} {verdict}", self.glyph(*verdict)));
        let counts: Vec<String> = counts.collect();
        format!("{}\n{}\n{}\n", counts.join("   "), ledgers(account), conclusion(account))
    }

    fn glyph(self, verdict: Verdict) -> String {
        let (glyph, colour) = look(verdict);
        if self.in_colour { format!("\x1b[{colour}m{glyph}\x1b[0m") } else { glyph.to_string() }
    }
}

/// The glyph of a verdict, and its colour as terminals number them.
const fn look(verdict: Verdict) -> (char, &'static str) {
    match verdict {
        Verdict::OnTime => ('.', "32"),
        Verdict::Late => ('L', "33"),
        Verdict::Pending => ('_', "2"),
        Verdict::NeverSent => ('-', "36"),
        Verdict::SenderDown => ('v', "31"),
        Verdict::Unconfirmed => ('~', "33"),
        Verdict::InTransit => ('>', "34"),
        Verdict::DeadLettered => ('!', "35"),
        Verdict::Phantom => ('+', "35"),
        Verdict::Unknown => ('?', "7"),
        Verdict::Lost => ('X', "1;41"),
    }
}

/// Each sentence once, with the slots that it is about, in the order of the first of them.
fn sentences(window: &Window, shows: impl Fn(Verdict) -> bool) -> Vec<(&str, Vec<u32>)> {
    let mut sentences: Vec<(&str, Vec<u32>)> = Vec::new();
    let mut places = HashMap::new();
    for slot in window.slots.iter().filter(|slot| shows(slot.verdict)) {
        let Some(sentence) = slot.explanation.as_deref() else { continue };
        let place = *places.entry(sentence).or_insert(sentences.len());
        match sentences.get_mut(place) {
            Some((_, slots)) => slots.push(slot.slot),
            None => sentences.push((sentence, vec![slot.slot])),
        }
    }
    sentences
}

/// Slots as a person writes them: `slots 3, 10-15`.
fn named(slots: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for slot in slots {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*slot) => *last = *slot,
            _ => runs.push((*slot, *slot)),
        }
    }
    let shown = runs.iter().take(MOST_RUNS).map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    });
    let shown: Vec<String> = shown.collect();
    let more: u32 = runs.iter().skip(MOST_RUNS).map(|(first, last)| last - first + 1).sum();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let word = if slots.len() == 1 { "slot" } else { "slots" };
    format!("{word} {}{more}", shown.join(", "))
}

/// Both ledgers against each other.
fn ledgers(account: &Account) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["audit", "monitor saw it", "did not see it"]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (said, name) in
        [(Said::Sent, "sent"), (Said::NotSent, "not sent"), (Said::Nothing, "cannot say")]
    {
        let cells = [true, false].map(|is_seen| account.ledgers.get(&(said, is_seen)));
        if said != Said::Nothing || cells != [None, None] {
            let [seen, unseen] = cells.map(|slots| slots.copied().unwrap_or(0).to_string());
            table.add_row([name.to_owned(), seen, unseen]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLAIN: Style = Style { in_colour: false };

    /// A window with these verdicts, each with a sentence unless that is empty.
    fn window(slots: &[(&str, &str)]) -> Window {
        let slots = slots.iter().zip(0..).map(|((verdict, sentence), slot)| {
            let explanation = Some(sentence).filter(|sentence| !sentence.is_empty());
            let sent = ["on_time", "late", "lost"].contains(verdict);
            json!({"slot": slot, "verdict": verdict, "explanation": explanation,
                   "audit": sent.then(|| json!({"sent_to_queue": true}))})
        });
        serde_json::from_value(json!({
            "window_uuid": "6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10", "service": "payments-a",
            "status": "alert", "window_from": "2026-11-21T10:00:00Z", "tick_seconds": 5,
            "window_to": "2026-11-21T10:00:40Z", "expected_reports": 8, "received_reports": 2,
            "audit": "known", "slots": slots.collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    #[test]
    fn a_window_is_its_line_of_slots_and_its_sentences() {
        let (omitted, down) = (("never_sent", "omitted"), ("sender_down", "was\x1b down"));
        let window = window(&[
            ("on_time", ""),
            omitted,
            ("late", "61 s late"),
            down,
            down,
            down,
            omitted,
            ("pending", ""),
        ]);
        let expected = "6f1c1f0e-5f0c-4f43-9a55-0d2b1f2a7f10  payments-a  2026-11-21T10:00:00Z to \
            2026-11-21T10:00:40Z  alert, 2 of 8 arrived\n  .-Lvvv-_\n  slots 1, 6: omitted\n  \
            slot 2: 61 s late\n  slots 3-5: was\u{fffd} down\n\n";
        assert_eq!(PLAIN.window(&window, |_| true), expected);
        let late = PLAIN.window(&window, |verdict| verdict == Verdict::Late);
        assert!(late.contains(".-Lvvv-_") && late.contains("slot 2: 61 s late"), "{late}");
        assert!(!late.contains("omitted") && !late.contains("down"), "{late}");
    }

    #[test]
    fn a_long_window_is_wrapped_and_its_sentences_are_limited() {
        let sentences: Vec<String> = (0..230).map(|slot| format!("late {slot}")).collect();
        let slots: Vec<_> = sentences.iter().map(|said| ("late", said.as_str())).collect();
        let text = PLAIN.window(&window(&slots), |_| true);
        assert_eq!(text.matches("\n  LLL").count(), 3);
        assert_eq!(text.matches("\n  slot ").count(), MOST_SENTENCES);
        assert!(text.ends_with("and 200 more sentences; --json has them all\n\n"), "{text}");
    }

    #[test]
    fn slots_are_named_as_a_person_writes_them() {
        assert_eq!(named(&[7]), "slot 7");
        assert_eq!(named(&[0, 1, 4, 6, 7, 8, 9]), "slots 0, 1, 4, 6-9");
        let alternating: Vec<u32> = (0..30).map(|slot| slot * 2).collect();
        assert!(named(&alternating).ends_with("20, 22 and 18 more"), "{}", named(&alternating));
        assert_eq!(named(&[u32::MAX - 1, u32::MAX]), "slots 4294967294, 4294967295");
    }

    #[test]
    fn the_totals_conclude() {
        let conclude = |slots: &[(&str, &str)]| {
            let mut account = Account::default();
            account.add(&window(slots));
            (PLAIN.totals(&account), account.exit_code())
        };
        let (well, late) = (("on_time", ""), ("late", "x"));
        let table = [
            (&[well, late][..], "No heartbeat is missing.", 0),
            (&[well, ("never_sent", "x")], "Every missing heartbeat is explained: 1 of 1.", 0),
            (&[well, ("unknown", "x")], "1 slot is not judged: unknown.", 2),
            (&[("lost", "x"), ("lost", "x")], "2 slots are unexplained: lost.", 1),
            (
                &[("lost", "x"), ("unknown", "x")],
                "1 slot is unexplained: lost.\n1 slot is not judged: unknown.",
                1,
            ),
        ];
        for (slots, expected, code) in table {
            let (text, ended) = conclude(slots);
            assert!(text.ends_with(&format!("\n{expected}\n")), "{text}");
            assert_eq!(ended, std::process::ExitCode::from(code), "{slots:?}");
        }
        let (text, _) = conclude(&[well, well, late, ("never_sent", "x"), ("pending", "")]);
        assert!(
            text.starts_with(". 2 on_time   L 1 late   _ 1 pending   - 1 never_sent\n"),
            "{text}"
        );
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split(['│', '┆']).map(str::trim).collect()).collect();
        assert!(rows.contains(&vec!["", "sent", "3", "0", ""]), "{text}");
        assert!(rows.contains(&vec!["", "not sent", "0", "1", ""]), "{text}");
        assert!(!text.contains("cannot say"), "{text}");
    }

    #[test]
    fn no_verdict_is_told_by_colour_alone() {
        let glyphs: std::collections::BTreeSet<char> =
            Verdict::ALL.into_iter().map(|verdict| look(verdict).0).collect();
        assert_eq!(glyphs.len(), Verdict::ALL.len());
        let coloured = Style { in_colour: true }.window(&window(&[("lost", "x")]), |_| true);
        assert!(coloured.contains("  \x1b[1;41mX\x1b[0m\n"), "{coloured:?}");
    }
}
