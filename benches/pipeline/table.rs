//! The figures: printed for people, written as JSON for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

/// What a figure has to reach.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// It is only compared with.
    None,
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::None => true,
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("-"),
            Self::AtLeast(least) => f.pad(&format!("≥ {}", rounded(*least))),
            Self::AtMost(most) => f.pad(&format!("≤ {}", rounded(*most))),
        }
    }
}

#[derive(Debug)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    target: Target,
}

/// Every figure so far, in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Table {
    figures: Vec<Figure>,
}

impl Table {
    /// Adds a figure.
    pub fn add(&mut self, name: &str, value: f64, unit: &'static str, target: Target) {
        eprintln!("  {name} = {} {unit}", rounded(value));
        self.figures.push(Figure { name: name.to_owned(), value, unit, target });
    }

    /// A figure that was measured before.
    pub fn value(&self, name: &str) -> f64 {
        let found = self.figures.iter().find(|figure| figure.name == name);
        found.expect("it is measured before").value
    }

    /// Writes the figures to `target/bench/pipeline.json`.
    pub fn write_down(&self) {
        let figures: BTreeMap<&str, Value> = self.figures.iter().map(Figure::json).collect();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../bench/pipeline.json");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, serde_json::to_string_pretty(&figures).unwrap()).unwrap();
    }
}

impl Figure {
    fn json(&self) -> (&str, Value) {
        let target = match self.target {
            Target::None => Value::Null,
            Target::AtLeast(value) | Target::AtMost(value) => json!(value),
        };
        let ok = self.target.is_met(self.value);
        (&self.name, json!({"value": self.value, "unit": self.unit, "target": target, "ok": ok}))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<28} {:>10} {:<10} {:>10}  ok", "name", "value", "unit", "target")?;
        for Figure { name, value, unit, target } in &self.figures {
            let ok = if target.is_met(*value) { "yes" } else { "NO" };
            let value = rounded(*value);
            writeln!(f, "{name:<28} {value:>10} {unit:<10} {target:>10}  {ok}")?;
        }
        Ok(())
    }
}

/// Three digits are what a run can be trusted for.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
