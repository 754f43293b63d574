//! What a role shows to Prometheus.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Process, get};

/// A scrape waits for no server, whatever state that is in.
const AT_ONCE: Duration = Duration::from_secs(1);

/// One answer of `/metrics`.
pub struct Scrape {
    /// As it came.
    pub text: String,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    /// Scrapes an address, which must answer at once.
    pub async fn of(url: &str) -> Self {
        let began = Instant::now();
        let answer = get(url).await.unwrap();
        assert!(answer.status().is_success(), "{url}: {}", answer.status());
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        let text = answer.text().await.unwrap();
        assert!(began.elapsed() < AT_ONCE, "{url} took {:?}", began.elapsed());
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.map(|line| {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            (sample.to_owned(), value.parse().unwrap())
        });
        Self { samples: samples.collect(), text }
    }

    /// Scrapes a role.
    pub async fn role(process: &Process) -> Self {
        Self::of(&process.url("/metrics")).await
    }

    /// A sample, such as `name{label="value"}`, if it is there.
    pub fn find(&self, sample: &str) -> Option<f64> {
        self.samples.get(sample).copied()
    }

    /// A sample that must be there.
    pub fn get(&self, sample: &str) -> f64 {
        self.find(sample).unwrap_or_else(|| panic!("no {sample} in\n{}", self.text))
    }
}
