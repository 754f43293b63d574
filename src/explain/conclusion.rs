//! What windows come to, in sentences: how much of what is missing is explained, and what of the rest
//! nobody knows.

use super::account::Account;
use crate::verdict::Verdict;

/// The sentences, each on a line.
#[must_use]
pub fn conclusion(account: &Account) -> String {
    let left = account.unexplained();
    let sentences = [
        sum(account),
        told(left.lost, |slots| format!("{} unexplained: lost.", are(slots))),
        told(account.of(Verdict::Unknown), |slots| format!("{} not judged: unknown.", are(slots))),
        told(account.untold, |slots| {
            format!("{} not judged: their events are no longer kept.", are(slots))
        }),
        told(left.unconfirmed, unconfirmed),
        told(account.unheard, |windows| unheard(windows, account.unheard_unconfirmed)),
        account.is_partial.then(|| {
            "An audit cannot be read: windows that only it knows are not among these.".to_owned()
        }),
    ];
    sentences.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// A sentence about so many, if there are any.
fn told(count: u64, sentence: impl FnOnce(u64) -> String) -> Option<String> {
    (count > 0).then(|| sentence(count))
}

/// How much of what is missing is explained. That nothing else is missing can be said only where
/// everything was read.
fn sum(account: &Account) -> Option<String> {
    let said = match (account.missing(), account.explained()) {
        (0, _) if account.is_partial => return None,
        (0, _) => "No heartbeat is missing.".to_owned(),
        (missing, explained) if missing == explained && !account.is_partial => {
            format!("Every missing heartbeat is explained: {explained} of {missing}.")
        }
        (1, 0) => "The one missing heartbeat is not explained.".to_owned(),
        (1, _) => "The one missing heartbeat is explained.".to_owned(),
        (missing, 0) => format!("Of {missing} missing heartbeats none is explained."),
        (missing, 1) => format!("Of {missing} missing heartbeats 1 is explained."),
        (missing, explained) => {
            format!("Of {missing} missing heartbeats {explained} are explained.")
        }
    };
    Some(said)
}

fn unconfirmed(slots: u64) -> String {
    let why = match slots {
        1 => "1 slot cannot be followed: its sender does not know whether it sent it".to_owned(),
        more => format!(
            "{more} slots cannot be followed: their sender does not know whether it sent them"
        ),
    };
    format!("{why} (unconfirmed).")
}

fn unheard(windows: u64, unconfirmed: u64) -> String {
    let (known, their) = match windows {
        1 => ("1 window is unheard: the monitor knows of it only from an audit".to_owned(), "its"),
        more => (
            format!("{more} windows are unheard: the monitor knows of them only from an audit"),
            "their",
        ),
    };
    match unconfirmed {
        0 => format!("{known}."),
        slots => format!("{known}, and nobody can follow {slots} of {their} slots."),
    }
}

fn are(slots: u64) -> String {
    if slots == 1 { "1 slot is".to_owned() } else { format!("{slots} slots are") }
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use super::*;
    use crate::explain::account::Said;

    /// So many slots that are missing, with their verdicts.
    fn missing(verdicts: &[(Verdict, u64)]) -> Account {
        let slots = verdicts.iter().map(|(_, slots)| slots).sum();
        let (verdicts, nothing) = (verdicts.iter().copied().collect(), (Said::Nothing, false));
        Account { verdicts, ledgers: [(nothing, slots)].into(), ..Account::default() }
    }

    const ONE: &str = "The one missing heartbeat is not explained.";
    const FOLLOWED: &str = "cannot be followed: their sender does not know whether it sent them \
                            (unconfirmed).";

    #[test]
    fn what_is_explained_is_told_apart_from_what_nobody_can_follow() {
        use Verdict::{InTransit, Lost, NeverSent, Unconfirmed, Unknown};
        let single = "1 slot cannot be followed: its sender does not know whether it sent it \
                      (unconfirmed).";
        let table = [
            (&[][..], 0, &["No heartbeat is missing."][..]),
            (
                &[(NeverSent, 2), (InTransit, 1)],
                0,
                &["Every missing heartbeat is explained: 3 of 3."],
            ),
            (&[(Unconfirmed, 1)], 3, &[ONE, single]),
            (
                &[(NeverSent, 9), (Unconfirmed, 3)],
                3,
                &["Of 12 missing heartbeats 9 are explained.", &format!("3 slots {FOLLOWED}")],
            ),
            (
                &[(NeverSent, 1), (Unconfirmed, 2)],
                3,
                &["Of 3 missing heartbeats 1 is explained.", &format!("2 slots {FOLLOWED}")],
            ),
            (&[(Unknown, 1)], 2, &[ONE, "1 slot is not judged: unknown."]),
            (
                &[(Unknown, 1), (Unconfirmed, 2)],
                2,
                &[
                    "Of 3 missing heartbeats none is explained.",
                    "1 slot is not judged: unknown.",
                    &format!("2 slots {FOLLOWED}"),
                ],
            ),
            (&[(Lost, 1)], 1, &[ONE, "1 slot is unexplained: lost."]),
            (
                &[(Lost, 2), (Unknown, 2), (Unconfirmed, 1), (NeverSent, 3)],
                1,
                &[
                    "Of 8 missing heartbeats 3 are explained.",
                    "2 slots are unexplained: lost.",
                    "2 slots are not judged: unknown.",
                    single,
                ],
            ),
        ];
        for (verdicts, code, expected) in table {
            let account = missing(verdicts);
            assert_eq!(conclusion(&account), expected.join("\n"), "{verdicts:?}");
            assert_eq!(account.exit_code(), ExitCode::from(code), "{verdicts:?}");
        }
    }

    #[test]
    fn windows_that_only_an_audit_knows_are_counted_apart() {
        let table = [
            (1, 0, "1 window is unheard: the monitor knows of it only from an audit."),
            (
                1,
                1,
                "1 window is unheard: the monitor knows of it only from an audit, and nobody can \
                 follow 1 of its slots.",
            ),
            (
                32,
                442,
                "32 windows are unheard: the monitor knows of them only from an audit, and nobody \
                 can follow 442 of their slots.",
            ),
        ];
        for (unheard, unheard_unconfirmed, expected) in table {
            let known = missing(&[(Verdict::SenderDown, 2)]);
            let account = Account { unheard, unheard_unconfirmed, ..known };
            let explained = "Every missing heartbeat is explained: 2 of 2.";
            assert_eq!(conclusion(&account), format!("{explained}\n{expected}"));
        }
    }

    #[test]
    fn where_something_cannot_be_read_nobody_says_that_everything_is_explained() {
        let partial = "An audit cannot be read: windows that only it knows are not among these.";
        for (verdicts, code, expected) in [
            (&[][..], 2, ""),
            (&[(Verdict::NeverSent, 1)], 2, "The one missing heartbeat is explained.\n"),
            (&[(Verdict::NeverSent, 2)], 2, "Of 2 missing heartbeats 2 are explained.\n"),
            (&[(Verdict::Unconfirmed, 1)], 2, &format!("{ONE}\n1 slot cannot be followed")),
            (&[(Verdict::Lost, 1)], 1, &format!("{ONE}\n1 slot is unexplained: lost.\n")),
        ] {
            let account = Account { is_partial: true, ..missing(verdicts) };
            let said = conclusion(&account);
            assert!(said.starts_with(expected) && said.ends_with(partial), "{said}");
            assert_eq!(account.exit_code(), ExitCode::from(code), "{verdicts:?}");
        }
        let account = Account { untold: 2, ..Account::default() };
        assert_eq!(
            conclusion(&account),
            "Of 2 missing heartbeats none is explained.\n2 slots are not judged: their events are \
             no longer kept."
        );
        assert_eq!(account.exit_code(), ExitCode::from(2));
    }
}
