//! Many threads at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use super::*;

const THREADS: usize = 8;

/// Runs `body` on all threads, begun together.
fn together(body: impl Fn(usize) + Sync) {
    let barrier = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for n in 0..THREADS {
            let (barrier, body) = (&barrier, &body);
            scope.spawn(move || {
                barrier.wait();
                body(n);
            });
        }
    });
}

#[test]
fn threads_that_cross_the_threshold_at_once_make_one_transition() {
    for _ in 0..50 {
        let now = Time::from_millis(1);
        let breaker = Breaker::new(&config(), THREADS, now, 0);
        together(|n| {
            for _ in 0..20 {
                if let Ok(permit) = breaker.acquire(now, 0) {
                    breaker.record(n, permit, now, 0, &bad());
                }
            }
        });
        let mut steps = Vec::new();
        breaker.poll(now, &mut steps);
        assert_eq!(steps.len(), 1);
        assert_eq!((steps[0].to, steps[0].epoch), (State::Open, 1));
        assert_eq!(breaker.status(now).epoch, 1);
    }
}

#[test]
fn threads_that_come_to_a_ready_breaker_at_once_get_exactly_the_probes() {
    for _ in 0..50 {
        let breaker = Breaker::new(&config(), THREADS, Time::ZERO, 0);
        for _ in 0..3 {
            let permit = breaker.acquire(Time::ZERO, 0).unwrap();
            breaker.record(0, permit, Time::ZERO, 0, &bad());
        }
        let later = Time::from_millis(6_000);
        let admitted = AtomicUsize::new(0);
        together(|_| {
            for _ in 0..20 {
                if let Ok(permit) = breaker.acquire(later, 0) {
                    assert!(permit.is_probe());
                    admitted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        assert_eq!(admitted.into_inner(), 2);
        let mut steps = Vec::new();
        breaker.poll(later, &mut steps);
        assert_eq!(steps.len(), 2);
    }
}

#[test]
fn no_sample_of_any_worker_is_lost() {
    let quiet = config::Breaker {
        failure_percent: None,
        ..config()
    };
    let breaker = Arc::new(Breaker::new(&quiet, THREADS, Time::ZERO, 0));
    together(|n| {
        for _ in 0..10_000 {
            let permit = breaker.acquire(Time::ZERO, 0).unwrap();
            breaker.record(n, permit, Time::ZERO, 0, &bad());
        }
    });
    let status = breaker.status(Time::ZERO);
    assert_eq!(status.window_requests, 10_000 * THREADS as u64);
    assert_eq!(status.failure_percent, 100);
}
