//! What the agent counts. Each worker writes only its own shard, so that
//! counting costs no shared write; `/metrics` adds the shards up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the latency buckets, in microseconds.
pub(crate) const LATENCY_BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident => $family:literal, $label:literal;)*) => {
        /// Everything that is counted per service port.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub(crate) enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every counter, with its family and the label value in it
            /// (empty: the family has no label of its own).
            pub(crate) const ALL: &[(Counter, &'static str, &'static str)] =
                &[$((Counter::$name, $family, $label),)*];
        }

        const COUNTERS: usize = [$(Counter::$name,)*].len();
    };
}

counters! {
    /// Responses of the destination by class, as the caller got them.
    Status1xx => "weir_responses_total", "1xx";
    Status2xx => "weir_responses_total", "2xx";
    Status3xx => "weir_responses_total", "3xx";
    Status4xx => "weir_responses_total", "4xx";
    Status5xx => "weir_responses_total", "5xx";
    /// Requests whose caller left before the response ended.
    CallerGone => "weir_cancelled_total", "";
    /// Connections that were passed through as bytes, by how they ended.
    TcpComplete => "weir_tcp_connections_total", "complete";
    TcpReset => "weir_tcp_connections_total", "reset";
    TcpIdle => "weir_tcp_connections_total", "idle";
    /// Tries sent to an endpoint.
    Tries => "weir_tries_total", "";
    /// Tries that ended in a failure.
    FailedConnect => "weir_failed_tries_total", "connect";
    FailedOwn => "weir_failed_tries_total", "own";
    FailedReset => "weir_failed_tries_total", "reset";
    FailedTimeout => "weir_failed_tries_total", "timeout";
    FailedStatus => "weir_failed_tries_total", "status";
    /// Extra tries made.
    Retries => "weir_retries_total", "";
    /// Why a failed try was the last one.
    StopTries => "weir_retries_stopped_total", "no_tries_left";
    StopMethod => "weir_retries_stopped_total", "unsafe_method";
    StopBody => "weir_retries_stopped_total", "body_too_large";
    StopDeadline => "weir_retries_stopped_total", "deadline_too_near";
    StopPushback => "weir_retries_stopped_total", "pushback";
    StopBreaker => "weir_retries_stopped_total", "breaker_open";
    StopBudget => "weir_retries_stopped_total", "budget_exhausted";
    /// Refusals and failures that Weir answered itself, by reason.
    AnswerBreakerOpen => "weir_answers_total", "breaker_open";
    AnswerBulkheadFull => "weir_answers_total", "bulkhead_full";
    AnswerBulkheadWait => "weir_answers_total", "bulkhead_wait";
    AnswerConcurrencyLimit => "weir_answers_total", "concurrency_limit";
    AnswerShedCpu => "weir_answers_total", "shed_cpu";
    AnswerShedPressure => "weir_answers_total", "shed_pressure";
    AnswerNoEndpoints => "weir_answers_total", "no_endpoints";
    AnswerConnectFailed => "weir_answers_total", "connect_failed";
    AnswerConnectTimeout => "weir_answers_total", "connect_timeout";
    AnswerTerminated => "weir_answers_total", "terminated";
    AnswerBadResponse => "weir_answers_total", "bad_response";
    AnswerProtocolMismatch => "weir_answers_total", "protocol_mismatch";
    AnswerRequestTimeout => "weir_answers_total", "request_timeout";
    AnswerTryTimeout => "weir_answers_total", "try_timeout";
    AnswerIdleTimeout => "weir_answers_total", "idle_timeout";
    AnswerBadRequest => "weir_answers_total", "bad_request";
    AnswerHeadTooLarge => "weir_answers_total", "head_too_large";
    AnswerNotImplemented => "weir_answers_total", "not_implemented";
    /// What a section in shadow would have done.
    ShadowTimeouts => "weir_shadow_decisions_total", "timeouts";
    ShadowRetries => "weir_shadow_decisions_total", "retries";
    ShadowBreaker => "weir_shadow_decisions_total", "circuitBreaker";
    ShadowBulkhead => "weir_shadow_decisions_total", "bulkheads";
    ShadowShedding => "weir_shadow_decisions_total", "loadShedding";
    /// Upstream connections made and used again.
    Connections => "weir_upstream_connections_total", "new";
    ConnectionsReused => "weir_upstream_connections_total", "reused";
}

impl Counter {
    /// The counter of an HTTP status that the caller got.
    pub(crate) fn of_status(status: u16) -> Counter {
        match status / 100 {
            1 => Counter::Status1xx,
            2 => Counter::Status2xx,
            3 => Counter::Status3xx,
            4 => Counter::Status4xx,
            _ => Counter::Status5xx,
        }
    }

    /// The counter of an answer with this label.
    pub(crate) fn of_answer(label: &str) -> Option<Counter> {
        Counter::ALL
            .iter()
            .find(|(_, family, l)| *family == "weir_answers_total" && *l == label)
            .map(|(c, _, _)| *c)
    }
}

/// One worker's part, alone on its cache lines.
#[repr(align(128))]
struct Shard {
    counters: [AtomicU64; COUNTERS],
    latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    latency_sum_us: AtomicU64,
}

/// The counters of one service port.
pub(crate) struct PortMetrics {
    shards: Box<[Shard]>,
}

/// The sum over the shards at one moment.
pub(crate) struct Totals {
    pub(crate) counters: [u64; COUNTERS],
    pub(crate) latency: [u64; LATENCY_BOUNDS_US.len() + 1],
    pub(crate) latency_sum_us: u64,
}

impl PortMetrics {
    pub(crate) fn new(shards: usize) -> PortMetrics {
        let shard = || Shard {
            counters: std::array::from_fn(|_| AtomicU64::new(0)),
            latency: std::array::from_fn(|_| AtomicU64::new(0)),
            latency_sum_us: AtomicU64::new(0),
        };
        PortMetrics {
            shards: (0..shards.max(1)).map(|_| shard()).collect(),
        }
    }

    /// Counts one, in the shard of the calling worker.
    pub(crate) fn count(&self, shard: usize, counter: Counter) {
        if let Some(shard) = self.shards.get(shard) {
            bump(&shard.counters[counter as usize], 1);
        }
    }

    /// One request took this long, from its head to the end of its answer.
    pub(crate) fn observe(&self, shard: usize, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(shard) = self.shards.get(shard) {
            let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < us);
            bump(&shard.latency[bucket], 1);
            bump(&shard.latency_sum_us, us);
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        let sum = |read: &dyn Fn(&Shard) -> u64| self.shards.iter().map(read).sum::<u64>();
        Totals {
            counters: std::array::from_fn(|i| sum(&|s| s.counters[i].load(Relaxed))),
            latency: std::array::from_fn(|i| sum(&|s| s.latency[i].load(Relaxed))),
            latency_sum_us: sum(&|s| s.latency_sum_us.load(Relaxed)),
        }
    }
}

/// Only one thread writes a shard: no read-modify-write is needed.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_to_answer_has_a_counter() {
        use weir_resilience::shed;

        use crate::answer::Answer;
        let after = Duration::from_secs(1);
        let shed = |cause| {
            Answer::Shed(shed::Refused {
                cause,
                figure: shed::Share::default(),
                limit: shed::Share::default(),
            })
        };
        let all = [
            Answer::BreakerOpen {
                breaker: "b".into(),
                retry_after: None,
                forced: false,
            },
            Answer::BulkheadFull {
                bulkhead: "b".into(),
            },
            Answer::BulkheadWait {
                bulkhead: "b".into(),
                waited: after,
            },
            Answer::ConcurrencyLimit { limit: 1 },
            shed(shed::Cause::Cpu),
            shed(shed::Cause::CpuPressure),
            shed(shed::Cause::MemoryPressure),
            Answer::NoEndpoints {
                service: "s".into(),
            },
            Answer::ConnectFailed { reason: "x" },
            Answer::ConnectTimeout { after },
            Answer::Terminated,
            Answer::BadResponse { reason: "x" },
            Answer::ProtocolMismatch {
                spoken: "a",
                expected: "b",
            },
            Answer::RequestTimeout { after },
            Answer::TryTimeout { after },
            Answer::IdleTimeout { after },
            Answer::BadRequest { reason: "x" },
            Answer::HeadTooLarge,
            Answer::NotImplemented { reason: "x" },
        ];
        for answer in all {
            assert!(
                Counter::of_answer(answer.label()).is_some(),
                "{}",
                answer.label()
            );
        }
    }

    #[test]
    fn shards_add_up() {
        let metrics = PortMetrics::new(2);
        metrics.count(0, Counter::Retries);
        metrics.count(1, Counter::Retries);
        metrics.observe(1, Duration::from_micros(500));
        metrics.observe(1, Duration::from_secs(60));
        let totals = metrics.totals();
        assert_eq!(totals.counters[Counter::Retries as usize], 2);
        assert_eq!(
            (totals.latency[0], totals.latency[LATENCY_BOUNDS_US.len()]),
            (1, 1)
        );
        assert_eq!(totals.latency_sum_us, 60_000_500);
    }
}
