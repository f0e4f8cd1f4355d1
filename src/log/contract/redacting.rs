//! Clauses about redaction.

use super::*;

/// A record of the redaction of `event`.
pub fn redaction_of(event: Uuid) -> NewEvent {
    NewEvent {
        event_type: redaction::EVENT_TYPE.into(),
        tags: vec!["scope:installation".into()],
        data: Bytes::from(serde_json::json!({ "event_id": event, "reason": "a name" }).to_string()),
        ..sample("")
    }
}

pub async fn a_redaction_removes_data_and_keeps_proofs(log: Arc<dyn Log>) {
    let event = sample("a secret");
    append_at_end(&*log, "s-1", vec![sample("before"), event.clone(), sample("after")]).await;
    let before = log.event(event.id).await.unwrap().unwrap();
    let mut follower = log.subscribe(Filter::All, log.head().position);
    assert!(follower.next_batch(10).await.unwrap().caught_up);

    let redacted = log.redact(event.id, redaction_of(event.id)).await.unwrap();
    assert!(!redacted.repeated);
    let record = log.read_stream(redaction::STREAM, 0, Direction::Forward, 10).await.unwrap();
    assert_eq!((record.len(), record[0].position), (1, redacted.position));
    let heard = follow_through(&mut follower, redacted.position, 10).await;
    assert_eq!(positions(&heard), [redacted.position]);

    let stream = log.read_stream("s-1", 0, Direction::Forward, 10).await.unwrap();
    let all = read_matching(&*log, &Filter::All, 10).await;
    for after in [log.event(event.id).await.unwrap().unwrap(), Arc::clone(&stream[1]), Arc::clone(&all[1])] {
        assert!(after.is_redacted());
        assert_eq!((after.data.as_ref(), after.salt), (None, None));
        assert_eq!((after.commitment, after.hash, after.id), (before.commitment, before.hash, before.id));
        assert_eq!(leaf::check(&after), Ok(()));
    }
    assert_eq!(stream[2].prev_hash, Some(before.hash));
    assert_eq!(leaf::commitment(&event.salt, &event.data), before.commitment);
    // A redacted stream goes on.
    append_at_end(&*log, "s-1", vec![sample("more")]).await;
}

pub async fn a_redaction_is_recorded_once(log: Arc<dyn Log>) {
    let event = sample("a secret");
    append_at_end(&*log, "s-1", vec![event.clone()]).await;
    let first = log.redact(event.id, redaction_of(event.id)).await.unwrap();
    let head = log.head();
    let again = log.redact(event.id, redaction_of(event.id)).await.unwrap();
    assert_eq!(again, Appended { repeated: true, ..first });
    assert_eq!(log.head(), head);
}

pub async fn a_redaction_needs_a_record_that_names_its_event(log: Arc<dyn Log>) {
    let event = sample("a secret");
    append_at_end(&*log, "s-1", vec![event.clone()]).await;
    let other = redaction_of(random_id());
    let mistyped = NewEvent { event_type: "log.changed".into(), ..redaction_of(event.id) };
    for record in [other, mistyped] {
        let refused = log.redact(event.id, record).await;
        assert!(matches!(refused, Err(RedactError::Append(AppendError::Unacceptable { .. }))), "{refused:?}");
    }
    let nobody = random_id();
    let refused = log.redact(nobody, redaction_of(nobody)).await;
    assert!(matches!(refused, Err(RedactError::NoSuchEvent(id)) if id == nobody), "{refused:?}");
    assert!(!log.event(event.id).await.unwrap().unwrap().is_redacted());

    let record = redaction_of(event.id);
    log.redact(event.id, record.clone()).await.unwrap();
    let refused = log.redact(record.id, redaction_of(record.id)).await;
    assert!(matches!(refused, Err(RedactError::Append(AppendError::Unacceptable { .. }))), "{refused:?}");
}
