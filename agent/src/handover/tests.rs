use std::os::unix::fs::PermissionsExt as _;

use prost::Message as _;
use weir_proto::v1alpha1 as proto;
use weir_resilience::breaker::{Memory, Phase, Reason};
use weir_resilience::config::ServiceId;

use super::message::{MAX_BYTES, decode, encode};
use super::socket::{Listener, others, prepare, read, write};
use crate::registry::{MAX_REMEMBERED, Remembered};

fn remembered(key: &str, phase: Phase) -> Remembered {
    Remembered {
        service: ServiceId {
            namespace: "shop".to_owned(),
            name: "payments".to_owned(),
        },
        key: key.to_owned(),
        memory: Memory {
            phase,
            since_unix_ms: 1_700_000_000_123,
            failed_recoveries: 3,
            reason: Reason::FailureRate,
            message: "61% of 240 requests failed in 10s: 503 ×146".to_owned(),
            observed_reset: "once".to_owned(),
        },
    }
}

fn each() -> Vec<Remembered> {
    let phases = [
        Phase::Open {
            until_unix_ms: 1_700_000_030_000,
        },
        Phase::HalfOpen {
            at_unix_ms: 1_700_000_040_000,
        },
        Phase::Growing {
            from_unix_ms: 1_700_000_040_000,
            until_unix_ms: 1_700_000_050_000,
        },
    ];
    let named = phases.into_iter().enumerate();
    named
        .map(|(n, phase)| remembered(&n.to_string(), phase))
        .collect()
}

#[test]
fn what_is_told_is_what_is_heard() {
    assert_eq!(decode(&encode(&each())), each());
    assert_eq!(decode(&encode(&[])), []);
}

/// As a later version might write it: one more field, another state.
#[derive(Clone, PartialEq, prost::Message)]
struct Later {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    service: String,
    #[prost(string, tag = "3")]
    key: String,
    #[prost(int32, tag = "4")]
    state: i32,
    #[prost(int64, tag = "7")]
    until_unix_ms: i64,
    #[prost(int32, tag = "9")]
    reason: i32,
    #[prost(string, tag = "99")]
    news: String,
}

#[test]
fn what_a_later_version_adds_is_passed_over() {
    let of = |state, reason| {
        let later = Later {
            namespace: "shop".to_owned(),
            service: "payments".to_owned(),
            key: "a".to_owned(),
            state,
            until_unix_ms: 7,
            reason,
            news: "unheard of".to_owned(),
        };
        later.encode_length_delimited_to_vec()
    };
    let (open, rate) = (
        proto::BreakerState::Open.into(),
        proto::BreakerReason::FailureRate.into(),
    );
    let bytes = [of(open, rate), of(999, rate), of(open, 999), of(open, rate)].concat();
    let read = decode(&bytes);
    assert_eq!(read.len(), 2);
    assert_eq!(read[0].memory.phase, Phase::Open { until_unix_ms: 7 });
}

#[test]
fn what_is_broken_ends_a_message_and_what_is_huge_is_bounded() {
    let mut bytes = encode(&each());
    bytes.truncate(bytes.len() - 1);
    assert_eq!(decode(&bytes), each()[..2]);
    assert_eq!(decode(&[0xff; 1000]), []);
    // Empty messages: none of them is a breaker, and not all are looked at.
    assert_eq!(decode(&vec![0; MAX_BYTES]), []);

    let open = Phase::Open { until_unix_ms: 1 };
    let many: Vec<_> = (0..MAX_REMEMBERED + 1)
        .map(|n| remembered(&n.to_string(), open))
        .collect();
    let told = encode(&many);
    assert!(told.len() <= MAX_BYTES);
    assert_eq!(decode(&told).len(), MAX_REMEMBERED);
    let large = remembered(&"k".repeat(MAX_BYTES / 2), open);
    assert!(encode(&[large.clone(), large]).len() <= MAX_BYTES);
}

#[tokio::test]
async fn those_that_listen_are_found_and_the_names_of_the_dead_removed() {
    let directory = tempfile::tempdir().unwrap();
    let dead = directory.path().join("0000000000000000.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    std::fs::write(directory.path().join("file.sock"), "not a socket").unwrap();
    let listening: Vec<_> = (0..3)
        .map(|_| Listener::bind(directory.path()).unwrap())
        .collect();
    assert_eq!(others(directory.path(), 2).await.len(), 2);
    assert_eq!(others(directory.path(), 9).await.len(), 3);
    assert!(!dead.exists());
    drop(listening);
    assert_eq!(others(directory.path(), 9).await.len(), 0);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    assert!(
        others(&directory.path().join("nowhere"), 9)
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn frames_are_read_whole_or_refused() {
    let (mut here, mut there) = tokio::net::UnixStream::pair().unwrap();
    let frame = vec![7; 100_000];
    let (written, heard) = tokio::join!(write(&mut here, &frame), read(&mut there));
    written.unwrap();
    assert_eq!(heard.unwrap(), frame);
    let huge = vec![0; MAX_BYTES + 1];
    let refused = async move {
        let error = read(&mut there).await.unwrap_err();
        assert!(error.to_string().contains("larger than"), "{error}");
    };
    let (_, ()) = tokio::join!(write(&mut here, &huge), refused);

    let (mut here, mut there) = tokio::net::UnixStream::pair().unwrap();
    use tokio::io::AsyncWriteExt as _;
    here.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
    drop(here);
    read(&mut there).await.unwrap_err();
}

#[test]
fn the_directory_is_given_to_the_agents_user_and_to_nobody_else() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("weir").join("handover");
    let user = rustix::process::geteuid().as_raw();
    for _ in 0..2 {
        prepare(&directory, Some(user)).unwrap();
        let mode = std::fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
    }
}
