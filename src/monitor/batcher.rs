//! Group commit: calls that come while the database is busy share the next transaction.
//!
//! A commit waits for the disk, and costs about the same for one row as for a thousand. Whoever
//! finds a free place leads: it takes along everything that waits, works once for all, and hands
//! each its own part of the answer. With nobody else around, a call is worked on at once and alone,
//! so that no call ever waits for company. The idea is the group commit of database logs (`DeWitt`
//! et al., "Implementation techniques for main memory database systems", 1984).
//!
//! What one call is to blame for, the others do not suffer: they are worked on again, each alone. The
//! work must end by itself: nobody cancels it, and while it lasts it holds a place.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{Semaphore, oneshot};

use crate::db::{self, Class};

/// Bounds of a [`Batcher`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Transactions at a time.
    pub leaders: usize,
    /// Items of one transaction, unless a single call has more.
    pub group: usize,
    /// Items that may wait.
    pub waiting: usize,
}

/// Calls of one kind that share transactions. Each has any number of items, and gets an answer for
/// each item, in order.
pub struct Batcher<I, O> {
    queue: Mutex<Queue<I, O>>,
    places: Arc<Semaphore>,
    limits: Limits,
}

/// What carries the items of some calls out, and answers for each item, in order.
pub type Work<I, O> = Arc<dyn Fn(Arc<[I]>) -> BoxFuture<'static, Answer<O>> + Send + Sync>;

type Answer<O> = Result<Vec<O>, db::Error>;

struct Queue<I, O> {
    calls: VecDeque<Call<I, O>>,
    /// Items of all calls that wait.
    items: usize,
}

struct Call<I, O> {
    items: Vec<I>,
    answer: oneshot::Sender<Answer<O>>,
}

impl<I, O> fmt::Debug for Batcher<I, O> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Batcher").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl<I, O> Batcher<I, O>
where
    I: Clone + Send + Sync + 'static,
    O: Send + 'static,
{
    /// Nobody waits yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let queue = Queue { calls: VecDeque::new(), items: 0 };
        let places = Arc::new(Semaphore::new(limits.leaders));
        Self { queue: Mutex::new(queue), places, limits }
    }

    /// Has items worked on, perhaps together with those of others. A caller that gives up is not
    /// waited for, but what has begun is carried to its end.
    ///
    /// # Errors
    /// The failure of the work, or that too much waits already.
    pub async fn call(&self, items: Vec<I>, work: Work<I, O>) -> Result<Vec<O>, db::Error> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let mut answer = self.wait_in_line(items)?;
        loop {
            let place = tokio::select! {
                biased;
                answered = &mut answer => return received(answered),
                place = Arc::clone(&self.places).acquire_owned() => place,
            };
            let group = self.next_group();
            if group.is_empty() {
                // Somebody else leads our call.
                drop(place);
                return received(answer.await);
            }
            let work = Arc::clone(&work);
            // In a task of its own: whoever happens to lead may give up, the others have not.
            tokio::spawn(async move {
                lead(group, work).await;
                drop(place);
            });
        }
    }

    fn wait_in_line(&self, items: Vec<I>) -> Result<oneshot::Receiver<Answer<O>>, db::Error> {
        let mut queue = self.lock();
        if queue.items + items.len() > self.limits.waiting.max(items.len()) {
            return Err(db::Error::overloaded());
        }
        let (sender, receiver) = oneshot::channel();
        queue.items += items.len();
        queue.calls.push_back(Call { items, answer: sender });
        Ok(receiver)
    }

    /// The calls that came first and fit together; none if nobody waits. Those whose caller has given
    /// up are left out.
    fn next_group(&self) -> Vec<Call<I, O>> {
        let mut queue = self.lock();
        let mut group = Vec::new();
        let mut items = 0;
        while let Some(call) = queue.calls.pop_front() {
            if items > 0 && items + call.items.len() > self.limits.group {
                queue.calls.push_front(call);
                break;
            }
            queue.items -= call.items.len();
            if !call.answer.is_closed() {
                items += call.items.len();
                group.push(call);
            }
        }
        group
    }

    fn lock(&self) -> MutexGuard<'_, Queue<I, O>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn received<O>(answered: Result<Answer<O>, RecvError>) -> Answer<O> {
    answered.unwrap_or_else(|_| Err(db::Error::crashed()))
}

/// Works on a group, and hands out the answers.
async fn lead<I, O>(group: Vec<Call<I, O>>, work: Work<I, O>)
where
    I: Clone + Send + Sync + 'static,
    O: Send + 'static,
{
    let mut items = Vec::with_capacity(group.iter().map(|call| call.items.len()).sum());
    let mut callers = Vec::with_capacity(group.len());
    for call in group {
        callers.push((items.len()..items.len() + call.items.len(), call.answer));
        items.extend(call.items);
    }
    let items: Arc<[I]> = items.into();
    match carry_out(&work, Arc::clone(&items)).await {
        Ok(answers) => {
            let mut answers = answers.into_iter();
            for (range, caller) in callers {
                caller.send(Ok(answers.by_ref().take(range.len()).collect())).ok();
            }
        }
        Err(error) if callers.len() > 1 && is_somebodys_fault(&error) => {
            for (range, caller) in callers.into_iter().filter(|(_, caller)| !caller.is_closed()) {
                caller.send(carry_out(&work, items[range].into()).await).ok();
            }
        }
        Err(error) => {
            for (_, caller) in callers {
                caller.send(Err(error.clone())).ok();
            }
        }
    }
}

/// Carries items out, in a task of its own: a panic is the fault of some item.
async fn carry_out<I, O: Send + 'static>(work: &Work<I, O>, items: Arc<[I]>) -> Answer<O> {
    let expected = items.len();
    let answers = tokio::spawn(work(items)).await.unwrap_or_else(|_| Err(db::Error::crashed()))?;
    debug_assert_eq!(answers.len(), expected, "one answer for each item");
    Ok(answers)
}

/// Whether a failure may be about a single item, so that the others would pass without it.
fn is_somebodys_fault(error: &db::Error) -> bool {
    matches!(error.class, Class::Data | Class::Bug)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use tokio::sync::Notify;
    use tokio::time::timeout;

    use super::*;

    const LIMITS: Limits = Limits { leaders: 1, group: 8, waiting: 20 };

    /// Doubles numbers; says which were worked on together; waits at the door as long as told.
    #[derive(Default)]
    struct Doubling {
        groups: Mutex<Vec<Vec<i64>>>,
        is_shut: bool,
        door: Notify,
    }

    fn work(doubling: &Arc<Doubling>) -> Work<i64, i64> {
        let doubling = Arc::clone(doubling);
        Arc::new(move |items: Arc<[i64]>| {
            let doubling = Arc::clone(&doubling);
            Box::pin(async move {
                doubling.groups.lock().unwrap().push(items.to_vec());
                if doubling.is_shut {
                    doubling.door.notified().await;
                }
                assert!(!items.contains(&-1), "an item that makes the work panic");
                if items.contains(&-2) {
                    return Err(db::Error::bad_row("an item that cannot be stored".to_owned()));
                }
                if items.contains(&-3) {
                    return Err(db::Error::overloaded());
                }
                Ok(items.iter().map(|item| item * 2).collect())
            })
        })
    }

    fn groups(doubling: &Doubling) -> Vec<Vec<i64>> {
        doubling.groups.lock().unwrap().clone()
    }

    /// Calls that all wait behind a first one, with the items `[100]`, until it is let through.
    async fn behind_another(
        batcher: &Arc<Batcher<i64, i64>>,
        doubling: &Arc<Doubling>,
        calls: &[&[i64]],
    ) -> Vec<Result<Vec<i64>, db::Error>> {
        let call = |items: Vec<i64>| {
            let (batcher, work) = (Arc::clone(batcher), work(doubling));
            let calling = tokio::spawn(async move { batcher.call(items, work).await });
            async { timeout(Duration::from_secs(10), calling).await.unwrap().unwrap() }
        };
        let first = call(vec![100]);
        tokio::task::yield_now().await;
        let mut answers = Vec::new();
        for items in calls {
            answers.push(call(items.to_vec()));
            tokio::task::yield_now().await;
        }
        // One for each time that the work can begin.
        for _ in 0..=2 * calls.len() {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            doubling.door.notify_one();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(first.await.unwrap(), [200]);
        let mut answered = Vec::new();
        for answer in answers {
            answered.push(answer.await);
        }
        answered
    }

    fn shut() -> (Arc<Batcher<i64, i64>>, Arc<Doubling>) {
        let doubling = Doubling { is_shut: true, ..Doubling::default() };
        (Arc::new(Batcher::new(LIMITS)), Arc::new(doubling))
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_done_together_and_each_gets_its_own() {
        let (batcher, doubling) = shut();
        let answers = behind_another(&batcher, &doubling, &[&[1, 2], &[3], &[4, 5, 6]]).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [vec![2, 4], vec![6], vec![8, 10, 12]]);
        assert_eq!(groups(&doubling), [vec![100], vec![1, 2, 3, 4, 5, 6]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_has_a_limit_that_one_call_alone_may_exceed() {
        let (batcher, doubling) = shut();
        let many: Vec<i64> = (1..=10).collect();
        let answers = behind_another(&batcher, &doubling, &[&[1; 5], &many, &[2; 2]]).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(groups(&doubling), [vec![100], vec![1; 5], many, vec![2; 2]]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_is_to_blame_for_the_others_do_not_suffer() {
        for bad in [-1, -2] {
            let (batcher, doubling) = shut();
            let answers = behind_another(&batcher, &doubling, &[&[1], &[bad, 5], &[2]]).await;
            assert_eq!(answers[0].as_ref().unwrap(), &[2], "{bad}");
            assert_eq!(answers[1].as_ref().unwrap_err().class, Class::Bug, "{bad}");
            assert_eq!(answers[2].as_ref().unwrap(), &[4], "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_is_to_blame_for_all_are_told_at_once() {
        let (batcher, doubling) = shut();
        let answers = behind_another(&batcher, &doubling, &[&[1], &[-3]]).await;
        assert!(answers.iter().all(Result::is_err));
        assert_eq!(groups(&doubling).len(), 2, "nothing is tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn too_much_is_refused_and_room_comes_back() {
        let (batcher, doubling) = shut();
        let answers = behind_another(&batcher, &doubling, &[&[1; 15], &[2; 6], &[3; 5]]).await;
        assert!(answers[0].is_ok() && answers[2].is_ok());
        assert_eq!(answers[1].as_ref().unwrap_err().class, Class::Unavailable);
        let more = behind_another(&batcher, &doubling, &[&[4; 20]]).await;
        assert!(more[0].is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_takes_nobody_along() {
        let (batcher, doubling) = shut();
        let spawn = |items: Vec<i64>| {
            let (batcher, work) = (Arc::clone(&batcher), work(&doubling));
            tokio::spawn(async move { batcher.call(items, work).await })
        };
        let first = spawn(vec![1]);
        tokio::task::yield_now().await;
        let [leader, other, early] = [2, 3, 4].map(|item| spawn(vec![item]));
        tokio::time::sleep(Duration::from_millis(1)).await;
        early.abort();
        doubling.door.notify_one();
        assert_eq!(first.await.unwrap().unwrap(), [2]);
        tokio::time::sleep(Duration::from_millis(1)).await;
        leader.abort();
        tokio::time::sleep(Duration::from_millis(1)).await;
        doubling.door.notify_one();
        assert_eq!(other.await.unwrap().unwrap(), [6]);
        assert_eq!(groups(&doubling), [vec![1], vec![2, 3]], "nobody wants the fourth");
    }

    #[tokio::test]
    async fn many_at_once_are_all_answered() {
        let batcher = Arc::new(Batcher::new(Limits { leaders: 2, group: 50, waiting: 100_000 }));
        let doubling = Arc::new(Doubling::default());
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..2_000 {
            let (batcher, work) = (Arc::clone(&batcher), work(&doubling));
            calls.spawn(async move {
                let items = vec![number; usize::try_from(number % 7).unwrap()];
                let expected: Vec<i64> = items.iter().map(|item| item * 2).collect();
                assert_eq!(batcher.call(items, work).await.unwrap(), expected);
            });
        }
        timeout(Duration::from_secs(30), calls.join_all()).await.unwrap();
        assert!(groups(&doubling).len() < 1_700, "they shared");
    }
}
