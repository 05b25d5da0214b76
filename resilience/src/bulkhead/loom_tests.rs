//! The bulkhead under every interleaving of two threads.

use loom::sync::Arc;
use loom::thread;

use super::*;

fn poll(bulkhead: &Bulkhead, ticket: &mut Ticket) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    bulkhead.poll_wait(ticket, Time::ZERO, &mut cx).is_ready()
}

fn full(queue: u32) -> Arc<Bulkhead> {
    let bulkhead = Bulkhead::new(1, queue, Some(Duration::from_secs(1)));
    assert!(matches!(bulkhead.enter(Time::ZERO), Entry::Granted));
    Arc::new(bulkhead)
}

#[test]
fn loom_a_place_that_comes_free_while_somebody_joins_the_queue_is_not_lost() {
    loom::model(|| {
        let bulkhead = full(1);
        let thread = {
            let bulkhead = bulkhead.clone();
            thread::spawn(move || bulkhead.enter(Time::ZERO))
        };
        bulkhead.leave();
        match thread.join().unwrap() {
            Entry::Granted => {}
            Entry::Queued(mut ticket) => assert!(poll(&bulkhead, &mut ticket)),
            Entry::Full => panic!("there was a place to wait"),
        }
        assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (1, 0));
    });
}

#[test]
fn loom_a_place_handed_to_one_who_leaves_reaches_the_next() {
    loom::model(|| {
        let bulkhead = full(2);
        let Entry::Queued(first) = bulkhead.enter(Time::ZERO) else {
            panic!("not queued")
        };
        let Entry::Queued(mut second) = bulkhead.enter(Time::ZERO) else {
            panic!("not queued")
        };
        let thread = {
            let bulkhead = bulkhead.clone();
            thread::spawn(move || bulkhead.leave())
        };
        bulkhead.cancel(first);
        thread.join().unwrap();
        assert!(poll(&bulkhead, &mut second));
        assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (1, 0));
    });
}

#[test]
fn loom_there_are_never_more_inside_than_places() {
    loom::model(|| {
        let bulkhead = Arc::new(Bulkhead::new(1, 0, None));
        let inside = Arc::new(AtomicU32::new(0));
        let threads = [(); 2].map(|()| {
            let (bulkhead, inside) = (bulkhead.clone(), inside.clone());
            thread::spawn(move || {
                if matches!(bulkhead.enter(Time::ZERO), Entry::Granted) {
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    bulkhead.leave();
                }
            })
        });
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(bulkhead.in_use(), 0);
    });
}
