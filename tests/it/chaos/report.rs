//! What a run prints at its end.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::checker::{Figure, Report};
use super::drill::Drill;
use super::faults;
use super::plan::Kind;
use super::poison;

/// Most violations of one kind that are printed.
const SHOWN: usize = 8;

/// Everything that is to be said of a run.
pub struct Outcome {
    /// What it was drawn from.
    pub seed: u64,
    /// How long windows were opened.
    pub seconds: u64,
    /// What the checker found.
    pub report: Report,
    /// The faults.
    pub faults: faults::Book,
    /// When the last fault was over.
    pub faults_took: Duration,
    /// The poison.
    pub poisoned: poison::Book,
    /// Times from a part's return to its backlog drained, shortest first.
    pub recoveries: BTreeMap<String, Vec<Duration>>,
    /// What one fault alone costs.
    pub drills: Vec<Drill>,
    /// Parts whose backlog never drained.
    pub unrecovered: usize,
    /// How long everything took to settle; none if it did not.
    pub drained: Option<Duration>,
    /// How often a process ended although nobody had killed it.
    pub ended_by_themselves: usize,
}

impl Outcome {
    /// Whether every figure is zero and everything came back.
    pub fn passed(&self) -> bool {
        self.failures().is_empty()
    }

    /// Writes what is too long to print beside the logs: every fault and every violation.
    pub fn write_down(&self, directory: &Path) {
        let mut faults = self.faults.journal.clone();
        faults.sort_unstable();
        fs::write(directory.join("faults.txt"), faults.join("\n")).unwrap();
        let violations = self.report.violations.iter();
        let violations: Vec<String> =
            violations.map(|(figure, text)| format!("{figure}: {text}")).collect();
        fs::write(directory.join("violations.txt"), violations.join("\n")).unwrap();
    }

    fn failures(&self) -> Vec<String> {
        let counted = Figure::ALL.map(|figure| (figure.to_string(), self.report.count(figure)));
        let failed = |drill: &&Drill| drill.seen_after.is_none() || drill.recovered_after.is_none();
        let not_zero = [
            ("drills that failed".to_owned(), self.drills.iter().filter(failed).count()),
            ("parts that did not recover".to_owned(), self.unrecovered),
            ("runs that did not drain".to_owned(), usize::from(self.drained.is_none())),
        ];
        let all = counted.into_iter().chain(not_zero);
        all.filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}")).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        writeln!(f, "\nseed {}, {} s of windows, {cores} cores", self.seed, self.seconds)?;
        self.show_faults(f)?;
        let report = &self.report;
        writeln!(f, "\n{:<40}{:>8}", "windows", report.windows)?;
        let slots: usize = report.verdicts.values().sum();
        writeln!(f, "{:<40}{slots:>8}", "slots")?;
        for (verdict, slots) in &report.verdicts {
            writeln!(f, "  {verdict:<38}{slots:>8}")?;
        }
        self.show_recoveries(f)?;
        self.show_drills(f)?;
        writeln!(f, "\nfigures")?;
        for figure in Figure::ALL {
            writeln!(f, "  {figure:<38}{:>8}", report.count(figure))?;
            let mut texts: Vec<&str> = report.texts(figure).collect();
            // One of each window says more than all of one window.
            texts.dedup_by_key(|text| text.split(": ").next());
            texts.iter().take(SHOWN).try_for_each(|text| writeln!(f, "    {text}"))?;
        }
        writeln!(f, "  {:<38}{:>8}", "unobserved alerts (allowed)", report.unobserved_alerts)?;
        let poison = &self.poisoned;
        let (injected, found) = (poison.injected.len(), poison.found.len());
        let gone = poison.uncertain.iter().filter(|mark| !poison.found.contains(mark)).count();
        writeln!(f, "  {:<38}{found:>8}", "dead letters")?;
        writeln!(
            f,
            "    of {injected} poison; {gone} went with Redis' data or were never written"
        )?;
        // Not forbidden: who finds at its start that it cannot work may leave that to a supervisor.
        let ended = self.ended_by_themselves;
        writeln!(f, "  {:<38}{ended:>8}", "processes that ended by themselves")?;
        if let Some((longest, kind)) = self.faults.longest {
            let away = seconds(longest);
            writeln!(f, "  {:<38}{away:>8}  {}", "longest outage survived", kind.name())?;
        }
        match self.failures() {
            failures if failures.is_empty() => write!(f, "\nPASSED"),
            failures => write!(f, "\nFAILED: {}", failures.join(", ")),
        }
    }
}

impl Outcome {
    fn show_faults(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nfaults, the last over at {}", seconds(self.faults_took))?;
        for kind in Kind::ALL {
            let count = self.faults.injected.get(&kind).copied().unwrap_or(0);
            writeln!(f, "  {:<38}{count:>8}", kind.name())?;
        }
        for (kind, count) in poison::KINDS.into_iter().zip(self.poisoned.by_kind) {
            writeln!(f, "  {:<38}{count:>8}", format!("poison: {kind}"))?;
        }
        Ok(())
    }

    fn show_drills(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = "one part killed, everything else at work";
        writeln!(f, "\n{title:<46}{:>6}{:>20}", "seen", "back to drained")?;
        for Drill { part, seen_after, recovered_after } in &self.drills {
            let shown = |time: &Option<Duration>| time.map_or_else(|| "never".to_owned(), seconds);
            let (seen, recovered) = (shown(seen_after), shown(recovered_after));
            writeln!(f, "  {part:<44}{seen:>6}{recovered:>20}")?;
        }
        Ok(())
    }

    fn show_recoveries(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = "from a part's return to its backlog drained";
        writeln!(f, "\n{title:<46}{:>6}{:>10}{:>10}", "times", "median", "worst")?;
        for (fault, times) in &self.recoveries {
            let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
            let (median, worst) = (seconds(median), seconds(worst));
            writeln!(f, "  {fault:<44}{:>6}{median:>10}{worst:>10}", times.len())?;
        }
        let drained = self.drained.map_or_else(|| "never".to_owned(), seconds);
        writeln!(f, "  {:<44}{:>6}{:>10}{drained:>10}", "everything, after the run", "", "")
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
