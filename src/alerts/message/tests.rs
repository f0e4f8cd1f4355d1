use super::*;

pub fn payload(status: &str) -> Value {
    json!({
        "alert": "backlog", "status": status, "severity": "critical", "project_module": "p", "summary": "61 wait",
        "source_identifiers": ["A", "B"], "changed_count": 21, "labels": {"rule": "backlog", "n": 7},
        "annotations": {"runbook_url": "https://example.org/runbook", "note": "look at the queue"},
        "links": {"execution": "/api/v2/executions/1", "runbook": "https://example.org/runbook"},
        "fired_at": "2026-11-20T03:00:00Z", "resolved_at": null, "late": true,
    })
}

#[test]
fn a_payload_that_names_no_alerts_is_about_the_one_that_it_is_about() {
    let payload = payload("firing");
    let said = Said::of(&payload, "key");
    let [one] = &said.alerts[..] else { panic!("{said:?}") };
    assert_eq!((one.id.as_str(), one.status.as_str(), one.summary.as_str()), ("key", "firing", "61 wait"));
    assert_eq!(one.labels["n"], "7");
    assert_eq!((one.starts_at.unwrap().timestamp(), one.ends_at), (1_795_143_600, None));
    assert_eq!(said.open_links(), [("runbook".to_owned(), "https://example.org/runbook".to_owned())]);
}

#[test]
fn a_text_for_people_has_what_they_need_and_no_more() {
    let payload = payload("firing");
    let said = Said::of(&payload, "key");
    assert_eq!(said.title(), "[FIRING] backlog (critical): 61 wait");
    let body = said.body();
    for line in [
        "61 wait",
        "project: p",
        "sources: A, B and 19 more",
        "since: 2026-11-20T03:00:00Z",
        "note: look at the queue",
        "runbook: https://example.org/runbook",
    ] {
        assert!(body.lines().any(|has| has == line), "{line:?} is not in\n{body}");
    }
    assert!(body.contains("later than it happened") && !body.contains("runbook_url"), "{body}");
}

#[test]
fn a_digest_says_how_many_it_is_about_and_names_the_first() {
    let mut payload = payload("firing");
    let alerts =
        (0..25).map(|n| json!({"id": format!("a{n}"), "status": "firing", "summary": format!("number {n}")}));
    payload["alerts"] = alerts.collect();
    let said = Said::of(&payload, "key");
    assert_eq!(said.title(), "[FIRING:25] backlog (critical): 61 wait");
    let body = said.body();
    assert!(body.contains("- [FIRING] number 19\n- and 5 more"), "{body}");
    assert_eq!(said.alerts[24].id, "a24");
}

#[test]
fn a_title_is_one_line_and_not_too_long() {
    let mut payload = payload("firing");
    payload["summary"] = json!(format!("a\r\nBcc: x {}", "y".repeat(500)));
    let title = Said::of(&payload, "key").title();
    assert!(!title.contains(['\r', '\n']) && title.chars().count() == LONGEST_TITLE, "{title}");
}

#[test]
fn a_template_finds_every_field_whatever_the_payload_lacks() {
    let payload = json!({"alert": "test", "status": "test"});
    let context = Said::of(&payload, "key").context();
    for field in ["labels", "annotations", "links", "group_labels"] {
        assert!(context[field].is_object(), "{field}");
    }
    assert_eq!((&context["late"], &context["source_identifiers"]), (&json!(false), &json!([])));
    assert_eq!((&context["alerts"][0]["id"], &context["title"]), (&json!("key"), &json!("[TEST] test ():")));
}

#[test]
fn a_text_says_of_what_is_over_since_when_it_had_fired() {
    let mut payload = payload("resolved");
    payload["resolved_at"] = json!("2026-11-20T03:20:00Z");
    payload["fired_at"] = json!("2026-11-20T03:20:00Z");
    payload["alerts"] = json!([
        {"id": "a1", "status": "resolved", "starts_at": "2026-11-20T02:30:00Z", "ends_at": "2026-11-20T03:20:00Z"},
        {"id": "a2", "status": "resolved", "starts_at": "2026-11-20T02:10:00Z", "ends_at": "2026-11-20T03:20:00Z"},
    ]);
    let body = Said::of(&payload, "key").body();
    assert!(body.contains("since: 2026-11-20T02:10:00Z\nuntil: 2026-11-20T03:20:00Z"), "{body}");
}
