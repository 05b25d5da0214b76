//! When the proxy or capture ends or hangs.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::ground::{Ground, POD, SERVICE, at, eventually, original, talk};
use super::proxy::{Proxy, pod_with};
use crate::capture::wire::Given;
use crate::capture::{Config, run};

const REDIRECTS: &str = "redirect to :15081";

#[test]
fn when_the_proxy_ends_connections_go_the_plain_way_and_its_last_words_arrive() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let service = at(SERVICE[0], 80);
    let mut told = proxy.capture(pod_with(&[service], &[])).unwrap();
    let listener = told.listener(Given::Outbound4);
    let mut waiting = ground.pod.connect(service).unwrap();
    let (accepted, _) = listener.accept();
    // As the kernel closes what a killed process had, in this order.
    drop((proxy, told, listener));
    eventually("no redirection", || {
        (!ground.pod.rules().contains(REDIRECTS)).then_some(())
    });
    drop(accepted);
    assert_eq!(waiting.read(&mut [0]).unwrap(), 0);
    let server = ground.node.listen(service);
    let application = ground.pod.connect(service).unwrap();
    let (served, _) = server.accept();
    talk(&application, &served);
    eventually("nothing of ours is left", || {
        ground.pod.rules().is_empty().then_some(())
    });
    running.stop();
}

#[test]
fn a_proxy_that_hangs_is_gone_round_and_one_that_moves_again_is_used_again() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let service = at(SERVICE[0], 80);
    let mut told = proxy.capture(pod_with(&[service], &[8080])).unwrap();
    let listener = told.listener(Given::Outbound4);
    let inbound = told.listener(Given::Inbound4);
    let called = at(POD[0], 8080);
    let mut waiting = Vec::new();
    for (from, to, listener) in [
        (&ground.pod, service, &listener),
        (&ground.node, called, &inbound),
    ] {
        let accepted = from.connect(to).unwrap();
        let (held, _) = listener.accept();
        let queued = from.connect(to).unwrap();
        waiting.push((accepted, queued, held));
    }
    proxy.beat();
    for (accepted, queued, _) in &mut waiting {
        assert!(accepted.read(&mut [0]).is_err(), "it is told");
        assert!(queued.read(&mut [0]).is_err(), "it is told");
    }
    eventually("its tables are gone", || {
        ground.pod.rules().is_empty().then_some(())
    });
    // Those that were in its queue.
    while !listener.is_quiet() {}
    // Asked for meanwhile, done later.
    let second = at(SERVICE[0], 81);
    proxy.capture(pod_with(&[second], &[])).unwrap();
    assert_eq!(ground.pod.rules(), "");
    proxy.beat();
    let application = eventually("captured again", || {
        proxy.beat();
        ground.pod.connect(second).ok()
    });
    let (accepted, _) = listener.accept();
    assert_eq!(original(&accepted), second);
    talk(&application, &accepted);
}

#[test]
fn what_is_open_goes_on_while_the_proxy_drains() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let service = at(SERVICE[0], 80);
    let mut told = proxy.capture(pod_with(&[service], &[])).unwrap();
    let listener = told.listener(Given::Outbound4);
    let open = ground.pod.connect(service).unwrap();
    let (accepted, _) = listener.accept();
    proxy.retreat();
    let server = ground.node.listen(service);
    let application = ground.pod.connect(service).unwrap();
    let (served, _) = server.accept();
    talk(&application, &served);
    talk(&open, &accepted);
    assert!(listener.is_quiet());
    // Sockets are still had, and nothing is put back.
    let socket = proxy.socket(false, false);
    socket.connect(&service.into()).unwrap();
    assert!(proxy.capture(pod_with(&[service], &[])).is_err());
    proxy.beat();
    assert!(!ground.pod.rules().contains(REDIRECTS));
}

#[test]
fn capture_that_is_told_to_stop_waits_for_the_proxy_that_drains() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let service = at(SERVICE[0], 80);
    let mut told = proxy.capture(pod_with(&[service], &[])).unwrap();
    let listener = told.listener(Given::Outbound4);
    let open = ground.pod.connect(service).unwrap();
    let (accepted, _) = listener.accept();
    let stopping = std::thread::spawn(move || running.stop());
    proxy.retreat();
    talk(&open, &accepted);
    drop((proxy, told));
    stopping.join().unwrap();
    assert_eq!(ground.pod.rules(), "");
}

#[test]
fn another_proxy_takes_over_and_what_it_does_not_ask_for_is_let_go() {
    let Some(ground) = Ground::make() else { return };
    let other = ground.another_pod("10.91.0.3");
    let running = ground.capture();
    let mut first = running.proxy();
    let service = at(SERVICE[0], 80);
    let mut another = pod_with(&[service], &[]);
    another.pod = "other".to_owned();
    another.addresses = vec!["10.91.0.3".to_owned()];
    let _others = first.capture(another).unwrap();
    drop(first.capture(pod_with(&[service], &[])).unwrap());
    assert!(other.rules().contains(REDIRECTS));

    let mut second = running.proxy();
    let mut told = second.capture(pod_with(&[service], &[])).unwrap();
    assert!(first.hear().is_none(), "the first is told");
    let listener = told.listener(Given::Outbound4);
    let application = ground.pod.connect(service).unwrap();
    let (accepted, _) = listener.accept();
    talk(&application, &accepted);
    assert!(!other.rules().contains(REDIRECTS));
    eventually("the other pod is let go", || {
        other.rules().is_empty().then_some(())
    });
    assert!(ground.pod.rules().contains(REDIRECTS));
}

#[test]
fn a_proxy_that_reads_no_answers_is_not_waited_for() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let service = at(SERVICE[0], 80);
    let _told = proxy.capture(pod_with(&[service], &[])).unwrap();
    eventually("capture closes", || {
        let pod = crate::capture::wire::Release {
            pod: "none".to_owned(),
        };
        (!proxy.send(crate::capture::wire::ask::Kind::Release(pod))).then_some(())
    });
    eventually("no redirection", || {
        (!ground.pod.rules().contains(REDIRECTS)).then_some(())
    });
}

#[test]
fn only_the_proxys_user_is_heard() {
    let Some(ground) = Ground::make() else { return };
    let mut config = ground.config();
    config.proxy_uid = Some(12_345);
    let running = ground.capture_as(config);
    assert!(running.proxy().hear().is_none());
    running.stop();
}

/// Where the child is to run.
const CHILD: &str = "WEIR_TEST_CAPTURE";

/// Capture as a process of its own, which ends with this.
pub(super) struct Process(Child);

impl Process {
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a test again as a process of its own that is nothing but capture.
pub(super) fn child(ground: &Ground, test: &str) -> (Process, Proxy) {
    let child = Command::new("ip")
        .args(["netns", "exec", &ground.node.name])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, ground.directory.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let proxy = Proxy::connect(&ground.config().socket);
    (Process(child), proxy)
}

/// Is that process, if this is it.
pub(super) fn is_child() -> bool {
    let Some(directory) = std::env::var_os(CHILD) else {
        return false;
    };
    let directory = Path::new(&directory);
    let (_stop, stopped) = UnixStream::pair().unwrap();
    let config = Config {
        socket: directory.join("capture.sock"),
        proxy_uid: None,
        namespaces: vec![directory.to_owned()],
        instance: "test".to_owned(),
        beat_timeout: crate::capture::BEAT_TIMEOUT,
    };
    run(config, stopped.as_fd()).unwrap();
    true
}

#[test]
fn when_capture_is_killed_no_rule_is_left() {
    if is_child() {
        return;
    }
    let Some(ground) = Ground::make() else { return };
    let test = "capture::tests::failing::when_capture_is_killed_no_rule_is_left";
    let (capture, mut proxy) = child(&ground, test);
    let service = at(SERVICE[0], 80);
    let _told = proxy.capture(pod_with(&[service], &[8080])).unwrap();
    assert!(ground.pod.rules().contains(REDIRECTS));
    // Nobody else may take them away.
    let said = ground.pod.says("nft delete table ip weir_test");
    assert!(said.contains("not permitted"), "{said}");
    drop(capture);
    eventually("no rules", || ground.pod.rules().is_empty().then_some(()));
    let server = ground.node.listen(service);
    let application = ground.pod.connect(service).unwrap();
    let (served, _) = server.accept();
    talk(&application, &served);
}

#[test]
fn what_is_open_and_silent_goes_on_when_capture_was_killed_and_is_back() {
    if is_child() {
        return;
    }
    let Some(ground) = Ground::make() else { return };
    let test = "capture::tests::failing::\
                what_is_open_and_silent_goes_on_when_capture_was_killed_and_is_back";
    let (capture, mut proxy) = child(&ground, test);
    let service = at(SERVICE[0], 80);
    let called = at(POD[0], 8080);
    let mut told = proxy.capture(pod_with(&[service], &[8080])).unwrap();
    let (out, into) = (
        told.listener(Given::Outbound4),
        told.listener(Given::Inbound4),
    );
    let application = ground.pod.connect(service).unwrap();
    let (sent, _) = out.accept();
    let server = ground.pod.listen(called);
    let caller = ground.node.connect(called).unwrap();
    let (received, from) = into.accept();
    let socket = proxy.socket(false, true);
    socket.bind(&at(&from.ip().to_string(), 0).into()).unwrap();
    socket.connect(&called.into()).unwrap();
    let (served, _) = server.accept();
    let socket = socket.into();

    drop(capture);
    assert!(proxy.hear().is_none(), "the proxy is told");
    eventually("no rules", || ground.pod.rules().is_empty().then_some(()));
    let (_capture, mut proxy) = child(&ground, test);
    let _told = proxy.capture(pod_with(&[service], &[8080])).unwrap();
    for (one, other) in [
        (&application, &sent),
        (&caller, &received),
        (&socket, &served),
    ] {
        talk(one, other);
        talk(other, one);
    }
}

#[test]
fn what_a_pod_opened_goes_on_when_capture_was_killed_and_nobody_calls_the_pod() {
    if is_child() {
        return;
    }
    let Some(ground) = Ground::make() else { return };
    let test = "capture::tests::failing::\
                what_a_pod_opened_goes_on_when_capture_was_killed_and_nobody_calls_the_pod";
    let (capture, mut proxy) = child(&ground, test);
    proxy.keeps_open = true;
    let service = at(SERVICE[0], 80);
    let mut told = proxy.capture(pod_with(&[service], &[])).unwrap();
    let listener = told.listener(Given::Outbound4);
    let application = ground.pod.connect(service).unwrap();
    let (accepted, _) = listener.accept();
    drop(capture);
    eventually("no redirection", || {
        (!ground.pod.rules().contains(REDIRECTS)).then_some(())
    });
    talk(&application, &accepted);
    talk(&accepted, &application);
}

#[test]
fn what_is_open_goes_on_when_capture_was_killed_as_long_as_the_proxy_has_its_share() {
    if is_child() {
        return;
    }
    let Some(ground) = Ground::make() else { return };
    let test = "capture::tests::failing::\
                what_is_open_goes_on_when_capture_was_killed_as_long_as_the_proxy_has_its_share";
    let (capture, mut proxy) = child(&ground, test);
    proxy.keeps_open = true;
    let service = at(SERVICE[0], 80);
    let called = at(POD[0], 8080);
    let mut told = proxy.capture(pod_with(&[service], &[8080])).unwrap();
    let (out, into) = (
        told.listener(Given::Outbound4),
        told.listener(Given::Inbound4),
    );
    let application = ground.pod.connect(service).unwrap();
    let (sent, _) = out.accept();
    let server = ground.pod.listen(called);
    let caller = ground.node.connect(called).unwrap();
    let (received, from) = into.accept();
    let socket = proxy.socket(false, true);
    socket.bind(&at(&from.ip().to_string(), 0).into()).unwrap();
    socket.connect(&called.into()).unwrap();
    let (served, _) = server.accept();
    let socket = socket.into();

    drop(capture);
    eventually("no redirection", || {
        (!ground.pod.rules().contains("redirect ")).then_some(())
    });
    for (one, other) in [
        (&application, &sent),
        (&caller, &received),
        (&socket, &served),
    ] {
        talk(one, other);
        talk(other, one);
    }
    drop(told);
    eventually("nothing of ours is left", || {
        ground.pod.rules().is_empty().then_some(())
    });
}
