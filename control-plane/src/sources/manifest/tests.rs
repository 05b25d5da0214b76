use super::load::documents;
use super::*;

const TWO: &str = "\
# a comment
apiVersion: v1
kind: Service
metadata: {name: a}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: shop}
";

fn messages(text: &str) -> Vec<String> {
    load(text)
        .findings
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn documents_are_told_apart_and_an_absent_namespace_is_default() {
    let loaded = load(TWO);
    let ids: Vec<_> = loaded.manifests.iter().map(|m| m.id.to_string()).collect();
    assert_eq!(ids, ["Service default/a", "Service shop/b"]);
    assert_eq!(
        loaded.manifests[1].position("metadata.name"),
        Position {
            line: 8,
            column: 12
        }
    );
    assert!(loaded.findings.is_empty() && !loaded.unreadable);
}

#[test]
fn a_broken_document_takes_no_other_with_it() {
    let text = format!("kind: [\n---\n{TWO}---\n\tkind: x\n");
    let loaded = load(&text);
    assert_eq!(loaded.manifests.len(), 2);
    assert_eq!(loaded.findings.len(), 2);
    assert!(loaded.unreadable);
    assert_eq!(loaded.findings[1].line, 12, "{}", loaded.findings[1]);
    assert!(
        loaded.findings[1].message.contains("not tabs"),
        "{}",
        loaded.findings[1]
    );
}

#[test]
fn a_marker_inside_a_word_is_no_end_of_a_document() {
    assert_eq!(documents("a: 1\n---b: 2\n--- # next\nc: 3\n").len(), 2);
}

#[test]
fn directives_comments_and_empty_documents_say_nothing() {
    assert!(load("%YAML 1.2\n---\n# nothing\n---\n...\n").is_empty());
}

#[test]
fn a_list_is_unwrapped_with_positions() {
    let loaded = load(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata:\n    name: a\n",
    );
    assert_eq!(
        loaded.manifests[0].position("metadata.name"),
        Position { line: 7, column: 5 }
    );
}

#[test]
fn other_kinds_are_ignored_by_name() {
    assert_eq!(
        load("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n").ignored,
        ["ConfigMap x"]
    );
}

#[test]
fn a_wrong_version_of_our_own_kinds_says_what_to_write() {
    let text = "apiVersion: weir.dev/v2\nkind: ResiliencePolicy\nmetadata: {name: x}\n";
    assert_eq!(
        messages(text),
        [
            "1:1: ResiliencePolicy is not served in weir.dev/v2: write `apiVersion: weir.dev/v1alpha1`"
        ]
    );
}

#[test]
fn the_same_object_twice_in_a_file_names_the_first() {
    let text = format!("{TWO}---\n{TWO}");
    let messages = messages(&text);
    assert_eq!(messages.len(), 2);
    assert!(
        messages[0].starts_with("11:1: Service default/a: the same object stands in line 2"),
        "{}",
        messages[0]
    );
}

#[test]
fn a_name_that_kubernetes_would_refuse_is_refused() {
    let messages = messages("apiVersion: v1\nkind: Service\nmetadata:\n  name: A_b\n");
    assert!(
        messages[0].starts_with("4:3: name \"A_b\": write lower-case"),
        "{}",
        messages[0]
    );
}

#[test]
fn an_object_without_a_name_or_kind_says_so() {
    assert!(messages("apiVersion: v1\nkind: Service\n")[0].contains("needs a name"));
    assert!(messages("apiVersion: v1\n")[0].contains("which kind"));
    assert!(messages("- 1\n")[0].contains("not an object of Kubernetes"));
}

#[test]
fn a_namespace_is_in_no_namespace() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {a: b}}\n";
    let loaded = load(namespace);
    assert_eq!(loaded.manifests[0].id.to_string(), "Namespace shop");
    let Ok(Typed::Namespace(labels)) = decode(&loaded.manifests[0]) else {
        panic!("not a namespace");
    };
    assert_eq!(labels.get("a").map(String::as_str), Some("b"));
    let within = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, namespace: shop}\n";
    assert!(messages(within)[0].contains("remove this field"));
}
