//! What came of a repair, counted; and heartbeats counted for a person.

use super::resend::Outcome;
use crate::explain::account::Unexplained;
use crate::explain::ask::Repairable;

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sent: Unexplained,
    /// Sent again by somebody else, or arrived, after they were found missing.
    not_needed: u64,
    failed: Unexplained,
}

impl Tally {
    /// Counts a slot.
    pub(super) fn count(&mut self, slot: &Repairable, outcome: &Outcome) {
        let of = match outcome {
            Outcome::SentAs(_) => &mut self.sent,
            Outcome::SentMeanwhile(_) => return self.not_needed += 1,
            Outcome::NoRow | Outcome::Unusable(_) => &mut self.failed,
        };
        match slot.lost {
            Some(_) => of.lost += 1,
            None => of.unconfirmed += 1,
        }
    }

    /// Counts slots that turned out not to need it.
    pub(super) fn count_not_needed(&mut self, slots: usize) {
        self.not_needed += slots as u64;
    }

    /// What could not be sent again.
    pub(super) fn failed(&self) -> Unexplained {
        self.failed
    }

    /// A sentence for a person.
    pub(super) fn summary(&self) -> String {
        let mut said = vec![match self.sent.all() {
            0 => "sent nothing again".to_owned(),
            _ => format!("sent {} again", counted(self.sent)),
        }];
        if self.not_needed > 0 {
            said.push(format!("{} no more in need of it", are(self.not_needed)));
        }
        if self.failed.all() > 0 {
            said.push(format!("{} could not be", self.failed.all()));
        }
        if self.sent.all() > 0 {
            said.push("`heartbeat explain` says whether they have arrived".to_owned());
        }
        said.join("; ")
    }
}

/// Heartbeats as a person counts them: `2 lost and 1 unconfirmed heartbeat`.
pub(super) fn counted(heartbeats: Unexplained) -> String {
    let Unexplained { lost, unconfirmed } = heartbeats;
    let kinds = [(lost, "lost"), (unconfirmed, "unconfirmed")].into_iter();
    let kinds: Vec<_> = kinds.filter(|(count, _)| *count > 0).collect();
    let noun = if kinds.last().is_some_and(|(count, _)| *count == 1) { "" } else { "s" };
    let kinds: Vec<_> = kinds.iter().map(|(count, kind)| format!("{count} {kind}")).collect();
    format!("{} heartbeat{noun}", kinds.join(" and "))
}

fn are(count: u64) -> String {
    if count == 1 { "1 is".to_owned() } else { format!("{count} are") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::StreamId;

    #[test]
    fn heartbeats_are_counted_as_a_person_does() {
        for (lost, unconfirmed, expected) in [
            (1, 0, "1 lost heartbeat"),
            (3, 0, "3 lost heartbeats"),
            (0, 1, "1 unconfirmed heartbeat"),
            (0, 9, "9 unconfirmed heartbeats"),
            (1, 2, "1 lost and 2 unconfirmed heartbeats"),
            (2, 1, "2 lost and 1 unconfirmed heartbeat"),
        ] {
            assert_eq!(counted(Unexplained { lost, unconfirmed }), expected);
        }
    }

    #[test]
    fn what_could_not_be_sent_is_counted_by_its_kind() {
        let entry = StreamId::default();
        let (lost, unconfirmed) =
            (Repairable { slot: 0, lost: Some(entry) }, Repairable { slot: 1, lost: None });
        let mut tally = Tally::default();
        assert_eq!(tally.summary(), "sent nothing again");
        tally.count(&lost, &Outcome::SentAs(entry));
        tally.count(&unconfirmed, &Outcome::SentAs(entry));
        tally.count(&unconfirmed, &Outcome::SentMeanwhile(entry));
        tally.count(&lost, &Outcome::NoRow);
        tally.count(&unconfirmed, &Outcome::NoRow);
        tally.count(&unconfirmed, &Outcome::Unusable("odd".to_owned()));
        tally.count_not_needed(2);
        assert_eq!(tally.failed(), Unexplained { lost: 1, unconfirmed: 2 });
        assert_eq!(
            tally.summary(),
            "sent 1 lost and 1 unconfirmed heartbeat again; 3 are no more in need of it; 3 could \
             not be; `heartbeat explain` says whether they have arrived"
        );
    }
}
