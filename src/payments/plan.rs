//! What a window will do: which slots it reports as well, which as errors, which it omits.
//!
//! A plan is drawn once, from a seed, and then stored slot by slot, so that a restarted process
//! carries out the very same plan whatever the random generator of its version would draw.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::index;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::wire::{Rates, ServiceName, Status, Tick, Timestamp, Window, WireError};

/// Longest window, in seconds: a week.
pub const MAX_DURATION_SECONDS: f64 = 604_800.0;
/// Length of a window that nobody chose, in seconds.
const RANDOM_DURATION_SECONDS: std::ops::RangeInclusive<u32> = 60..=300;
/// Highest share of errors and of omissions that nobody chose.
const RANDOM_RATES: (f64, f64) = (0.30, 0.15);
/// Largest seed that every JSON reader keeps exactly.
const MAX_SEED: u64 = (1 << 53) - 1;

/// The errors that a simulated payments service reports, by their number in a stored plan.
const ERRORS: [&str; 5] = [
    "card network timed out",
    "issuer declined the connection",
    "ledger write failed",
    "fraud check unavailable",
    "settlement queue full",
];

/// What to do in one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Report `ok`.
    Ok,
    /// Report one of the service's errors.
    Error(u8),
    /// Report nothing, on purpose.
    Omit,
}

impl Intent {
    /// What to report; none where nothing is to be reported.
    #[must_use]
    pub fn status(self) -> Option<Status> {
        match self {
            Self::Ok => Some(Status::Ok),
            Self::Error(number) => {
                let message = ERRORS.get(usize::from(number)).map(|text| (*text).to_owned());
                Some(Status::Error(message))
            }
            Self::Omit => None,
        }
    }

    const fn to_char(self) -> char {
        match self {
            Self::Ok => '.',
            Self::Error(number) => (b'0' + number % 10) as char,
            Self::Omit => '-',
        }
    }

    fn from_char(c: char) -> Option<Self> {
        match c {
            '.' => Some(Self::Ok),
            '-' => Some(Self::Omit),
            _ => c.to_digit(10).and_then(|digit| u8::try_from(digit).ok()).map(Self::Error),
        }
    }
}

/// What a request may choose; what it does not choose is random.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// Length of the window in seconds, at most a week.
    #[schema(minimum = 1, maximum = 604_800)]
    pub duration_sec: Option<f64>,
    /// Seconds between two slots.
    #[schema(minimum = 0.05, maximum = 3600)]
    pub tick_seconds: Option<f64>,
    /// Share of slots to report as errors.
    #[schema(minimum = 0, maximum = 1)]
    pub error_status_generado: Option<f64>,
    /// Share of slots to omit; any other than 0 omits at least one.
    #[schema(minimum = 0, maximum = 1)]
    pub error_status_no_reportado: Option<f64>,
    /// Makes the rest of the choices repeatable.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_i64)]
    pub seed: Option<u64>,
}

/// A window and what to do in each of its slots.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The window.
    pub window: Window,
    /// What the random choices were drawn from.
    pub seed: u64,
    intents: Vec<Intent>,
}

impl Plan {
    /// Draws a plan for a window that starts at `from`. `seed` is used unless one was chosen.
    ///
    /// # Errors
    /// A choice outside of its bounds, by name.
    pub fn draw(
        overrides: &Overrides,
        (uuid, service): (Uuid, ServiceName),
        from: Timestamp,
        default_tick: Tick,
        seed: u64,
    ) -> Result<Self, WireError> {
        let seed = overrides.seed.unwrap_or(seed & MAX_SEED);
        if seed > MAX_SEED {
            return Err(WireError::Invalid(format!("seed must be from 0 to {MAX_SEED}")));
        }
        let mut random = StdRng::seed_from_u64(seed);
        let duration = duration(overrides, &mut random)?;
        let tick = match overrides.tick_seconds {
            Some(seconds) => Tick::from_seconds(seconds)
                .map_err(|error| WireError::Invalid(format!("tick_seconds {error}")))?,
            None => default_tick,
        };
        let rates = rates(overrides, &mut random)?;
        let window = Window::new(uuid, service, (from, from.plus(duration)), tick, rates)?;
        let omit_at_least_one = overrides.error_status_no_reportado != Some(0.0);
        let intents = intents(&window, omit_at_least_one, &mut random);
        Ok(Self { window, seed, intents })
    }

    /// A plan as it was stored.
    ///
    /// # Errors
    /// Text that is no plan for this window.
    pub fn stored(window: Window, seed: u64, text: &str) -> Result<Self, String> {
        let intents: Option<Vec<Intent>> = text.chars().map(Intent::from_char).collect();
        match intents {
            Some(intents) if intents.len() == window.slots() as usize => {
                Ok(Self { window, seed, intents })
            }
            _ => Err(format!("is no plan of {} slots", window.slots())),
        }
    }

    /// The plan as text, one character per slot: `.` ok, `-` omitted, a digit an error.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.intents.iter().map(|intent| intent.to_char()).collect()
    }

    /// What to do in a slot.
    #[must_use]
    pub fn intent(&self, slot: u32) -> Intent {
        self.intents.get(slot as usize).copied().unwrap_or(Intent::Omit)
    }

    /// The next slot to carry out after another, at an instant: slots whose time has passed are
    /// left out, because nothing is back-dated. None when the window is over.
    #[must_use]
    pub fn next_slot(&self, after: Option<u32>, now: Timestamp) -> Option<u32> {
        let window = &self.window;
        let passed = (now.micros() - window.from().micros()).div_euclid(window.tick().micros());
        let current = u32::try_from(passed.max(0)).unwrap_or(u32::MAX);
        let next = after.map_or(0, |slot| slot.saturating_add(1)).max(current);
        Some(next).filter(|slot| *slot < window.slots())
    }
}

fn duration(overrides: &Overrides, random: &mut StdRng) -> Result<Duration, WireError> {
    let random = f64::from(random.random_range(RANDOM_DURATION_SECONDS));
    let seconds = overrides.duration_sec.unwrap_or(random);
    if !(1.0..=MAX_DURATION_SECONDS).contains(&seconds) {
        return Err(WireError::Invalid(format!(
            "duration_sec must be a number from 1 to {MAX_DURATION_SECONDS}"
        )));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn rates(overrides: &Overrides, random: &mut StdRng) -> Result<Rates, WireError> {
    let mut pick = |highest: f64| (random.random_range(0.0..=highest) * 1e4).round() / 1e4;
    let (errors, omissions) = (pick(RANDOM_RATES.0), pick(RANDOM_RATES.1));
    Rates::new(
        Some(overrides.error_status_generado.unwrap_or(errors)),
        Some(overrides.error_status_no_reportado.unwrap_or(omissions)),
    )
}

fn intents(window: &Window, omit_at_least_one: bool, random: &mut StdRng) -> Vec<Intent> {
    let slots = window.slots() as usize;
    let omitted = share(window.rates.error_status_no_reportado, slots);
    let omitted = omitted.max(usize::from(omit_at_least_one)).min(slots);
    let errors = share(window.rates.error_status_generado, slots).min(slots - omitted);
    let mut intents = vec![Intent::Ok; slots];
    let picked = index::sample(random, slots, omitted + errors).into_vec();
    let (omitted, errors) = picked.split_at(omitted);
    for slot in omitted {
        intents[*slot] = Intent::Omit;
    }
    for slot in errors {
        intents[*slot] = Intent::Error(random.random_range(0..5));
    }
    intents
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share from 0 to 1 of at most 100,000 slots"
)]
fn share(rate: Option<f64>, slots: usize) -> usize {
    (rate.unwrap_or(0.0) * slots as f64).round() as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draw(overrides: &Overrides, seed: u64) -> Result<Plan, WireError> {
        let from = Timestamp::parse("2026-11-21T10:00:00Z").unwrap();
        let identity = (Uuid::nil(), "payments-a".parse().unwrap());
        Plan::draw(overrides, identity, from, Tick::DEFAULT, seed)
    }

    fn count(plan: &Plan, wanted: impl Fn(Intent) -> bool) -> usize {
        (0..plan.window.slots()).filter(|slot| wanted(plan.intent(*slot))).count()
    }

    #[test]
    fn an_explicit_zero_omits_none_and_anything_else_at_least_one() {
        let rate = |rate| Overrides { error_status_no_reportado: rate, ..Overrides::default() };
        for seed in 0..50 {
            let omitted = |plan: &Plan| count(plan, |intent| intent == Intent::Omit);
            assert_eq!(omitted(&draw(&rate(Some(0.0)), seed).unwrap()), 0);
            assert!(omitted(&draw(&rate(None), seed).unwrap()) >= 1);
            assert!(omitted(&draw(&rate(Some(0.001)), seed).unwrap()) >= 1);
            let all = draw(&rate(Some(1.0)), seed).unwrap();
            assert_eq!(omitted(&all), all.window.slots() as usize);
        }
    }

    #[test]
    fn shares_are_exact() {
        let overrides = Overrides {
            duration_sec: Some(100.0),
            tick_seconds: Some(1.0),
            error_status_generado: Some(0.25),
            error_status_no_reportado: Some(0.10),
            seed: Some(7),
        };
        let plan = draw(&overrides, 0).unwrap();
        assert_eq!(count(&plan, |intent| intent == Intent::Omit), 10);
        assert_eq!(count(&plan, |intent| matches!(intent, Intent::Error(_))), 25);
        assert_eq!(draw(&overrides, 1).unwrap(), plan, "the chosen seed decides");
    }

    #[test]
    fn choices_outside_their_bounds_are_named() {
        let base = Overrides::default;
        let table = [
            (Overrides { duration_sec: Some(0.9), ..base() }, "duration_sec"),
            (Overrides { duration_sec: Some(1e300), ..base() }, "duration_sec"),
            (Overrides { tick_seconds: Some(0.0), ..base() }, "tick_seconds"),
            (Overrides { error_status_generado: Some(1.1), ..base() }, "error_status_generado"),
            (Overrides { error_status_no_reportado: Some(-0.1), ..base() }, "error_status_no_"),
            (Overrides { seed: Some(u64::MAX), ..base() }, "seed"),
            (
                Overrides { duration_sec: Some(6e5), tick_seconds: Some(0.05), ..base() },
                "a window may have at most",
            ),
        ];
        for (overrides, expected) in table {
            let error = draw(&overrides, 0).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn slots_that_passed_are_left_out_and_none_is_repeated() {
        let plan =
            draw(&Overrides { duration_sec: Some(100.0), ..Overrides::default() }, 1).unwrap();
        let at = |seconds: u64| plan.window.from().plus(Duration::from_secs(seconds));
        let before = plan.window.from().minus(Duration::from_mins(1));
        assert_eq!(plan.next_slot(None, before), Some(0));
        assert_eq!(plan.next_slot(None, at(0)), Some(0));
        assert_eq!(plan.next_slot(Some(0), at(0)), Some(1));
        assert_eq!(plan.next_slot(Some(0), at(35)), Some(3));
        assert_eq!(plan.next_slot(None, at(99)), Some(9));
        assert_eq!(plan.next_slot(Some(9), at(99)), None);
        assert_eq!(plan.next_slot(None, at(100)), None);
    }

    proptest! {
        #[test]
        fn a_stored_plan_is_read_back_the_same(seed in 0..MAX_SEED) {
            let plan = draw(&Overrides::default(), seed).unwrap();
            let again = Plan::stored(plan.window.clone(), plan.seed, &plan.to_text());
            prop_assert_eq!(again, Ok(plan.clone()));
            prop_assert!(Plan::stored(plan.window.clone(), 0, "..x").is_err());
            let seconds = plan.window.from().until(plan.window.to()).as_secs();
            prop_assert!((60..=300).contains(&seconds));
        }
    }
}
