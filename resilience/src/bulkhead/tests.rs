use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use proptest::prelude::*;

use super::*;

const WAIT: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn poll(bulkhead: &Bulkhead, ticket: &mut Ticket, now: Time, woken: &Arc<Woken>) -> Poll<bool> {
    let waker = Waker::from(woken.clone());
    let polled = bulkhead.poll_wait(ticket, now, &mut Context::from_waker(&waker));
    polled.map(|result| result.is_ok())
}

fn enter(bulkhead: &Bulkhead) -> Ticket {
    match bulkhead.enter(Time::ZERO) {
        Entry::Queued(ticket) => ticket,
        other => panic!("not queued but {other:?}"),
    }
}

#[test]
fn without_a_queue_what_does_not_fit_is_refused() {
    let bulkhead = Bulkhead::new(2, 0, None);
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Granted));
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Granted));
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Full));
    bulkhead.leave();
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Granted));
    assert_eq!((bulkhead.in_use(), bulkhead.refused_total()), (2, 1));
}

#[test]
fn a_place_goes_to_the_oldest_waiter_and_wakes_it() {
    let bulkhead = Bulkhead::new(1, 2, Some(WAIT));
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Granted));
    let (mut first, mut second) = (enter(&bulkhead), enter(&bulkhead));
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Full));
    let (a, b) = (Arc::default(), Arc::default());
    assert!(poll(&bulkhead, &mut second, Time::ZERO, &b).is_pending());
    assert!(poll(&bulkhead, &mut first, Time::ZERO, &a).is_pending());
    bulkhead.leave();
    assert_eq!((a.times(), b.times()), (1, 0));
    assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (1, 1));
    assert!(poll(&bulkhead, &mut second, Time::ZERO, &b).is_pending());
    assert_eq!(
        poll(&bulkhead, &mut first, Time::ZERO, &a),
        Poll::Ready(true)
    );
}

#[test]
fn who_comes_later_does_not_overtake_those_who_wait() {
    let bulkhead = Bulkhead::new(1, 2, Some(WAIT));
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Granted));
    let mut first = enter(&bulkhead);
    bulkhead.leave();
    let second = enter(&bulkhead);
    assert_eq!(
        poll(&bulkhead, &mut first, Time::ZERO, &Arc::default()),
        Poll::Ready(true)
    );
    bulkhead.cancel(second);
    assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (1, 0));
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let bulkhead = Bulkhead::new(1, 1, Some(WAIT));
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Granted));
    let mut ticket = enter(&bulkhead);
    assert_eq!(ticket.deadline(), Time::ZERO + WAIT);
    let woken = Arc::default();
    assert!(poll(&bulkhead, &mut ticket, Time::from_millis(49), &woken).is_pending());
    assert_eq!(
        poll(&bulkhead, &mut ticket, Time::from_millis(50), &woken),
        Poll::Ready(false)
    );
    assert_eq!((bulkhead.waiting(), bulkhead.refused_total()), (0, 1));
}

#[test]
fn a_place_handed_over_in_time_is_good_after_the_deadline() {
    let bulkhead = Bulkhead::new(1, 1, Some(WAIT));
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Granted));
    let mut ticket = enter(&bulkhead);
    bulkhead.leave();
    let late = Time::from_millis(1000);
    assert_eq!(
        poll(&bulkhead, &mut ticket, late, &Arc::default()),
        Poll::Ready(true)
    );
}

#[test]
fn a_place_handed_to_a_caller_that_left_goes_on_to_the_next() {
    let bulkhead = Bulkhead::new(1, 2, Some(WAIT));
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Granted));
    let (first, mut second) = (enter(&bulkhead), enter(&bulkhead));
    bulkhead.leave();
    bulkhead.cancel(first);
    assert_eq!(
        poll(&bulkhead, &mut second, Time::ZERO, &Arc::default()),
        Poll::Ready(true)
    );
    bulkhead.leave();
    assert_eq!(bulkhead.in_use(), 0);
}

#[test]
fn a_raised_limit_lets_waiters_in_and_a_lowered_one_lets_none_in() {
    let bulkhead = Bulkhead::new(1, 4, Some(WAIT));
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Granted));
    let mut tickets = [(); 3].map(|()| enter(&bulkhead));
    let woken = Arc::default();
    for ticket in &mut tickets {
        assert!(poll(&bulkhead, ticket, Time::ZERO, &woken).is_pending());
    }
    bulkhead.reconfigure(3, 4, Some(WAIT));
    assert_eq!(
        (bulkhead.in_use(), bulkhead.waiting(), woken.times()),
        (3, 1, 2)
    );
    bulkhead.reconfigure(2, 4, Some(WAIT));
    bulkhead.leave();
    assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (2, 1));
    bulkhead.leave();
    assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (2, 0));
}

#[test]
fn threads_never_hold_more_places_than_there_are() {
    let bulkhead = Bulkhead::new(3, 0, None);
    let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    if matches!(bulkhead.enter(Time::ZERO), Entry::Granted) {
                        let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        bulkhead.leave();
                    }
                }
            });
        }
    });
    assert!(most.into_inner() <= 3);
    assert_eq!(bulkhead.in_use(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Enter,
    Leave,
    Poll(prop::sample::Index),
    Cancel(prop::sample::Index),
    Pass(u64),
    Reconfigure { max: u32, queue: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Enter),
        4 => Just(Step::Leave),
        4 => any::<prop::sample::Index>().prop_map(Step::Poll),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        2 => (1u64..30).prop_map(Step::Pass),
        1 => (1u32..4, 0u32..4).prop_map(|(max, queue)| Step::Reconfigure { max, queue }),
    ];
    prop::collection::vec(step, 1..200)
}

/// What one waiter knows and should know.
struct Waiter {
    ticket: Ticket,
    woken: Arc<Woken>,
    polled: bool,
}

proptest! {
    #[test]
    fn any_interleaving_gives_places_in_order_and_loses_no_wake_up(steps in steps()) {
        let (mut max, mut queue) = (2, 2);
        let bulkhead = Bulkhead::new(max, queue, Some(WAIT));
        let mut now = 0;
        // The model: places, waiters by age, and those who were handed a place.
        let mut in_use = 0;
        let mut waiting: VecDeque<u64> = VecDeque::new();
        let mut granted: Vec<u64> = Vec::new();
        let mut waiters: HashMap<u64, Waiter> = HashMap::new();
        let mut next = 0;
        let pick = |waiters: &HashMap<u64, Waiter>, index: prop::sample::Index| {
            let mut ids: Vec<u64> = waiters.keys().copied().collect();
            ids.sort_unstable();
            (!ids.is_empty()).then(|| ids[index.index(ids.len())])
        };
        for step in steps {
            match step {
                Step::Enter => match bulkhead.enter(Time::from_millis(now)) {
                    Entry::Granted => {
                        prop_assert!(waiting.is_empty() && in_use < max);
                        in_use += 1;
                    }
                    Entry::Queued(ticket) => {
                        prop_assert!(in_use >= max && waiting.len() < queue as usize);
                        let waiter = Waiter { ticket, woken: Arc::default(), polled: false };
                        waiters.insert(next, waiter);
                        waiting.push_back(next);
                        next += 1;
                    }
                    Entry::Full => prop_assert!(in_use >= max && waiting.len() >= queue as usize),
                },
                // Only a place that somebody has can be given back.
                Step::Leave if in_use as usize > granted.len() => {
                    bulkhead.leave();
                    in_use -= 1;
                }
                Step::Leave => {}
                Step::Poll(index) => {
                    let Some(id) = pick(&waiters, index) else { continue };
                    let mut waiter = waiters.remove(&id).unwrap();
                    let at = Time::from_millis(now);
                    let polled = poll(&bulkhead, &mut waiter.ticket, at, &waiter.woken);
                    let over = at >= waiter.ticket.deadline();
                    if granted.contains(&id) {
                        prop_assert_eq!(polled, Poll::Ready(true));
                        granted.retain(|other| *other != id);
                    } else if over {
                        prop_assert_eq!(polled, Poll::Ready(false));
                        waiting.retain(|other| *other != id);
                    } else {
                        prop_assert!(polled.is_pending());
                        waiter.polled = true;
                        waiters.insert(id, waiter);
                    }
                }
                Step::Cancel(index) => {
                    let Some(id) = pick(&waiters, index) else { continue };
                    bulkhead.cancel(waiters.remove(&id).unwrap().ticket);
                    waiting.retain(|other| *other != id);
                    if granted.contains(&id) {
                        granted.retain(|other| *other != id);
                        in_use -= 1;
                    }
                }
                Step::Pass(millis) => now += millis,
                Step::Reconfigure { max: new_max, queue: new_queue } => {
                    (max, queue) = (new_max, new_queue);
                    bulkhead.reconfigure(max, queue, Some(WAIT));
                }
            }
            while in_use < max && let Some(id) = waiting.pop_front() {
                in_use += 1;
                granted.push(id);
            }
            prop_assert_eq!(bulkhead.in_use(), in_use);
            prop_assert_eq!(bulkhead.waiting(), waiting.len() as u32);
            for (id, waiter) in &waiters {
                let should = usize::from(waiter.polled && granted.contains(id));
                prop_assert_eq!(waiter.woken.times(), should);
            }
        }
    }
}
