//! `weir get`, against an API server that says what it was told to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::mpsc;

use crate::support::{command, weir};
use serde_json::{Value, json};

fn breaker(namespace: &str, name: &str, state: &str, version: u32) -> Value {
    json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "CircuitBreaker",
        "metadata": { "namespace": namespace, "name": name, "resourceVersion": version.to_string() },
        "spec": {},
        "status": {
            "service": format!("{name}:http"), "state": state, "reason": "FailureRate",
            "summary": { "nodes": "1/1", "failed": "61%" }, "requestRate": "12.4/s", "rejectedTotal": 7,
        },
    })
}

fn list(items: &[Value]) -> String {
    whole(
        "200 OK",
        &json!({ "kind": "CircuitBreakerList", "items": items }).to_string(),
    )
}

fn whole(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Gives these answers, one to each connection, and tells what was asked for.
fn server(answers: Vec<String>) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut first = String::new();
            stream.read_line(&mut first).unwrap();
            let mut line = String::new();
            while stream.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            // Not every test wants to know.
            let _ = asked.send(first.split(' ').nth(1).unwrap().to_owned());
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    (url, requests)
}

#[test]
fn breakers_are_listed_in_kubectls_columns() {
    let (url, asked) = server(vec![list(&[breaker("shop", "payments", "Open", 1)])]);
    let done = weir(&["get", "cb", "-n", "shop", "--server", &url]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    assert_eq!(
        done.out,
        "NAME       SERVICE         STATE   NODES   FAILED   REASON        SINCE\n\
         payments   payments:http   Open    1/1     61%      FailureRate\n"
    );
    assert_eq!(
        asked.recv().unwrap(),
        "/apis/weir.dev/v1alpha1/circuitbreakers?namespace=shop"
    );
}

#[test]
fn a_column_tells_namespaces_apart_where_there_are_several_or_it_is_asked_for() {
    let both = [
        breaker("bank", "payments", "Open", 1),
        breaker("shop", "payments", "Open", 2),
    ];
    for (objects, arguments) in [
        (&both[..], &["get", "breakers"][..]),
        (&both[..1], &["get", "breakers", "-A"]),
    ] {
        let (url, _) = server(vec![list(objects)]);
        let done = weir(&[arguments, &["--server", &url]].concat());
        assert!(
            done.out.starts_with("NAMESPACE   NAME       SERVICE"),
            "{}",
            done.out
        );
        assert!(
            done.out
                .contains("\nbank        payments   payments:http   Open"),
            "{}",
            done.out
        );
    }
    let (url, _) = server(vec![list(&both[..1])]);
    assert!(
        weir(&["get", "breakers", "--server", &url])
            .out
            .starts_with("NAME  ")
    );
}

#[test]
fn wide_shows_more_and_json_and_yaml_show_whole_objects() {
    let one = breaker("shop", "payments", "Open", 1);
    let get = |arguments: &[&str]| {
        let (url, _) = server(vec![list(&[
            one.clone(),
            breaker("shop", "other", "Open", 2),
        ])]);
        weir(&[&["get", "cb", "--server", &url], arguments].concat()).out
    };
    assert!(
        get(&["-o", "wide"])
            .lines()
            .next()
            .unwrap()
            .ends_with("SINCE   RATE     REJECTED   SHADOW   MESSAGE")
    );
    assert_eq!(
        serde_json::from_str::<Value>(&get(&["payments", "-o", "json"])).unwrap(),
        one
    );
    assert_eq!(
        serde_yaml::from_str::<Value>(&get(&["payments", "-o", "yaml"])).unwrap(),
        one
    );
    let list: Value = serde_json::from_str(&get(&["-o", "json"])).unwrap();
    assert_eq!(
        (&list["kind"], list["items"].as_array().unwrap().len()),
        (&"List".into(), 2)
    );
}

#[test]
fn a_watch_prints_each_change_once_and_goes_on_when_it_is_cut_off() {
    let change =
        |kind: &str, object: Value| json!({ "type": kind, "object": object }).to_string() + "\n";
    let known = breaker("shop", "payments", "Closed", 1);
    let lines = change("ADDED", known.clone())
        + &change("MODIFIED", breaker("shop", "payments", "Open", 2));
    let chunks = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{lines}\r\n0\r\n\r\n",
        lines.len()
    );
    // Then it lists again, and the server has gone wrong.
    let (url, asked) = server(vec![
        list(&[known]),
        chunks,
        whole(
            "500 No",
            r#"{ "kind": "Status", "message": "out of order" }"#,
        ),
    ]);
    let child = command(&["get", "cb", "-w", "--server", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "NAME       SERVICE         STATE      NODES   FAILED   REASON        SINCE\n\
         payments   payments:http   Closed     1/1     61%      FailureRate\n\
         payments   payments:http   Open       1/1     61%      FailureRate\n"
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .ends_with("out of order\n")
    );
    let watched = asked.iter().nth(1).unwrap();
    assert_eq!(
        watched,
        "/apis/weir.dev/v1alpha1/circuitbreakers?watch=true"
    );
}

#[test]
fn what_is_not_there_is_said() {
    let (url, _) = server(vec![list(&[])]);
    let done = weir(&["get", "policies", "--server", &url]);
    assert_eq!(
        (done.code, done.out.as_str(), done.err.as_str()),
        (0, "", "There are no policies.\n")
    );
    let (url, _) = server(vec![list(&[])]);
    let done = weir(&["get", "rp", "payments", "--server", &url]);
    assert_eq!(
        (done.code, done.err.as_str()),
        (
            1,
            "error: there is no ResiliencePolicy of the name \"payments\"\n"
        )
    );
}

#[test]
fn where_nothing_answers_it_says_how_to_start_it() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let done = weir(&["get", "cb", "--server", &free]);
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("start Weir with `weir run -f PATH`"),
        "{}",
        done.err
    );
    let (url, _) = server(vec![whole("404 Not Found", "nginx")]);
    let done = weir(&["get", "cb", "--server", &url]);
    assert!(
        done.err
            .contains("is this a control plane of Weir? It answers 404"),
        "{}",
        done.err
    );
}
