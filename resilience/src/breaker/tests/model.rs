//! A breaker behaves as a simple one that is easily seen to be right.

use proptest::prelude::*;

use super::*;

/// The breaker without threads, words and buckets: one enum and a list.
struct Model {
    config: config::Breaker,
    state: Now,
    epoch: u64,
    failed_recoveries: u32,
    ramp_until: Time,
    /// Start of the window.
    origin: Time,
    samples: Vec<(Time, Outcome)>,
    run: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Now {
    Closed,
    Open {
        until: Time,
    },
    HalfOpen {
        deadline: Option<Time>,
        in_flight: u32,
        successes: u32,
    },
}

impl Model {
    fn new(config: config::Breaker, now: Time) -> Model {
        Model {
            config,
            state: Now::Closed,
            epoch: 0,
            failed_recoveries: 0,
            ramp_until: Time::ZERO,
            origin: now,
            samples: Vec::new(),
            run: 0,
        }
    }

    fn become_(&mut self, state: Now) {
        self.state = state;
        self.epoch += 1;
    }

    fn open(&mut self, now: Time) {
        let open = self.config.open;
        let time =
            (0..self.failed_recoveries).fold(open.duration, |time, _| (time * 2).min(open.max));
        self.become_(Now::Open { until: now + time });
    }

    fn advance(&mut self, now: Time) {
        loop {
            match self.state {
                Now::Open { until } if until <= now => {
                    self.become_(Now::HalfOpen {
                        deadline: None,
                        in_flight: 0,
                        successes: 0,
                    });
                }
                Now::HalfOpen {
                    deadline: Some(deadline),
                    ..
                } if deadline <= now => {
                    self.failed_recoveries += 1;
                    self.open(deadline);
                }
                _ => return,
            }
        }
    }

    fn restart(&mut self, now: Time) {
        self.origin = now;
        self.samples.clear();
    }

    fn acquire(&mut self, now: Time, lucky: bool) -> bool {
        self.advance(now);
        let timeout = self.config.half_open.timeout;
        match &mut self.state {
            Now::Closed => lucky || self.ramp_until <= now,
            Now::Open { .. } => false,
            Now::HalfOpen {
                deadline,
                in_flight,
                ..
            } => {
                if *in_flight >= u32::from(self.config.half_open.probes.get()) {
                    return false;
                }
                *in_flight += 1;
                deadline.get_or_insert(now + timeout);
                true
            }
        }
    }

    fn window(&self, now: Time) -> Vec<Outcome> {
        let nanos = |window: Duration, parts: u32| (window / parts).as_nanos() as u64;
        let part = |time: Time, nanos: u64| time.since(self.origin).as_nanos() as u64 / nanos;
        let recent = |nanos: u64, parts: u64| {
            let of = move |(at, _): &&(Time, Outcome)| part(*at, nanos) + parts > part(now, nanos);
            self.samples
                .iter()
                .filter(of)
                .map(|(_, outcome)| *outcome)
                .collect()
        };
        match self.config.window {
            Window::Fixed(window) => recent(nanos(window, 1), 1),
            Window::Rolling(window) => recent(nanos(window, 16), 16),
            Window::Count(size) => {
                let skip = self.samples.len().saturating_sub(size.get() as usize);
                self.samples[skip..]
                    .iter()
                    .map(|(_, outcome)| *outcome)
                    .collect()
            }
        }
    }

    fn record(&mut self, epoch: u64, now: Time, outcome: Outcome) {
        self.advance(now);
        if epoch != self.epoch {
            return;
        }
        let cause = match outcome {
            Outcome::Failure {
                cause: Cause::Timeout,
                ..
            } if !self.config.failure_on.timeouts => {
                return self.release(epoch);
            }
            Outcome::Failure { cause, .. } => Some(cause),
            Outcome::Success { .. } => None,
        };
        match &mut self.state {
            Now::Open { .. } => {}
            Now::HalfOpen {
                deadline,
                in_flight,
                successes,
            } => {
                if cause.is_some() {
                    self.failed_recoveries += 1;
                    return self.open(now);
                }
                *in_flight -= 1;
                *successes += 1;
                if *in_flight == 0 {
                    *deadline = None;
                }
                if *successes >= u32::from(self.config.half_open.probes.get()) {
                    self.become_(Now::Closed);
                    self.restart(now);
                    self.run = 0;
                    let ramp_up = self.config.half_open.ramp_up;
                    self.ramp_until = ramp_up.map_or(Time::ZERO, |ramp_up| now + ramp_up);
                }
            }
            Now::Closed => {
                self.samples.push((now, outcome));
                let limit = self
                    .config
                    .consecutive_failures
                    .map_or(u32::MAX, |limit| limit.get());
                match cause {
                    _ if self.config.consecutive_failures.is_none() => self.run = 0,
                    None => self.run = 0,
                    Some(cause) if !cause.is_soft() => self.run += 1,
                    Some(_) => {}
                }
                let window = self.window(now);
                let failed = window
                    .iter()
                    .filter(|outcome| !matches!(outcome, Outcome::Success { .. }));
                let (failed, total) = (failed.count() as u32, window.len() as u32);
                let percent = self
                    .config
                    .failure_percent
                    .map_or(u32::MAX, |percent| percent.get());
                let too_many = total >= self.config.minimum_requests.get()
                    && u64::from(failed) * 100 >= u64::from(percent) * u64::from(total);
                let in_a_row = cause.is_some_and(|cause| !cause.is_soft()) && self.run >= limit;
                if in_a_row || cause.is_some() && too_many {
                    self.failed_recoveries = if now < self.ramp_until {
                        self.failed_recoveries + 1
                    } else {
                        0
                    };
                    self.open(now);
                }
            }
        }
    }

    fn release(&mut self, epoch: u64) {
        if let Now::HalfOpen { in_flight, .. } = &mut self.state
            && epoch == self.epoch
        {
            *in_flight -= 1;
        }
    }

    fn reconfigure(&mut self, config: config::Breaker, now: Time) {
        self.advance(now);
        if config.window != self.config.window {
            self.restart(now);
        }
        if config.consecutive_failures.is_none() {
            self.run = 0;
        }
        self.config = config;
    }

    fn state(&self) -> State {
        match self.state {
            Now::Closed => State::Closed,
            Now::Open { .. } => State::Open,
            Now::HalfOpen { .. } => State::HalfOpen,
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Acquire {
        lucky: bool,
    },
    /// Of one of the requests under way.
    Record(prop::sample::Index, Outcome),
    Drop(prop::sample::Index),
    Pass(Duration),
    Reconfigure(Box<config::Breaker>),
    Look,
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        3 => Just(ok()),
        3 => Just(bad()),
        1 => Just(failed(Cause::Status(429))),
        1 => Just(failed(Cause::Timeout)),
    ]
}

fn configs() -> impl Strategy<Value = config::Breaker> {
    let windows = prop::sample::select(vec![
        Window::Fixed(4 * SECOND),
        Window::Rolling(4 * SECOND),
        Window::Count(NonZeroU32::new(5).unwrap()),
    ]);
    (
        windows,
        1u32..5,
        0u32..100,
        0u32..5,
        1u16..4,
        any::<[bool; 2]>(),
    )
        .prop_map(
            |(window, minimum, percent, in_a_row, probes, [ramp, timeouts])| {
                let mut config = config();
                config.window = window;
                config.minimum_requests = NonZeroU32::new(minimum).unwrap();
                config.failure_percent = Percent::new(percent).filter(|percent| percent.get() > 0);
                config.consecutive_failures = NonZeroU32::new(in_a_row);
                config.failure_on.timeouts = timeouts;
                config.open.duration = SECOND;
                config.open.max = 6 * SECOND;
                config.half_open.probes = NonZeroU16::new(probes).unwrap();
                config.half_open.timeout = 2 * SECOND;
                config.half_open.ramp_up = ramp.then_some(2 * SECOND);
                config
            },
        )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::bool::weighted(0.8).prop_map(|lucky| Step::Acquire { lucky }),
        6 => (any::<prop::sample::Index>(), outcomes()).prop_map(|(n, outcome)| Step::Record(n, outcome)),
        1 => any::<prop::sample::Index>().prop_map(Step::Drop),
        3 => (1u64..3000).prop_map(|millis| Step::Pass(Duration::from_millis(millis))),
        1 => Just(Step::Look),
    ];
    let step = prop_oneof![40 => step, 1 => configs().prop_map(|config| Step::Reconfigure(Box::new(config)))];
    prop::collection::vec(step, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_interleaving_gives_the_state_of_the_simple_model(config in configs(), steps in steps()) {
        let mut now = Time::from_millis(77);
        let breaker = Breaker::new(&config, 2, now, 0);
        let mut model = Model::new(config, now);
        let mut under_way: Vec<(Permit, u64)> = Vec::new();
        let mut events = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Acquire { lucky } => {
                    let random = if lucky { 0 } else { u64::MAX };
                    let permit = breaker.acquire(now, random);
                    prop_assert_eq!(permit.is_ok(), model.acquire(now, lucky));
                    match permit {
                        Ok(permit) => {
                            let half_open = matches!(model.state, Now::HalfOpen { .. });
                            prop_assert_eq!(permit.is_probe(), half_open);
                            under_way.push((permit, model.epoch));
                            let probes = usize::from(model.config.half_open.probes.get());
                            let of_now = under_way.iter().filter(|(_, epoch)| *epoch == model.epoch);
                            prop_assert!(!half_open || of_now.count() <= probes);
                        }
                        Err(refused) => prop_assert_eq!(refused.state, model.state()),
                    }
                }
                Step::Record(index, outcome) if !under_way.is_empty() => {
                    let (permit, epoch) = under_way.remove(index.index(under_way.len()));
                    breaker.record(n, permit, now, 0, &outcome);
                    model.record(epoch, now, outcome);
                }
                Step::Drop(index) if !under_way.is_empty() => {
                    let (permit, epoch) = under_way.remove(index.index(under_way.len()));
                    breaker.release(permit, now);
                    model.advance(now);
                    model.release(epoch);
                }
                Step::Record(..) | Step::Drop(_) => {}
                Step::Pass(time) => now = now + time,
                Step::Reconfigure(config) => {
                    breaker.reconfigure(&config, now, 0);
                    model.reconfigure(*config, now);
                }
                Step::Look => {
                    model.advance(now);
                    let status = breaker.status(now);
                    prop_assert_eq!(status.state, model.state());
                    prop_assert_eq!(status.epoch, model.epoch);
                    if status.state == State::Closed {
                        prop_assert_eq!(status.window_requests, model.window(now).len() as u64);
                    }
                }
            }
        }
        breaker.poll(now, &mut events);
        model.advance(now);
        prop_assert_eq!(breaker.state(now), model.state());
        prop_assert_eq!(events.len() as u64 + breaker.lost_transitions(), model.epoch);
        for pair in events.windows(2) {
            prop_assert_eq!((pair[0].to, pair[0].epoch + 1), (pair[1].from, pair[1].epoch));
            prop_assert!(pair[0].at <= pair[1].at);
        }
    }
}
