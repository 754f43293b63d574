//! Carrying windows out: ticks on the clock, and the leases that say which process works on which
//! window.
//!
//! Each window has a ticker, which stores what is done in each slot, and a
//! [publisher](super::publish), which sends what is stored and not yet known to be sent. The two
//! meet only in the database, so that a Redis that is away never makes a tick late.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::plan::Plan;
use super::{Payments, PlannedWindow, publish, repository, trace};
use crate::wire::Timestamp;
use crate::{clock, db, shutdown};

/// Most windows that one process works on at a time.
pub const MAX_OPEN_WINDOWS: usize = 200;
/// How long a lease holds without being renewed: after a crash, another process takes over then.
const LEASE: Duration = Duration::from_secs(6);
/// How often leases are renewed, and windows without an owner looked for.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);

/// A handle to hand windows to the emitter of this process.
#[derive(Clone, Debug)]
pub struct Emitter {
    payments: Payments,
    windows: mpsc::Sender<PlannedWindow>,
}

impl Emitter {
    /// A handle, and the queue behind it for [`run`].
    #[must_use]
    pub fn new(payments: Payments) -> (Self, mpsc::Receiver<PlannedWindow>) {
        let (windows, queue) = mpsc::channel(MAX_OPEN_WINDOWS);
        (Self { payments, windows }, queue)
    }

    /// Stores a window and hands it to the emitter. Answers false if a window with the same uuid
    /// was stored before; that one stands.
    ///
    /// # Errors
    /// When the database does not do its part.
    pub async fn open(&self, plan: Plan) -> Result<bool, db::Error> {
        self.open_as(plan, false).await
    }

    /// The same for a window of the service's continuous series.
    ///
    /// # Errors
    /// As for [`Emitter::open`].
    pub async fn open_continuous(&self, plan: Plan) -> Result<bool, db::Error> {
        self.open_as(plan, true).await
    }

    async fn open_as(&self, plan: Plan, continuous: bool) -> Result<bool, db::Error> {
        let Payments { pool, owner, .. } = &self.payments;
        let inserting =
            repository::insert_window(pool, (&plan, continuous), *owner, LEASE, clock::now());
        if !inserting.await? {
            return Ok(false);
        }
        // A full queue is no loss: the window is stored, and is found again when its lease is over.
        self.windows.try_send(PlannedWindow { plan, announced: false }).ok();
        Ok(true)
    }

    /// How many windows this process works on, which [`MAX_OPEN_WINDOWS`] bounds.
    ///
    /// # Errors
    /// When the database does not do its part.
    pub async fn open_windows(&self) -> Result<usize, db::Error> {
        let Payments { pool, owner, .. } = &self.payments;
        Ok(repository::owned_windows(pool, *owner).await?.len())
    }
}

/// Carries out the windows of the queue and those that another process of this service left behind.
/// When told to stop it hands its windows back, so that the next start resumes them at once.
///
/// # Errors
/// Never; failures are logged, shown by `/ready`, and tried again.
pub async fn run(
    payments: Payments,
    mut queue: mpsc::Receiver<PlannedWindow>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut emitting = Emitting { payments, tasks: TaskTracker::new(), active: Vec::new() };
    let mut beat = tokio::time::interval(RENEW_INTERVAL);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(window) = queue.recv() => emitting.start(window),
            _ = beat.tick() => emitting.renew_and_resume().await,
        }
    }
    emitting.stop().await;
    Ok(())
}

struct Emitting {
    payments: Payments,
    tasks: TaskTracker,
    active: Vec<(Uuid, CancellationToken)>,
}

impl Emitting {
    fn start(&mut self, window: PlannedWindow) {
        let uuid = window.plan.window.uuid;
        if self.active.iter().any(|(active, _)| *active == uuid) {
            return;
        }
        let stop = CancellationToken::new();
        self.active.push((uuid, stop.clone()));
        self.tasks.spawn(carry_out(self.payments.clone(), window, stop));
    }

    /// Renews the leases of what is active, stops what another process has taken over, and starts
    /// what nobody works on.
    async fn renew_and_resume(&mut self) {
        self.active.retain(|(_, stop)| !stop.is_cancelled());
        let outcome = self.try_renew_and_resume().await;
        let shown = outcome.as_ref().map_err(|error| error.class.advice());
        self.payments.readiness.note("payments database", &shown);
        if let Err(error) = outcome {
            tracing::warn!(%error, "renewing the leases on windows failed; it will be tried again");
        }
    }

    async fn try_renew_and_resume(&mut self) -> Result<(), db::Error> {
        let Payments { pool, owner, service, .. } = &self.payments;
        repository::renew_leases(pool, *owner, LEASE).await?;
        let mine: HashSet<Uuid> =
            db::patiently(repository::owned_windows(pool, *owner)).await?.into_iter().collect();
        self.payments.metrics.open_windows.set(i64::try_from(mine.len()).unwrap_or(i64::MAX));
        for (uuid, stop) in &self.active {
            if !mine.contains(uuid) {
                stop.cancel();
            }
        }
        let room = u32::try_from(MAX_OPEN_WINDOWS.saturating_sub(mine.len())).unwrap_or(0);
        let windows = repository::claim_windows(pool, service, *owner, LEASE, room).await?;
        if windows > 0 {
            tracing::info!(windows, "resuming what another process left");
        }
        let active = |uuid| self.active.iter().any(|(active, _)| active == uuid);
        if windows > 0 || !mine.iter().all(active) {
            for window in db::patiently(repository::windows_of_owner(pool, *owner)).await? {
                self.start(window);
            }
        }
        Ok(())
    }

    async fn stop(self) {
        for (_, stop) in &self.active {
            stop.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
        let Payments { pool, owner, .. } = &self.payments;
        if let Err(error) = repository::release_leases(pool, *owner).await {
            tracing::warn!(%error, "handing windows back failed; their leases will run out");
        }
    }
}

/// Carries one window out, until it is finished or told to stop.
async fn carry_out(payments: Payments, window: PlannedWindow, stop: CancellationToken) {
    let (wake, all_ticked) = (Notify::new(), CancellationToken::new());
    let ticker = async {
        run_ticker(&payments, &window.plan, &wake, &stop).await;
        all_ticked.cancel();
    };
    let publisher = publish::run(&payments, &window, &wake, &all_ticked, &stop);
    tokio::join!(ticker, publisher);
    stop.cancel();
    payments.metrics.left(window.plan.window.uuid);
}

async fn run_ticker(payments: &Payments, plan: &Plan, wake: &Notify, stop: &CancellationToken) {
    let mut done = None;
    while let Some(slot) = plan.next_slot(done, clock::now()) {
        let due = plan.window.due(slot);
        if !shutdown::sleep(clock::now().until(due), stop).await {
            return;
        }
        let now = clock::now();
        if plan.next_slot(done, now) != Some(slot) {
            // The process stood still: the slot has passed, and nothing is back-dated.
            continue;
        }
        match tick_once(payments, plan, slot, now).await {
            Ok(()) => {
                done = Some(slot);
                wake.notify_one();
            }
            Err(error) => {
                tracing::warn!(%error, window = %plan.window.uuid, slot, "a tick was not stored");
                payments.readiness.trouble("payments database", error.class.advice());
                let pause = plan.window.tick().duration().min(Duration::from_secs(1)) / 5;
                shutdown::sleep(pause, stop).await;
            }
        }
    }
}

/// Stores what is done in one slot: that it is about to be sent, or that it is omitted on purpose.
///
/// # Errors
/// When the database does not do its part; doing it again is harmless.
pub async fn tick_once(
    payments: &Payments,
    plan: &Plan,
    slot: u32,
    now: Timestamp,
) -> Result<(), db::Error> {
    let status = plan.intent(slot).status();
    let window = (&plan.window, payments.owner);
    if repository::insert_tick(&payments.pool, window, slot, status.as_ref(), now).await? {
        payments.metrics.ticked(plan.window.uuid, status.as_ref());
        trace::ticked(payments, &plan.window, slot, status.as_ref());
    }
    Ok(())
}
