use proptest::prelude::*;

use super::*;
use crate::config::{CpuSource, Mode};

const TICK: Duration = Duration::from_millis(200);

fn percent(value: u32) -> Percent {
    Percent::new(value).unwrap()
}

fn share(value: u32) -> Share {
    Share::from_percent(percent(value))
}

fn config(cpu: Option<(u32, u32)>, pressure: Option<u32>) -> LoadShedding {
    LoadShedding {
        key: "payments".to_owned(),
        max_concurrency: None,
        cpu: cpu.map(|(threshold, max_drop)| CpuShedding {
            source: CpuSource::Pod,
            threshold: percent(threshold),
            max_drop: percent(max_drop),
        }),
        pressure: pressure.map(percent),
        mode: Mode::Enforce,
    }
}

fn shed(cpu: Option<(u32, u32)>, pressure: Option<u32>) -> (Shed, Arc<Figures>) {
    let figures = Arc::new(Figures::default());
    let shed = Shed::new(&config(cpu, pressure), &figures, &figures).unwrap();
    (shed, figures)
}

/// Sets a figure at once: so long a sample leaves nothing of what was before.
fn set(figure: &Figure, value: u32, now: Time) {
    figure.sample(share(value), Duration::from_secs(60), now);
}

/// Of 10,000 requests, those that are refused.
fn refused(shed: &Shed, now: Time) -> usize {
    let admitted = |n: &u64| shed.admit(now, mix(*n)).is_err();
    (0..10_000).filter(admitted).count()
}

#[test]
fn nothing_is_refused_up_to_the_threshold_and_the_maximum_at_all_of_the_cpu() {
    let (shed, figures) = shed(Some((80, 90)), None);
    let now = Time::from_millis(5);
    for (figure, refuses) in [(0, 0), (79, 0), (80, 0), (90, 45), (95, 67), (100, 90)] {
        set(&figures.cpu, figure, now);
        assert_eq!(shed.refuses(now).percent(), refuses, "at {figure}%");
        let refused = refused(&shed, now) as f64 / 100.0;
        assert!(
            (refused - f64::from(refuses)).abs() < 2.0,
            "{refused}% refused at {figure}%"
        );
    }
}

#[test]
fn a_refusal_says_what_is_above_which_limit() {
    let (shed, figures) = shed(Some((80, 100)), Some(20));
    set(&figures.cpu, 100, Time::ZERO);
    let refused = shed.admit(Time::ZERO, 0).unwrap_err();
    assert_eq!(refused.cause, Cause::Cpu);
    assert_eq!(refused.to_string(), "use of CPU is 100%, the limit 80%");
    set(&figures.cpu, 10, Time::ZERO);
    set(&figures.memory_pressure, 100, Time::ZERO);
    let refused = (0..100).find_map(|n| shed.admit(Time::ZERO, n).err());
    assert_eq!(
        refused.unwrap().to_string(),
        "time waiting for memory is 100%, the limit 20%"
    );
}

#[test]
fn pressure_always_lets_some_requests_through() {
    for limit in [1, 50, 100] {
        let (shed, figures) = shed(None, Some(limit));
        set(&figures.cpu_pressure, 100, Time::ZERO);
        assert_eq!(shed.refuses(Time::ZERO).percent(), 90);
        set(&figures.cpu_pressure, limit - 1, Time::ZERO);
        assert_eq!(shed.refuses(Time::ZERO).percent(), 0);
    }
}

#[test]
fn what_is_not_measured_refuses_nothing() {
    let (shed, figures) = shed(Some((1, 100)), Some(1));
    assert_eq!(refused(&shed, Time::from_millis(9)), 0);
    let at = Time::from_millis(1_000);
    set(&figures.cpu, 100, at);
    set(&figures.cpu_pressure, 100, at);
    assert_eq!(refused(&shed, at + STALE), 10_000);
    assert_eq!(refused(&shed, at + STALE + Duration::from_millis(1)), 0);
}

#[test]
fn nothing_asked_for_is_no_machine() {
    let figures = Arc::new(Figures::default());
    assert!(Shed::new(&config(None, None), &figures, &figures).is_none());
}

#[test]
fn a_figure_covers_most_of_a_step_in_its_time_however_often_it_is_sampled() {
    for every in [50, 100, 200, 250, 500] {
        let (figure, every) = (Figure::default(), Duration::from_millis(every));
        let mut now = Time::ZERO;
        while now < Time::ZERO + FOLLOWS {
            now = now + every;
            figure.sample(share(100), every, now);
        }
        assert_eq!(figure.read(now).unwrap().percent(), 63, "every {every:?}");
    }
}

#[test]
fn a_figure_that_was_lost_begins_anew() {
    let figure = Figure::default();
    set(&figure, 100, Time::ZERO);
    let later = Time::ZERO + STALE + TICK;
    figure.sample(share(100), TICK, later);
    assert_eq!(figure.read(later).unwrap().percent(), 18);
}

#[test]
fn a_share_is_never_more_than_all() {
    let second = Duration::from_secs(1);
    assert_eq!(Share::of(second * 3, second), Some(share(100)));
    assert_eq!(Share::of(second / 4, second), Some(share(25)));
    assert_eq!(
        Share::of(Duration::MAX, Duration::from_nanos(1)),
        Some(share(100))
    );
    assert_eq!(Share::of(second, Duration::ZERO), None);
}

#[test]
fn a_load_that_swings_about_its_limit_is_told_once() {
    let (shed, figures) = shed(Some((80, 90)), None);
    let mut told = Vec::new();
    let mut now = Time::ZERO;
    for n in 0..300 {
        now = now + TICK;
        set(&figures.cpu, if n % 20 < 10 { 95 } else { 60 }, now);
        told.extend(shed.observe(now));
    }
    assert!(matches!(told[..], [Transition::Started(_)]), "{told:?}");
    let swung = now;
    while told.len() < 2 {
        now = now + TICK;
        set(&figures.cpu, 60, now);
        told.extend(shed.observe(now));
        assert!(now.since(swung) < QUIET * 2);
    }
    let lasted = Duration::from_secs(60) - TICK * 11;
    assert_eq!(told[1], Transition::Stopped { lasted });
}

#[test]
fn shedding_ends_when_nothing_is_measured_any_more() {
    let (shed, figures) = shed(Some((80, 90)), None);
    set(&figures.cpu, 100, Time::ZERO);
    assert!(matches!(
        shed.observe(Time::ZERO),
        Some(Transition::Started(_))
    ));
    assert_eq!(shed.observe(Time::ZERO + STALE), None);
    let told = shed.observe(Time::ZERO + STALE + QUIET);
    assert_eq!(told, Some(Transition::Stopped { lasted: STALE }));
    assert_eq!(shed.observe(Time::ZERO + STALE + QUIET * 2), None);
}

#[test]
fn new_limits_tell_nothing_anew() {
    let (before, figures) = shed(Some((80, 90)), None);
    set(&figures.cpu, 100, Time::ZERO);
    assert!(before.observe(Time::ZERO).is_some());
    let after = Shed::new(&config(Some((50, 90)), None), &figures, &figures).unwrap();
    assert!(!after.judges_like(&before));
    let after = after.continuing(&before);
    assert_eq!(after.observe(Time::ZERO), None);
    let same = Shed::new(&config(Some((50, 90)), None), &figures, &figures).unwrap();
    assert!(same.judges_like(&after));
}

/// A pod with one second of CPU a second, which keeps a queue; work that it is
/// not given is gone. Returns what it did of what it could, the longest queue in
/// seconds, and the share refused, all after a minute's settling.
fn pod_under(load: f64) -> (f64, f64, f64) {
    let (shed, figures) = shed(Some((80, 90)), None);
    let (mut queue, mut now) = (0.0, Time::ZERO);
    let (mut done, mut longest, mut refused) = (0.0f64, 0.0f64, 0.0);
    let step = TICK.as_secs_f64();
    for n in 0..600 {
        let refuses = shed.refuses(now).ratio();
        queue += load * step * (1.0 - refuses);
        let used = queue.min(step);
        queue -= used;
        now = now + TICK;
        let used_share = Share::of(Duration::from_secs_f64(used), TICK).unwrap();
        figures.cpu.sample(used_share, TICK, now);
        if n >= 300 {
            done += used / step / 300.0;
            longest = longest.max(queue);
            refused += refuses / 300.0;
        }
    }
    (done, longest, refused)
}

#[test]
fn a_pod_under_any_load_keeps_working_and_settles() {
    assert_eq!(pod_under(0.7), (0.7f64.min(pod_under(0.7).0), 0.0, 0.0));
    for (load, at_least) in [
        (0.9, 0.80),
        (1.2, 0.85),
        (1.5, 0.88),
        (2.0, 0.91),
        (4.0, 0.95),
    ] {
        let (done, longest, refused) = pod_under(load);
        assert!(done >= at_least, "at {load}: {done} of what it can");
        assert!(longest <= 0.5, "at {load}: {longest} s of work wait");
        assert!(refused < 0.9, "at {load}: {refused} refused");
    }
}

proptest! {
    #[test]
    fn more_load_never_refuses_less(
        threshold in 1u32..100,
        max_drop in 1u32..=100,
        low in 0u32..=100,
        more in 0u32..=100,
        random: u64,
    ) {
        let (shed, figures) = shed(Some((threshold, max_drop)), None);
        let high = (low + more).min(100);
        set(&figures.cpu, low, Time::ZERO);
        let (at_low, refused_at_low) = (shed.refuses(Time::ZERO), shed.admit(Time::ZERO, random).is_err());
        set(&figures.cpu, high, Time::ZERO);
        let (at_high, refused_at_high) = (shed.refuses(Time::ZERO), shed.admit(Time::ZERO, random).is_err());
        prop_assert!(at_low <= at_high);
        prop_assert!(at_high <= share(max_drop));
        prop_assert!(!refused_at_low || refused_at_high);
        prop_assert_eq!(at_low > Share(0), low > threshold);
    }

    #[test]
    fn a_figure_stays_between_its_samples(samples in prop::collection::vec((0u32..=100, 1u64..2_000), 1..40)) {
        let figure = Figure::default();
        let mut now = Time::from_millis(7);
        let highest = samples.iter().map(|(value, _)| share(*value)).max().unwrap();
        for (value, millis) in samples {
            let over = Duration::from_millis(millis);
            now = now + over;
            figure.sample(share(value), over, now);
            prop_assert!(figure.read(now).unwrap() <= highest);
        }
    }
}
