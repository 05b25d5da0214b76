use std::net::Ipv4Addr;

use futures::FutureExt as _;
use futures::future::join;

use super::*;

fn address(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + n).into()
}

fn checkout() -> Caller {
    Caller {
        namespace: "shop".to_owned(),
        service_account: "buyer".to_owned(),
        workload: Some("checkout".to_owned()),
    }
}

fn namespace(found: &Found) -> Option<&str> {
    found
        .caller
        .as_ref()
        .map(|caller| caller.namespace.as_str())
}

#[tokio::test]
async fn callers_of_one_address_wait_for_one_answer() {
    let (callers, mut asker) = Callers::new(Clock::start());
    let (one, other) = (callers.find(address(1)), callers.find(address(1)));
    let answer = async {
        let asked = asker.asked.recv().await.unwrap();
        callers.take_in(asked, Ok(Some(checkout())));
    };
    let ((one, other), ()) = join(join(one, other), answer).await;
    assert_eq!(
        (namespace(&one), namespace(&other)),
        (Some("shop"), Some("shop"))
    );
    assert!(asker.asked.try_recv().is_err(), "nobody was asked twice");
    let again = callers.find(address(1)).now_or_never().unwrap();
    assert_eq!(namespace(&again), Some("shop"), "it is remembered");
    assert_eq!(callers.counts()[0], ("known", 1));
}

#[tokio::test]
async fn whom_nobody_knows_is_anybody_and_asked_for_again_later() {
    let (callers, mut asker) = Callers::new(Clock::start());
    let asked = callers.find(address(1));
    let answer = async {
        let asked = asker.asked.recv().await.unwrap();
        callers.take_in(asked, Ok(None));
    };
    let (found, ()) = join(asked, answer).await;
    assert_eq!(namespace(&found), None);
    let now = callers.clock.now();
    assert!(found.until > now && found.until <= now + UNKNOWN);
    let identity = Identity::of(Some(address(1)));
    assert_eq!(identity.known(now), Err(address(1)));
    identity.keep(found);
    assert_eq!(identity.known(now), Ok(None));
    assert_eq!(identity.known(now + UNKNOWN), Err(address(1)));
}

#[tokio::test]
async fn a_connection_keeps_who_is_at_its_other_end() {
    let identity = Identity::of(Some(address(1)));
    let caller = Arc::new(checkout());
    identity.keep(Found {
        caller: Some(caller.clone()),
        until: Time::ZERO,
    });
    assert_eq!(identity.known(Time::MAX), Ok(Some(caller)));
    assert_eq!(Identity::of(None).known(Time::ZERO), Ok(None));
}

#[tokio::test]
async fn nobody_waits_longer_than_a_moment_or_for_a_control_plane_that_is_away() {
    let (callers, mut asker) = Callers::new(Clock::start());
    // Nobody answers.
    let found = callers.find(address(1)).await;
    assert_eq!(namespace(&found), None);
    assert_eq!(asker.asked.recv().await, Some(address(1)));
    callers.take_in(address(1), Err(()));
    callers.away.store(true, Relaxed);
    let found = callers.find(address(2)).now_or_never();
    assert_eq!(namespace(&found.unwrap()), None);
    // It is asked all the same, to know when it is back.
    assert_eq!(asker.asked.recv().await, Some(address(2)));
    assert_eq!(callers.counts()[2], ("failed", 1));
}

#[tokio::test]
async fn what_waits_and_what_is_remembered_is_bounded() {
    let (callers, mut asker) = Callers::new(Clock::start());
    callers.away.store(true, Relaxed);
    for n in 0..2_000 {
        callers.find(address(n)).await;
    }
    assert_eq!(callers.lock().asked.len(), WAITING);
    assert_eq!(callers.counts()[2].1, 2_000 - WAITING as u64);
    asker.asked.close();
    for n in 0..40_000 {
        callers.take_in(address(n), Ok(None));
        // One that is found anew again and again takes no room of others.
        callers.take_in(address(0), Ok(Some(checkout())));
    }
    let inner = callers.lock();
    assert!(inner.found.len() <= MOST && inner.order.len() <= MOST);
    assert!(inner.asked.is_empty());
    assert!(inner.found[&address(0)].caller.is_some());
    assert!(inner.found.contains_key(&address(39_999)));
    assert!(!inner.found.contains_key(&address(1)));
}
