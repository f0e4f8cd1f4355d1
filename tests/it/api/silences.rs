use serde_json::{Value, json};

use crate::support::{self, answered};
use beampipe::alerts::silencing;
use beampipe_domain::alert::{Alert, Command, Observation, Seen, Subject};
use beampipe_domain::id;

fn silence(changes: Value) -> Value {
    let mut body = json!({
        "matchers": [{"name": "project_module", "value": "wallaby"}], "comment": "maintenance of the archive",
        "duration_minutes": 90,
    });
    body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silence_is_set_listed_and_ended() {
    let service = support::service().await;
    let created = service.post("/silences", silence(json!({}))).await.is(201);
    assert_eq!((&created["state"], &created["author"]), (&json!("active"), &json!("key:first")));
    assert_eq!(created["matchers"], json!([{"name": "project_module", "op": "=", "value": "wallaby"}]));
    let starts_at = chrono::DateTime::from_timestamp(service.clock.now().timestamp() + 86_400, 0).unwrap();
    let ends_at = starts_at + chrono::TimeDelta::minutes(90);
    let pending = service.post("/silences", silence(json!({"starts_at": starts_at}))).await.is(201);
    assert_eq!((&pending["state"], &pending["ends_at"]), (&json!("pending"), &json!(ends_at)));
    let never =
        service.post("/silences", silence(json!({"starts_at": "9999-12-31T23:59:59Z"}))).await.is(422);
    assert_eq!(never["errors"][0]["field"], "starts_at");
    let one = format!("/silences/{}", created["uuid"].as_str().unwrap());
    assert_eq!(service.delete(&one).await.status.as_u16(), 204);
    assert_eq!(
        service.delete(&one).await.status.as_u16(),
        204,
        "it is over, however often that is asked for"
    );
    assert_eq!(service.get(&one).await.is(200)["state"], "expired");
    assert_eq!(service.get("/silences").await.is(200), json!([pending]));
    let all = service.get("/silences?include_expired=true").await.is(200);
    assert_eq!(all.as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_matchers_of_alertmanager_are_understood() {
    let service = support::service().await;
    let matchers = json!({"matchers": [
        {"name": "a", "value": "x|y", "isRegex": true, "isEqual": false},
        {"name": "b", "value": "x", "isRegex": false},
        {"name": "c", "value": "x.*", "op": "=~"},
    ]});
    let created = service.post("/silences", silence(matchers)).await.is(201);
    let ops: Vec<_> = created["matchers"].as_array().unwrap().iter().map(|one| one["op"].clone()).collect();
    assert_eq!(ops, [json!("!~"), json!("="), json!("=~")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silence_that_cannot_be_meant_is_refused() {
    let service = support::service().await;
    for (changes, word) in [
        (json!({"matchers": []}), "matchers"),
        (json!({"comment": " "}), "why"),
        (json!({"duration_minutes": 43_201}), "30 days"),
        (json!({"duration_minutes": null}), "ends_at"),
        (json!({"ends_at": "2999-01-01T00:00:00Z"}), "duration_minutes"),
        (json!({"duration_minutes": null, "ends_at": "2001-01-01T00:00:00Z"}), "over"),
        (json!({"matchers": [{"name": "a", "value": "(", "op": "=~"}]}), "regular expression"),
        (json!({"matchers": [{"name": "a", "value": "x", "op": "~"}]}), "=~"),
        (json!({"matchers": [{"name": "", "value": "x"}]}), "label"),
        (json!({"author": "somebody else"}), "author"),
    ] {
        let refused = service.post("/silences", silence(changes.clone())).await.is(422);
        assert!(refused.to_string().contains(word), "{changes}: {refused}");
    }
    let nobody = "/silences/018f0000-0000-7000-8000-000000000000";
    assert_eq!(service.get(nobody).await.is(404)["code"], "silence-unknown");
    assert_eq!(service.delete(nobody).await.is(404)["code"], "silence-unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_link_of_a_message_silences_its_alert_for_whoever_says_so_and_for_no_scanner() {
    let service = support::service().await;
    let labels = [("rule".to_owned(), "<b>&odd".to_owned())].into();
    let alert = format!("{}-{}", service.clock.id(), id::fingerprint(&labels, None));
    let observation = Observation {
        at: service.clock.now(),
        seen: Seen::Holds { value: None, summary: "<script>61 wait".into(), causes: vec![] },
        subject: Subject { rule_name: "<b>&odd".into(), labels, ..Subject::default() },
        ..Observation::default()
    };
    let command = Command::Observe(Box::new(observation));
    let done = service.handle.handle::<Alert>(&alert, &service.context(), command).await.unwrap();
    assert!(service.api.settle(done.position).await);
    let token = silencing::token(&service.api.sender.sealing, &alert, service.clock.now());
    let link = service.url(&format!("/silence/{token}"));
    // A scanner has no key either.
    let page = answered(service.http.get(&link).send().await.unwrap()).await;
    assert_eq!(page.status.as_u16(), 200);
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    assert!(page.body.contains("&lt;script&gt;61 wait") && !page.body.contains("<script>"), "{}", page.body);
    assert_eq!(service.get("/silences").await.is(200), json!([]), "looking silences nothing");
    let press = async |hours: &str| {
        answered(service.http.post(&link).form(&[("hours", hours)]).send().await.unwrap()).await
    };
    assert_eq!(press("1000").await.status.as_u16(), 422);
    assert_eq!(press("4").await.status.as_u16(), 200);
    let silences = service.get("/silences").await.is(200);
    assert_eq!(silences[0]["matchers"], json!([{"name": "rule", "op": "=", "value": "<b>&odd"}]));
    assert_eq!(silences[0]["author"], "system:silence-link/message");
    let other = service.url(&format!("/silence/{}x", &token[..token.len() - 1]));
    let refused = answered(service.http.post(&other).form(&[("hours", "4")]).send().await.unwrap()).await;
    assert_eq!(refused.status.as_u16(), 404, "{}", refused.body);
    assert_eq!(service.get("/silences").await.is(200).as_array().unwrap().len(), 1);
}
