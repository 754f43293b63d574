//! Windows as the answers to single heartbeats show them: counted on from where nothing can change.

use std::collections::BTreeMap;

use heartbeat::monitor::ingest::{self, Outcome};
use heartbeat::monitor::window::{Counts, WindowStatus};
use heartbeat::monitor::{lookups, sweep};
use heartbeat::wire::{Heartbeat, Status};
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::support::{Ground, heartbeat, window};

#[tokio::test]
async fn each_answer_counts_right_whoever_took_what_came_before_and_in_whatever_order() {
    let ground = Ground::new().await;
    let monitors = [ground.monitor().await, ground.monitor().await];
    for round in 0..4 {
        let window = window("payments-a", 40);
        let mut slots: Vec<u32> = (0..40).collect();
        // From nearly in order, as services send, to not at all.
        slots.chunks_mut(1 << (2 * round)).for_each(|some| some.shuffle(&mut rand::rng()));
        let (mut taken, mut unscheduled) = (BTreeMap::new(), 0);
        for (number, slot) in slots.into_iter().take(35).enumerate() {
            let monitor = &monitors[rand::rng().random_range(0..2)];
            let now = window.from().plus_micros(i64::try_from(number).unwrap());
            let is_error = rand::rng().random_bool(0.3);
            let status = if is_error { Status::Error(None) } else { Status::Ok };
            let mut beats = vec![Heartbeat { status, ..heartbeat(&window, slot) }];
            if rand::rng().random_bool(0.1) {
                beats.push(heartbeat(&window, 100 + slot));
                unscheduled += 1;
            }
            let outcomes = ingest::ingest(monitor, beats, now).await.unwrap();
            assert_eq!(outcomes[0], Outcome::Recorded);
            taken.insert(slot, is_error);
            let shown = lookups::find_open_window(monitor, window.uuid, now).await.unwrap();
            let shown = shown.unwrap();
            let counts = |number: usize| u32::try_from(number).unwrap();
            let expected = Counts {
                received: counts(taken.len()),
                errors: counts(taken.values().filter(|is_error| **is_error).count()),
                ..Counts::default()
            };
            assert_eq!((shown.status, shown.counts), (WindowStatus::Open, expected), "{taken:?}");
            assert_eq!((shown.unscheduled, shown.updated_at), (unscheduled, now));
        }

        let over = window.ends_at().plus(monitors[0].grace);
        sweep::sweep_on_request(&monitors[0], over).await.unwrap();
        for monitor in &monitors {
            let now = window.from().plus_micros(40);
            let shown = lookups::find_open_window(monitor, window.uuid, now).await.unwrap();
            let shown = shown.unwrap();
            assert_eq!((shown.status, shown.counts.missing), (WindowStatus::Alert, 5), "closed");
        }
    }
}
