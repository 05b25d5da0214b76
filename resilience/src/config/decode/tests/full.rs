use weir_proto::v1alpha1 as proto;

/// A service that uses every field.
pub(super) fn full() -> proto::ServiceConfig {
    let policy = proto::Policy {
        timeouts: Some(proto::Timeouts {
            request_us: 15_000_000,
            per_try_us: 2_000_000,
            connect_us: 1_000_000,
            idle_us: 300_000_000,
            max_stream_us: 0,
            shadow: true,
            tcp_idle_us: 3_600_000_000,
        }),
        retries: Some(proto::Retries {
            key: "payments".to_owned(),
            attempts: 2,
            status_codes: vec![proto::StatusRange {
                first: 500,
                last: 504,
            }],
            grpc_codes: vec![14],
            connection_failure: true,
            reset: true,
            per_try_timeout: false,
            methods: vec!["GET".to_owned()],
            backoff_base_us: 25_000,
            backoff_max_us: 1_000_000,
            jitter: proto::Jitter::Full.into(),
            budget: Some(proto::RetryBudget {
                percent: 20,
                interval_us: 10_000_000,
                min_retry_count: 10,
                min_retry_interval_us: 1_000_000,
            }),
            honor_retry_after: true,
            max_buffered_body: 65_536,
            shadow: false,
        }),
        circuit_breaker: Some(proto::CircuitBreaker {
            key: "payments".to_owned(),
            window: Some(proto::Window {
                r#type: proto::WindowType::Rolling.into(),
                duration_us: 10_000_000,
                requests: 0,
            }),
            minimum_requests: 20,
            failure_percent: 50,
            consecutive_failures: 0,
            slow_requests: Some(proto::SlowRequests {
                threshold_us: 500_000,
                percent: 80,
            }),
            failure_status_codes: vec![proto::StatusRange {
                first: 429,
                last: 429,
            }],
            failure_grpc_codes: vec![4, 8],
            failure_timeouts: true,
            failure_connection: true,
            open_us: 5_000_000,
            open_max_us: 60_000_000,
            open_jitter_percent: 20,
            open_honor_retry_after: true,
            probes: 2,
            half_open_timeout_us: 10_000_000,
            ramp_up_us: 10_000_000,
            r#override: Some(proto::BreakerOverride {
                state: proto::BreakerState::Open.into(),
                reason: "maintenance".to_owned(),
                expires_at_unix_ms: 1_700_000_000_000,
            }),
            reset: "1".to_owned(),
            shadow: false,
        }),
        bulkheads: vec![
            proto::Bulkhead {
                key: "a".to_owned(),
                name: "batch".to_owned(),
                at: proto::BulkheadSide::Caller.into(),
                headers: vec![proto::HeaderMatch {
                    name: "x-tier".to_owned(),
                    r#match: Some(proto::header_match::Match::Regex("b.*".to_owned())),
                }],
                max_concurrent: 8,
                max_queue: 4,
                max_wait_us: 50_000,
                ..Default::default()
            },
            proto::Bulkhead {
                key: "b".to_owned(),
                name: "default".to_owned(),
                at: proto::BulkheadSide::Destination.into(),
                max_concurrent: 8,
                from_namespaces: vec!["web".to_owned()],
                from_service_accounts: vec!["web/buyer.eu".to_owned()],
                from_workloads: vec!["web/checkout".to_owned(), "web/batch".to_owned()],
                ..Default::default()
            },
        ],
        load_shedding: Some(proto::LoadShedding {
            key: "payments".to_owned(),
            max_concurrency: 64,
            cpu: Some(proto::CpuShedding {
                source: proto::CpuSource::Pod.into(),
                threshold_percent: 80,
                max_drop_percent: 90,
            }),
            pressure: Some(proto::PressureShedding { some_percent: 40 }),
            shadow: false,
        }),
    };
    proto::ServiceConfig {
        namespace: "shop".to_owned(),
        name: "payments".to_owned(),
        ports: vec![proto::Port {
            number: 80,
            name: "http".to_owned(),
            protocol: proto::Protocol::Detect.into(),
            http: true,
            listen: "127.0.0.1:8081".to_owned(),
            policy: Some(policy.clone()),
            routes: vec![proto::Route {
                name: "refunds".to_owned(),
                matches: vec![proto::Match {
                    methods: vec!["POST".to_owned()],
                    path: Some(proto::PathMatch {
                        r#match: Some(proto::path_match::Match::Prefix("/refunds".to_owned())),
                    }),
                    headers: Vec::new(),
                    grpc: Some(proto::GrpcMatch {
                        service: "shop.Payments".to_owned(),
                        method: String::new(),
                    }),
                }],
                policy: Some(policy),
                idempotent: true,
            }],
            local_only: true,
            affinity_us: 10_800_000_000,
        }],
        consumer: String::new(),
        cluster_addresses: vec!["10.96.0.7".to_owned(), "fd00:96::7".to_owned()],
        existing_connections: proto::ExistingConnections::Reset.into(),
    }
}
