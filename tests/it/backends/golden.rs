//! Reading what a DALiuGE 6.6.0 answered; `tests/golden/daliuge` holds the answers as they came.

use beampipe::backends::State;
use beampipe::backends::dim::answers::{
    NodeStates, SessionStatus, aggregate, parse_drop_detail, parse_graph_status, parse_refusal,
    parse_session_status,
};
use beampipe::backends::evidence::{self, Evidence, culprits, plain_text, progress, shorten};
use beampipe::backends::graph::{GraphError, PhysicalGraph};
use serde_json::json;

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/daliuge/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn graph(name: &str) -> PhysicalGraph {
    PhysicalGraph::parse(&golden(&format!("physical_graph.{name}.json"))).unwrap()
}

fn names(graph: &PhysicalGraph, oids: &[String]) -> Vec<String> {
    let name = |oid: &String| graph.drops.iter().find(|drop| drop.oid == *oid).unwrap().name.clone();
    oids.iter().map(name).collect()
}

fn nodes(states: &[(&str, Option<State>)]) -> NodeStates {
    states.iter().map(|(node, state)| ((*node).to_owned(), state.clone())).collect()
}

#[test]
fn each_number_is_its_state() {
    for (file, state) in [
        ("pristine", State::Pristine),
        ("building", State::Building),
        ("running", State::Running),
        ("finished", State::Finished),
        ("cancelled", State::Cancelled),
        ("failed", State::Failed),
    ] {
        let raw = serde_json::from_slice(&golden(&format!("status.{file}.json"))).unwrap();
        match parse_session_status(&raw).unwrap() {
            SessionStatus::Nodes(nodes) => assert_eq!(aggregate(&nodes), state, "{file}"),
            SessionStatus::Absent => panic!("{file} is there"),
        }
        assert_eq!(State::from(state.to_string()), state);
    }
}

#[test]
fn an_object_where_a_number_is_due_means_that_the_session_is_absent() {
    let raw = serde_json::from_slice(&golden("status.unknown-session.json")).unwrap();
    assert_eq!(parse_session_status(&raw), Ok(SessionStatus::Absent));
}

#[test]
fn a_status_that_is_not_understood_is_neither_absence_nor_an_end() {
    for odd in
        [json!({}), json!({"n": 7}), json!({"n": null}), json!({"n": "gone"}), json!({"a": 4, "b": {}})]
    {
        match parse_session_status(&odd).unwrap() {
            SessionStatus::Nodes(nodes) => {
                let state = aggregate(&nodes);
                assert!(matches!(state, State::Other(_)), "{odd} is {state}");
                assert!(!state.is_terminal());
            }
            SessionStatus::Absent => panic!("{odd} does not say absent"),
        }
    }
    assert!(parse_session_status(&json!([])).is_err());
    assert!(parse_session_status(&json!("Success")).is_err());
}

#[test]
fn over_several_nodes_failure_shows_at_once_and_success_only_when_all_have_it() {
    use State::*;
    let of = |a: State, b: State| aggregate(&nodes(&[("a", Some(a)), ("b", Some(b))]));
    assert_eq!(of(Running, Failed), Failed);
    assert_eq!(of(Cancelled, Failed), Failed);
    assert_eq!(of(Finished, Running), Running);
    assert_eq!(of(Finished, Deploying), Deploying);
    assert_eq!(of(Finished, Cancelled), Cancelled);
    assert_eq!(of(Finished, Finished), Finished);
    assert_eq!(of(Other("7".into()), Finished), Other("7".into()));
    assert_eq!(aggregate(&nodes(&[("a", Some(Finished)), ("b", None)])), Other("lost on b".into()));
    assert_eq!(aggregate(&nodes(&[("a", Some(Failed)), ("b", None)])), Failed);
}

#[test]
fn the_last_element_of_a_graph_is_no_drop() {
    assert_eq!(graph("one-fails").len(), 7);
    assert_eq!(graph("fanout-ok").len(), 10);
}

#[test]
fn a_run_starts_from_what_nothing_feeds() {
    for (name, expected) in [("one-fails", ["seed"]), ("fanout-ok", ["prepare"])] {
        let graph = graph(name);
        assert_eq!(names(&graph, &graph.roots()), expected);
    }
}

#[test]
fn what_is_no_translated_graph_is_refused() {
    assert!(matches!(PhysicalGraph::parse(b"[{}]"), Err(GraphError::Empty)));
    assert!(matches!(PhysicalGraph::parse(b"{}"), Err(GraphError::NotAList(_))));
    assert!(matches!(PhysicalGraph::parse(b"<html>"), Err(GraphError::NotAList(_))));
}

#[test]
fn a_drop_on_a_foreign_node_is_found_before_it_is_sent() {
    let known: Vec<String> = serde_json::from_slice(&golden("nodes.json")).unwrap();
    let mapped = graph("fanout-ok");
    mapped.belongs_to(&known).unwrap();

    let template = PhysicalGraph::parse(&golden("partitioned_template.fanout-ok.json")).unwrap();
    assert!(matches!(template.belongs_to(&known), Err(GraphError::ForeignNode { .. })));
    assert!(mapped.belongs_to(&["127.0.0.2:8000:5555:6666".into()]).is_err());

    // A short name is the same node, a longer port is not.
    let mut short = mapped;
    for drop in &mut short.drops {
        let node = drop.node.clone().unwrap();
        drop.node = Some(node.split(':').take(2).collect::<Vec<_>>().join(":"));
    }
    short.belongs_to(&known).unwrap();
    short.drops[0].node.as_mut().unwrap().pop();
    assert!(short.belongs_to(&known).is_err());
}

#[test]
fn the_culprit_is_the_drop_in_error_whose_inputs_are_complete() {
    let graph = graph("one-fails");
    let status = parse_graph_status(&golden("graph_status.one-fails.json")).unwrap();
    assert_eq!(names(&graph, &culprits(&status, &graph)), ["bad"]);

    let evidence = Evidence::sorted("s", State::Failed, &status, &graph);
    assert_eq!(evidence.error_drops_count, 4);
    let listed: Vec<_> = evidence.error_drops.iter().map(|drop| (drop.name.as_str(), drop.culprit)).collect();
    assert_eq!(listed[0], ("bad", true));
    assert_eq!(listed.len(), 4);
    assert!(listed[1..].iter().all(|(_, culprit)| !culprit));
    let kept: Evidence = serde_json::from_str(&serde_json::to_string(&evidence).unwrap()).unwrap();
    assert_eq!(kept, evidence);
}

#[test]
fn without_a_drop_that_fits_somebody_is_still_named() {
    let graph = graph("one-fails");
    let mut status = parse_graph_status(&golden("graph_status.one-fails.json")).unwrap();
    let of = |name: &str| graph.drops.iter().find(|drop| drop.name == name).unwrap().oid.clone();
    // The culprit's input expired meanwhile: nothing is complete before it, but nothing is in error either.
    status.get_mut(&of("seed")).unwrap().status = 4;
    assert_eq!(names(&graph, &culprits(&status, &graph)), ["bad"]);
    status.get_mut(&of("seed")).unwrap().status = 3;
    assert_eq!(names(&graph, &culprits(&status, &graph)), ["seed"]);
    assert_eq!(culprits(&status, &PhysicalGraph::default()).len(), 5);
}

#[test]
fn what_a_cancel_stopped_did_not_fail() {
    let status = parse_graph_status(&golden("graph_status.cancelled.json")).unwrap();
    assert!(progress(&status).failed > 0, "the drops that ran are in error");
    let evidence = Evidence::sorted("s", State::Cancelled, &status, &graph("fanout-ok"));
    assert_eq!((evidence.error_drops_count, evidence.error_drops.len()), (0, 0));
    assert_eq!(evidence.progress.failed, 0);
}

#[test]
fn drops_in_error_are_reported_while_the_session_still_runs() {
    let graph = graph("one-fails");
    let status = parse_graph_status(&golden("graph_status.one-fails.json")).unwrap();
    let evidence = Evidence::sorted("s", State::Running, &status, &graph);
    assert_eq!((evidence.error_drops_count, evidence.error_drops[0].name.as_str()), (4, "bad"));
}

#[test]
fn progress_counts_where_the_drops_are() {
    let of = |name: &str| {
        let counted = progress(&parse_graph_status(&golden(&format!("graph_status.{name}.json"))).unwrap());
        (counted.total, counted.completed, counted.running, counted.failed)
    };
    assert_eq!(of("running"), (10, 2, 3, 0));
    assert_eq!(of("finished"), (10, 10, 0, 0));
    assert_eq!(of("one-fails"), (7, 3, 0, 4));
}

#[test]
fn a_refusal_names_the_kind_that_each_node_gave() {
    for (file, kind) in [
        ("555.create-exists.json", "SessionAlreadyExistsException"),
        ("555.no-session.json", "NoSessionException"),
        ("555.graph-status-too-early.json", "InvalidSessionState"),
        ("555.append-twice.json", "ErrorManagerCaughtException"),
        ("555.deploy-twice.json", "ErrorManagerCaughtException"),
        ("555.cancel-too-early.json", "ErrorManagerCaughtException"),
        ("555.node-manager-down.json", "SubManagerException"),
        ("555.deploy-unknown-root.json", "DaliugeException"),
        ("400.append-unmapped.json", "InvalidGraphException"),
    ] {
        let refusal = parse_refusal(&golden(file));
        assert_eq!(refusal.kinds, [kind], "{file}");
        assert!(refusal.detail.contains(kind), "{file}: {}", refusal.detail);
    }
    assert!(parse_refusal(&golden("555.deploy-unknown-root.json")).detail.contains("nope"));
    assert!(parse_refusal(&golden("400.append-unmapped.json")).detail.contains("does not belong to this DM"));
}

#[test]
fn a_refusal_that_is_a_web_page_is_read_as_text() {
    let refusal = parse_refusal(&golden("500.append-no-json.html"));
    assert!(refusal.kinds.is_empty());
    assert!(refusal.detail.contains("500 Internal Server Error"), "{}", refusal.detail);
    assert!(!refusal.detail.contains(['<', '{']), "{}", refusal.detail);
    assert_eq!(parse_refusal(b"").detail, "");
    assert_eq!(parse_refusal(b"{}").kinds, ["no type"]);
}

#[test]
fn the_log_of_a_culprit_is_plain_text() {
    let detail = parse_drop_detail(&golden("drop.culprit.json")).unwrap();
    assert_eq!(detail.log[0].level, "ERROR");
    assert!(detail.log[0].message.starts_with("Command didn't finish successfully (exit code 3)"));
    assert!(detail.log[0].message.ends_with("no such beam"));
    assert!(detail.log.iter().all(|line| !line.message.contains("<pre>")));
    assert!(parse_drop_detail(&golden("drop.behind-culprit.json")).unwrap().log.is_empty());
    assert!(parse_drop_detail(b"[]").is_err());
}

#[test]
fn a_log_is_kept_within_bounds() {
    let line =
        json!({"time": "t", "Level": "ERROR", "Message": format!("<pre>{}</pre>", "é".repeat(100_000))});
    let body = json!({"oid": "o", "logs": vec![line; 500]}).to_string();
    let detail = parse_drop_detail(body.as_bytes()).unwrap();
    assert_eq!(detail.log.len(), evidence::MOST_LINES);
    assert!(detail.log.iter().all(|line| line.message.chars().count() <= evidence::LONGEST_LINE));
}

#[test]
fn markup_is_taken_out_and_nothing_else() {
    assert_eq!(plain_text("<pre>a &lt;b&gt; c</pre>"), "a <b> c");
    assert_eq!(plain_text("if x < 3 and y > 4"), "if x < 3 and y > 4");
    assert_eq!(plain_text("1 <2"), "1 <2");
    assert_eq!(plain_text("&amp;lt;"), "&lt;");
    assert_eq!(plain_text("<style>p {}</style>text"), "text");
    assert_eq!(plain_text("<unfinished"), "<unfinished");
    assert_eq!(plain_text("<"), "<");
    assert_eq!(plain_text("<é>"), "<é>");
    assert_eq!(shorten("short", 5), "short");
    let cut = shorten(&format!("begin{}end", "x".repeat(1_000)), 100);
    assert!(cut.starts_with("begin") && cut.ends_with("end") && cut.chars().count() == 100, "{cut}");
}
