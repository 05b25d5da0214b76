//! One agent follows the other on a node, and nobody notices.

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use weir_tests::agents::{Agent, Settings};
use weir_tests::eventually;
use weir_tests::load::{Callers, Echo, Load, Way};
use weir_tests::pods::{Family, KubeProxy, Service, Topology};

use crate::captured::{Guarded, NODE, retries, service, service_at};
use crate::shop::{PORTS, Shop};

/// How often one follows the other.
const ROLLS: u32 = 10;
/// An agent ends by itself within this time; it drains for at most 30 s.
const END: Duration = Duration::from_secs(40);

/// Of the Service where one can talk, and of the endpoint.
const TALK: (u16, u16) = (7, 7007);
const TALKS: u8 = 4;

const CALLS: [Callers; 3] = [
    Callers {
        way: Way::KeepAlive,
        count: 4,
        rate: 80,
    },
    Callers {
        way: Way::NewConnections,
        count: 4,
        rate: 60,
    },
    Callers {
        way: Way::Http2,
        count: 2,
        rate: 40,
    },
];

/// Each of them talks without a pause.
const LONG: [Callers; 3] = [
    Callers {
        way: Way::Stream,
        count: 2,
        rate: 10,
    },
    Callers {
        way: Way::Upgrade,
        count: 2,
        rate: 10,
    },
    Callers {
        way: Way::Tcp,
        count: 2,
        rate: 10,
    },
];

fn talks(shop: &Shop) -> Service {
    Service::new(TALKS).port(TALK.0, &[&shop.far.pod], TALK.1)
}

fn resources(shop: &Shop) -> Vec<weir_proto::v1alpha1::Resource> {
    let (far, policy) = ([&shop.far.pod], retries());
    let mut all = service("far", &shop.services.far, false, &far, &policy).to_vec();
    all.extend(service_at(
        &[TALK],
        "talks",
        &talks(shop),
        false,
        &far,
        &policy,
    ));
    all
}

/// Waits until calls come through this agent.
async fn serves(agent: &Agent) {
    eventually("calls through the new agent", || async {
        match agent.metric("weir_responses_total", "class=\"2xx\"").await {
            Ok(answered) if answered > 0 => Ok(()),
            other => Err(format!("{other:?}; {}", agent.proxy.log())),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_agents_follow_each_other_under_load() -> Result<()> {
    let guarded = Guarded::open(Topology::Ptp, KubeProxy::Nftables, resources).await?;
    let Some(Guarded { agent, told, shop }) = guarded else {
        return Ok(());
    };
    shop.network.serve(&talks(&shop))?;
    let listener = (Ipv6Addr::UNSPECIFIED, TALK.1).into();
    let _echo = Echo::at(shop.far.pod.inside().listen(listener)?)?;
    let inside = shop.caller.inside();
    let far = shop.services.far.addresses();
    let load = Load::start(inside, far.port(Family::V4, PORTS[0].0), &CALLS)?;
    let talk = talks(&shop).addresses().port(Family::V4, TALK.0);
    let long = Load::start(inside, talk, &LONG)?;

    let mut old = agent;
    serves(&old).await;
    for roll in 1..=ROLLS {
        let mut settings = Settings::new(shop.network.node(0), NODE, &told);
        settings.instance = format!("{NODE}-after-{roll}");
        let new = Agent::start(settings).await?;
        new.captures(2).await;
        old.proxy.signal(Signal::TERM)?;
        old.capture.signal(Signal::TERM)?;
        serves(&new).await;
        old.proxy.ended(END).await?;
        old.capture.ended(END).await?;
        long.goes_on(6).await;
        old = new;
        println!(
            "after {roll} of {ROLLS}: {}; {}",
            load.tally(),
            long.tally()
        );
    }
    let (calls, talks) = (load.end()?, long.end()?);
    println!("{ROLLS} upgrades: calls: {calls}; long: {talks}");
    for tally in [&calls, &talks] {
        ensure!(tally.losses() + tally.reset_idle == 0, "{tally}");
    }
    ensure!(calls.goodbyes >= u64::from(ROLLS), "{calls}");
    Ok(())
}
