//! Questions to the API, drawn at random, the same in every run: with all filters, and none.

use chrono::{DateTime, Utc};
use heartbeat::clock;
use heartbeat::wire::Timestamp;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::ground::Database;
use super::history::LARGEST;

/// Windows that questions are about.
const WINDOWS: u32 = 4_000;
/// How far back most questions look at the most, in minutes: eleven days.
const MINUTES: i64 = 11 * 24 * 60;
/// What is asked for without a limit, few, and as much as there may be.
const LIMITS: [&str; 5] = ["", "", "", "limit=10", "limit=500"];

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    Windows,
    Window,
    Events,
    Summary,
    Daily,
    Services,
    Pipeline,
}

impl Endpoint {
    pub const ALL: [Self; 7] = [
        Self::Windows,
        Self::Window,
        Self::Events,
        Self::Summary,
        Self::Daily,
        Self::Services,
        Self::Pipeline,
    ];

    /// Its figure.
    pub fn figure(self) -> String {
        format!("api_{self:?}_p99_ms").to_lowercase()
    }
}

/// A window of the history.
struct Known {
    id: i64,
    uuid: String,
    from: Timestamp,
}

/// Draws questions.
pub struct Questions {
    random: StdRng,
    now: Timestamp,
    windows: Vec<Known>,
    /// Windows of which the audit knows, by their size.
    audited: Vec<Vec<String>>,
}

impl Questions {
    /// Questions about what is stored.
    pub async fn new(history: &Database, audit: &Database) -> Self {
        let windows = "SELECT id, window_uuid, window_from FROM windows WHERE id > ? \
            ORDER BY (id * 7919) % 10007, id LIMIT ?";
        let windows = sqlx::query_as::<_, (i64, String, DateTime<Utc>)>(windows);
        let windows = windows.bind(LARGEST).bind(WINDOWS).fetch_all(&history.pool).await.unwrap();
        let known =
            windows.into_iter().map(|(id, uuid, from)| Known { id, uuid, from: from.into() });
        let mut audited = Vec::new();
        for slots in [12, 100, 1_000] {
            let of_size = "SELECT window_uuid FROM report_windows WHERE \
                window_to = window_from + INTERVAL ? SECOND ORDER BY id";
            let of_size = sqlx::query_scalar(of_size).bind(slots * 10);
            audited.push(of_size.fetch_all(&audit.pool).await.unwrap());
        }
        let (random, now) = (StdRng::seed_from_u64(1), clock::now());
        Self { random, now, windows: known.collect(), audited }
    }

    /// The path of a question.
    pub fn ask(&mut self, endpoint: Endpoint) -> String {
        let (name, parameters) = match endpoint {
            Endpoint::Windows => ("windows".to_owned(), self.of_windows()),
            Endpoint::Window => (format!("windows/{}", self.audited_window()), Vec::new()),
            Endpoint::Events => ("events".to_owned(), self.of_events()),
            Endpoint::Summary => ("summary".to_owned(), self.of_summary()),
            Endpoint::Daily => ("stats/daily".to_owned(), self.of_days()),
            Endpoint::Services => ("services".to_owned(), self.of_services()),
            Endpoint::Pipeline => ("pipeline".to_owned(), Vec::new()),
        };
        let given: Vec<String> = parameters.into_iter().filter(|text| !text.is_empty()).collect();
        let mark = if given.is_empty() { "" } else { "?" };
        format!("/api/monitor/{name}{mark}{}", given.join("&"))
    }

    fn of_windows(&mut self) -> Vec<String> {
        let mut parameters = vec![self.service(), self.status(&["open", "closed", "alert"])];
        parameters.extend(self.times());
        parameters.push(self.limit());
        if self.one_in(3) {
            let Known { id, from, .. } = self.window();
            parameters.push(format!("cursor={}-{id}", from.micros()));
        }
        parameters
    }

    fn of_events(&mut self) -> Vec<String> {
        let mut parameters = vec![self.status(&["ok", "error", "missing"]), self.limit()];
        if self.one_in(6) {
            parameters.push(format!("window_uuid={}", self.window().uuid));
            return parameters;
        }
        parameters.push(self.service());
        parameters.extend(self.times());
        if self.one_in(3) {
            let Known { id, from, .. } = self.window();
            parameters.push(format!("cursor={}-{id}-5", from.micros()));
        }
        parameters
    }

    fn of_summary(&mut self) -> Vec<String> {
        let period = self.pick(&["period=1h", "period=24h", "period=7d"]);
        vec![period.to_owned(), self.service()]
    }

    fn of_days(&mut self) -> Vec<String> {
        let mut parameters = vec![self.limit()];
        if self.one_in(2) {
            parameters.push(self.service());
        }
        if self.one_in(2) {
            let day = self.ago(MINUTES).to_string();
            parameters.push(format!("from={}", &day[..10]));
        }
        if self.one_in(3) {
            let day = self.ago(MINUTES).micros() / 86_400_000_000 * 86_400_000_000;
            parameters.push(format!("cursor={day}-{}", self.name()));
        }
        parameters
    }

    fn of_services(&mut self) -> Vec<String> {
        let mut parameters = vec![self.pick(&["", "limit=5", "limit=50"]).to_owned()];
        if self.one_in(3) {
            parameters.push(format!("cursor={}", self.name()));
        }
        parameters
    }

    /// Half of the questions are about one service; a few about one that is not there.
    fn service(&mut self) -> String {
        match self.random.random_range(0..100) {
            0..2 => "service=nobody".to_owned(),
            2..50 => format!("service={}", self.name()),
            _ => String::new(),
        }
    }

    fn name(&mut self) -> String {
        format!("payments-{}", self.random.random_range(0..100))
    }

    fn status(&mut self, statuses: &[&str]) -> String {
        if self.one_in(2) { format!("status={}", self.pick(statuses)) } else { String::new() }
    }

    fn limit(&mut self) -> String {
        self.pick(&LIMITS).to_owned()
    }

    /// None, ten minutes somewhere, or all from somewhere on.
    fn times(&mut self) -> Vec<String> {
        let from = self.ago(MINUTES);
        match self.random.random_range(0..6) {
            0 => vec![format!("from={from}"), format!("to={}", from.plus_micros(600_000_000))],
            1 => vec![format!("from={from}")],
            2 => vec![format!("to={from}")],
            _ => Vec::new(),
        }
    }

    fn ago(&mut self, minutes: i64) -> Timestamp {
        self.now.plus_micros(-60_000_000 * self.random.random_range(0..minutes))
    }

    fn window(&mut self) -> &Known {
        self.windows.choose(&mut self.random).unwrap()
    }

    fn audited_window(&mut self) -> String {
        let of_size = self.audited.choose(&mut self.random).unwrap();
        of_size.choose(&mut self.random).unwrap().clone()
    }

    fn pick<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts.choose(&mut self.random).unwrap()
    }

    fn one_in(&mut self, number: u32) -> bool {
        self.random.random_range(0..number) == 0
    }
}
