//! What was taken over, in words.

use std::fmt;

use crate::monitor::window::WindowStatus;

/// Most rows of no use that are named.
const NAMED: usize = 10;

/// What a run has taken over, and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Windows that are open.
    pub open: u64,
    /// Windows that are closed, of which every heartbeat had arrived.
    pub closed: u64,
    /// Windows that are closed, and lack a heartbeat.
    pub alert: u64,
    /// Heartbeats, each slot once.
    pub heartbeats: u64,
    /// Heartbeats outside of the slots of their window.
    pub unscheduled: u64,
    /// Windows that were here before; those of them that are open got the heartbeats that they lacked.
    pub already_here: u64,
    /// Windows so old that the monitor has deleted others of that age.
    pub gone: u64,
    /// Rows that are of no use.
    pub skipped: u64,
    /// The first of them, each with the reason.
    pub named: Vec<String>,
    /// Windows that were CLOSED there and are ALERT here.
    pub closed_there: u64,
    /// Windows that were ALERT there and are CLOSED here.
    pub alert_there: u64,
}

impl Summary {
    /// Leaves out a row of a table.
    pub(super) fn skip(&mut self, table: &str, row: i64, why: &str) {
        self.skipped += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{table} {row}: {why}"));
        }
    }

    /// Counts a window that was not here.
    pub(super) fn count(&mut self, there: WindowStatus, here: WindowStatus) {
        match here {
            WindowStatus::Open => self.open += 1,
            WindowStatus::Closed => self.closed += 1,
            WindowStatus::Alert => self.alert += 1,
        }
        match (there, here) {
            (WindowStatus::Closed, WindowStatus::Alert) => self.closed_there += 1,
            (WindowStatus::Alert, WindowStatus::Closed) => self.alert_there += 1,
            _ => (),
        }
    }

    /// Adds what one transaction has done.
    pub(super) fn add(&mut self, page: &Self) {
        self.open += page.open;
        self.closed += page.closed;
        self.alert += page.alert;
        self.heartbeats += page.heartbeats;
        self.unscheduled += page.unscheduled;
        self.already_here += page.already_here;
        self.gone += page.gone;
        self.closed_there += page.closed_there;
        self.alert_there += page.alert_there;
        self.skipped += page.skipped;
        let room = NAMED.saturating_sub(self.named.len());
        self.named.extend(page.named.iter().take(room).cloned());
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { open, closed, alert, heartbeats, unscheduled, .. } = self;
        let windows = open + closed + alert;
        writeln!(f, "windows taken over: {windows} ({open} open, {closed} closed, {alert} alert)")?;
        writeln!(f, "heartbeats: {heartbeats}, and {unscheduled} unscheduled")?;
        write!(f, "windows that were here already: {}", self.already_here)?;
        if self.gone > 0 {
            let gone = self.gone;
            write!(f, "\nwindows left out because they are older than what is kept here: {gone}")?;
        }
        if self.closed_there > 0 {
            write!(
                f,
                "\n{} CLOSED there and ALERT here, because a slot has no heartbeat: the first \
                 system counted one beyond the end, or a repeated one, in its place",
                were(self.closed_there)
            )?;
        }
        if self.alert_there > 0 {
            write!(
                f,
                "\n{} ALERT there and CLOSED here, because each slot has its heartbeat: the first \
                 system counted one tick too many",
                were(self.alert_there)
            )?;
        }
        write!(f, "\nrows skipped because they are of no use: {}", self.skipped)?;
        for row in &self.named {
            write!(f, "\n  {row}")?;
        }
        let unnamed = self.skipped.saturating_sub(self.named.len() as u64);
        if unnamed > 0 {
            write!(f, "\n  and {unnamed} more")?;
        }
        Ok(())
    }
}

fn were(windows: u64) -> String {
    if windows == 1 { "1 window was".to_owned() } else { format!("{windows} windows were") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_was_taken_over_and_what_not() {
        let mut summary = Summary { heartbeats: 40, unscheduled: 1, ..Summary::default() };
        let statuses = [WindowStatus::Open, WindowStatus::Closed, WindowStatus::Alert];
        for status in statuses {
            summary.count(status, status);
        }
        assert_eq!(
            summary.to_string(),
            "windows taken over: 3 (1 open, 1 closed, 1 alert)\n\
             heartbeats: 40, and 1 unscheduled\n\
             windows that were here already: 0\n\
             rows skipped because they are of no use: 0"
        );
        summary.count(WindowStatus::Closed, WindowStatus::Alert);
        summary.count(WindowStatus::Alert, WindowStatus::Closed);
        summary.count(WindowStatus::Alert, WindowStatus::Closed);
        for row in 1..=12 {
            summary.skip("monitoring_windows", row, "window_uuid is null");
        }
        let text = summary.to_string();
        for part in [
            "(1 open, 3 closed, 2 alert)",
            "\n1 window was CLOSED there and ALERT here, because",
            "\n2 windows were ALERT there and CLOSED here, because",
            "of no use: 12\n  monitoring_windows 1: window_uuid is null\n",
            "\n  monitoring_windows 10: window_uuid is null\n  and 2 more",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
