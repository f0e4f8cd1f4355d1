//! Clauses about appending and reading.

use super::*;

pub async fn a_fresh_log_is_empty(log: Arc<dyn Log>) {
    assert_eq!(log.head().position, 0);
    assert_eq!(log.head().hash.0, [0; 32]);
    assert!(log.stream_head("s-1").await.unwrap().is_none());
    assert!(log.read_stream("s-1", 0, Direction::Forward, 10).await.unwrap().is_empty());
    for direction in [Direction::Forward, Direction::Backward] {
        for from in [0, 1, 7, Position::MAX] {
            let page = log.read_all(from, direction, 10, &Filter::All).await.unwrap();
            assert!(page.events.is_empty() && page.next.is_none());
        }
    }
    assert!(log.event(random_id()).await.unwrap().is_none());
    assert!(log.health().append_refused.is_none());
    assert!(log.health().damage.is_none());
}

pub async fn what_was_appended_is_read_back_as_it_was(log: Arc<dyn Log>) {
    let plain = sample("plain");
    let odd = NewEvent {
        event_type: "ding.geändert".into(),
        schema_version: u16::MAX,
        actor: "user:⚛".into(),
        causation_id: Some(plain.id),
        tags: vec!["z".into(), "ä".into(), "a".into(), "z".into()],
        data: Bytes::from_static(b"\0\xff not JSON"),
        occurred_at: DateTime::from_timestamp(-1, 999_999_999).unwrap(),
        ..sample("odd")
    };
    let bare = NewEvent { tags: vec![], data: Bytes::new(), ..sample("bare") };
    let sent = vec![plain, odd, bare];
    let appended = log.append("s-1", Expected::NoStream, sent.clone()).await.unwrap();
    assert_eq!((appended.first_revision, appended.head.revision, appended.repeated), (0, 2, false));
    let read = log.read_stream("s-1", 0, Direction::Forward, 10).await.unwrap();
    assert_eq!(read.len(), 3);
    for (revision, (sent, read)) in sent.iter().zip(&read).enumerate() {
        assert_eq!((&*read.stream, read.revision, read.id), ("s-1", revision as u64, sent.id));
        assert_eq!((&*read.event_type, read.schema_version), (&*sent.event_type, sent.schema_version));
        assert_eq!(read.occurred_at.timestamp_micros(), sent.occurred_at.timestamp_micros());
        assert_eq!(read.occurred_at.timestamp_subsec_nanos() % 1000, 0);
        assert_eq!((&*read.actor, read.correlation_id), (&*sent.actor, sent.correlation_id));
        assert_eq!(read.causation_id, sent.causation_id);
        assert_eq!((read.data.as_ref(), read.salt), (Some(&sent.data), Some(sent.salt)));
        assert_eq!(leaf::check(read), Ok(()));
    }
    let tags: Vec<&str> = read[1].tags.iter().map(|tag| &**tag).collect();
    assert_eq!(tags, ["a", "z", "ä"]);
    assert!(read[2].tags.is_empty());
    assert_eq!(log.head().hash, read[2].hash);
    assert_eq!(log.stream_head("s-1").await.unwrap(), Some(appended.head));
}

pub async fn positions_rise_in_order_of_commit(log: Arc<dyn Log>) {
    let mut last = 0;
    for n in 0..10 {
        let appended = append_at_end(&*log, &format!("s-{}", n % 3), vec![sample("a"), sample("b")]).await;
        assert!(appended.position > last);
        last = appended.position;
        assert_eq!(log.head().position, last);
    }
    let all = read_matching(&*log, &Filter::All, 7).await;
    assert_eq!(all.len(), 20);
    assert!(all.windows(2).all(|pair| pair[0].position < pair[1].position));
    assert!(all[0].position >= 1);
}

pub async fn recorded_at_never_decreases(log: Arc<dyn Log>) {
    join_all((0..16).map(|n| {
        let log = Arc::clone(&log);
        async move { append_at_end(&*log, &format!("s-{n}"), vec![sample("a"); 1]).await }
    }))
    .await;
    let all = read_matching(&*log, &Filter::All, 100).await;
    assert!(all.windows(2).all(|pair| pair[0].recorded_at <= pair[1].recorded_at));
    assert!(all.iter().all(|event| event.recorded_at.timestamp_subsec_nanos() % 1000 == 0));
}

pub async fn each_event_is_chained_to_the_one_before(log: Arc<dyn Log>) {
    for n in 0..5 {
        append_at_end(&*log, "s-1", vec![sample(&n.to_string()); 1]).await;
        append_at_end(&*log, "s-2", vec![sample(&n.to_string()), sample("more")]).await;
    }
    for stream in ["s-1", "s-2"] {
        let read = log.read_stream(stream, 0, Direction::Forward, 100).await.unwrap();
        assert_eq!((read[0].revision, read[0].prev_hash), (0, None));
        for pair in read.windows(2) {
            assert_eq!(pair[1].revision, pair[0].revision + 1);
            assert_eq!(pair[1].prev_hash, Some(pair[0].hash));
        }
        assert!(read.iter().all(|event| leaf::check(event).is_ok()));
    }
}

pub async fn an_unmet_expectation_is_a_conflict_that_says_where_the_stream_is(log: Arc<dyn Log>) {
    let at = Expected::At { revision: 0, hash: leaf::hash(b"no") };
    match log.append("s-1", at, vec![sample("a")]).await {
        Err(AppendError::Conflict { stream, actual }) => assert_eq!((&*stream, actual), ("s-1", None)),
        other => panic!("{other:?}"),
    }
    let first = log.append("s-1", Expected::NoStream, vec![sample("a"), sample("b")]).await.unwrap();
    match log.append("s-1", Expected::NoStream, vec![sample("c")]).await {
        Err(AppendError::Conflict { actual, .. }) => assert_eq!(actual, Some(first.head)),
        other => panic!("{other:?}"),
    }
    let ahead = Expected::At { revision: 5, hash: first.head.hash };
    assert!(matches!(log.append("s-1", ahead, vec![sample("c")]).await, Err(AppendError::Conflict { .. })));
    assert_eq!(log.head().position, first.position);
}

pub async fn an_expected_hash_that_differs_is_a_conflict(log: Arc<dyn Log>) {
    let first = log.append("s-1", Expected::NoStream, vec![sample("a")]).await.unwrap();
    let other = Expected::At { revision: 0, hash: leaf::hash(b"another history") };
    assert!(matches!(log.append("s-1", other, vec![sample("b")]).await, Err(AppendError::Conflict { .. })));
    let second = log.append("s-1", Some(first.head).into(), vec![sample("b")]).await.unwrap();
    assert_eq!(second.first_revision, 1);
}

pub async fn the_same_append_again_gets_the_first_answer(log: Arc<dyn Log>) {
    let events = vec![sample("a"), sample("b")];
    let first = log.append("s-1", Expected::NoStream, events.clone()).await.unwrap();
    let again = log.append("s-1", Expected::NoStream, events).await.unwrap();
    assert_eq!(again, Appended { repeated: true, ..first });
    assert_eq!(log.head().position, first.position);

    // At the same time, too: one writes, the other is told so.
    let events = vec![sample("c")];
    let expected = Expected::from(Some(first.head));
    let (one, two) = tokio::join!(
        log.append("s-1", expected, events.clone()),
        log.append("s-1", expected, events.clone())
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.position, one.head), (two.position, two.head));
    assert!(one.repeated != two.repeated);
}

pub async fn the_same_append_again_is_known_when_the_stream_has_moved_on(log: Arc<dyn Log>) {
    let first = log.append("s-1", Expected::NoStream, vec![sample("a")]).await.unwrap();
    let events = vec![sample("b"), sample("c")];
    let second = log.append("s-1", Some(first.head).into(), events.clone()).await.unwrap();
    for n in 0..20 {
        append_at_end(&*log, "s-1", vec![sample(&n.to_string())]).await;
    }
    let again = log.append("s-1", Some(first.head).into(), events.clone()).await.unwrap();
    assert_eq!(again, Appended { repeated: true, ..second });
    // A beginning of it is there as well; more than it is not.
    let part = log.append("s-1", Some(first.head).into(), events[..1].to_vec()).await.unwrap();
    assert!(part.repeated && part.head.revision == 1);
    let more = [events, vec![sample("d")]].concat();
    assert!(matches!(
        log.append("s-1", Some(first.head).into(), more).await,
        Err(AppendError::Conflict { .. })
    ));
}

pub async fn other_events_at_the_same_place_are_a_conflict(log: Arc<dyn Log>) {
    let event = sample("a");
    let first = log.append("s-1", Expected::NoStream, vec![event.clone()]).await.unwrap();
    for other in [
        NewEvent { salt: random(), ..event.clone() },
        NewEvent { id: random_id(), ..event.clone() },
        NewEvent { data: Bytes::from_static(b"{}"), ..event.clone() },
        NewEvent { tags: vec![], ..event.clone() },
        NewEvent { causation_id: Some(event.id), ..event.clone() },
    ] {
        let refused = log.append("s-1", Expected::NoStream, vec![other]).await;
        assert!(matches!(refused, Err(AppendError::Conflict { .. })), "{refused:?}");
    }
    assert_eq!(log.head().position, first.position);
}

pub async fn appends_race_and_one_wins_each_revision(log: Arc<dyn Log>) {
    const WRITERS: usize = 64;
    const ROUNDS: usize = 8;
    let mut head: Option<StreamHead> = None;
    for round in 0..ROUNDS {
        let expected = Expected::from(head);
        let answers = join_all((0..WRITERS).map(|writer| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                loop {
                    match log.append("s-1", expected, vec![sample(&format!("{round} {writer}"))]).await {
                        Err(AppendError::Busy) => tokio::task::yield_now().await,
                        other => return other,
                    }
                }
            })
        }))
        .await;
        let mut winners = Vec::new();
        for answer in answers {
            match answer.unwrap() {
                Ok(appended) => winners.push(appended),
                Err(AppendError::Conflict { actual, .. }) => {
                    assert_eq!(actual.map(|head| head.revision), Some(round as u64));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "one winner of revision {round}");
        assert_eq!(winners[0].head.revision, round as u64);
        head = Some(winners[0].head);
    }
    assert_eq!(log.read_stream("s-1", 0, Direction::Forward, 100).await.unwrap().len(), ROUNDS);
}

pub async fn an_append_is_all_or_nothing(log: Arc<dyn Log>) {
    let large = NewEvent { data: Bytes::from(vec![b'x'; MAX_EVENT_BYTES + 1]), ..sample("large") };
    let refused = log.append("s-1", Expected::NoStream, vec![sample("a"), large]).await;
    assert!(matches!(refused, Err(AppendError::Unacceptable { .. })));
    assert!(log.stream_head("s-1").await.unwrap().is_none());
    let many: Vec<NewEvent> = (0..100).map(|n| sample(&n.to_string())).collect();
    let others = (0..20).map(|n| {
        let log = Arc::clone(&log);
        async move { append_at_end(&*log, &format!("o-{n}"), vec![sample("another")]).await }
    });
    let (appended, _) = tokio::join!(log.append("s-1", Expected::NoStream, many), join_all(others));
    let appended = appended.unwrap();
    let read = read_matching(&*log, &Filter::stream("s-1"), 1000).await;
    assert_eq!(read.len(), 100);
    assert_eq!(read[99].position, appended.position);
    let all = positions(&read_matching(&*log, &Filter::All, 1000).await);
    let ours = positions(&read);
    assert!(all.windows(100).any(|window| window == ours), "nothing comes in between");
}

pub async fn what_is_over_a_limit_is_refused_and_says_so(log: Arc<dyn Log>) {
    let of = |bytes: usize| NewEvent { data: Bytes::from(vec![b'x'; bytes]), ..sample("") };
    for (events, reason) in [
        (vec![of(MAX_EVENT_BYTES)], "262144 are allowed"),
        (
            vec![of(MAX_EVENT_BYTES - 4096); MAX_APPEND_BYTES / (MAX_EVENT_BYTES - 4096) + 1],
            "921600 are allowed",
        ),
    ] {
        match log.append("s-1", Expected::NoStream, events).await {
            Err(AppendError::Unacceptable { reason: said, .. }) => assert!(said.contains(reason), "{said}"),
            other => panic!("{other:?}"),
        }
    }
    let large = of(MAX_EVENT_BYTES - 4096);
    log.append("s-1", Expected::NoStream, vec![large.clone()]).await.unwrap();
    let read = log.read_stream("s-1", 0, Direction::Forward, 1).await.unwrap();
    assert_eq!(read[0].data, Some(large.data));
}

pub async fn an_append_without_events_is_refused(log: Arc<dyn Log>) {
    let refused = log.append("s-1", Expected::NoStream, vec![]).await;
    assert!(matches!(refused, Err(AppendError::Unacceptable { .. })));
    let nameless = log.append("", Expected::NoStream, vec![sample("a")]).await;
    assert!(matches!(nameless, Err(AppendError::Unacceptable { .. })));
}

pub async fn a_stream_is_read_in_both_directions(log: Arc<dyn Log>) {
    for n in 0..10 {
        append_at_end(&*log, "s-1", vec![sample(&n.to_string())]).await;
        append_at_end(&*log, "s-11", vec![sample("another stream")]).await;
    }
    let revisions = async |from, direction, limit| -> Vec<u64> {
        let read = log.read_stream("s-1", from, direction, limit).await.unwrap();
        read.iter().map(|event| event.revision).collect()
    };
    assert_eq!(revisions(0, Direction::Forward, 100).await, (0..10).collect::<Vec<_>>());
    assert_eq!(revisions(3, Direction::Forward, 2).await, [3, 4]);
    assert_eq!(revisions(u64::MAX, Direction::Backward, 3).await, [9, 8, 7]);
    assert_eq!(revisions(4, Direction::Backward, 100).await, [4, 3, 2, 1, 0]);
    assert_eq!(revisions(10, Direction::Forward, 5).await, [0; 0]);
    assert_eq!(revisions(0, Direction::Backward, 5).await, [0]);
}

pub async fn everything_is_read_in_both_directions_by_pages(log: Arc<dyn Log>) {
    for n in 0..25 {
        append_at_end(&*log, &format!("s-{}", n % 4), vec![sample(&n.to_string())]).await;
    }
    let forward = read_matching(&*log, &Filter::All, 4).await;
    assert_eq!(forward.len(), 25);
    let mut backward = Vec::new();
    let mut from = Some(Position::MAX);
    while let Some(start) = from {
        let page = log.read_all(start, Direction::Backward, 4, &Filter::All).await.unwrap();
        backward.extend(page.events);
        from = page.next;
    }
    backward.reverse();
    assert_eq!(positions(&forward), positions(&backward));
    let whole = log.read_all(0, Direction::Forward, 25, &Filter::All).await.unwrap();
    assert_eq!((whole.events.len(), whole.next), (25, None));
}

pub async fn every_filter_reads_what_it_matches_and_nothing_else(log: Arc<dyn Log>) {
    let request = random_id();
    for n in 0..60_u32 {
        let mut event = tagged(&n.to_string(), &[if n % 3 == 0 { "project:a" } else { "project:ab" }, "all"]);
        if n % 7 == 0 {
            event.correlation_id = request;
        }
        let stream = match n % 4 {
            0 => format!("execution-{n}"),
            1 => "execution-0".into(),
            2 => "executions-0".into(),
            _ => "execution".into(),
        };
        append_at_end(&*log, &stream, vec![event]).await;
    }
    let all = read_matching(&*log, &Filter::All, 13).await;
    for filter in [
        Filter::category("execution"),
        Filter::category("executions"),
        Filter::category("exec"),
        Filter::stream("execution-0"),
        Filter::stream("execution"),
        Filter::stream("nothing"),
        Filter::tag("project:a"),
        Filter::tag("project:ab"),
        Filter::tag("all"),
        Filter::tag("project:"),
        Filter::Correlation(request),
        Filter::Correlation(random_id()),
    ] {
        let wanted: Vec<Position> =
            all.iter().filter(|event| filter.matches(event)).map(|e| e.position).collect();
        for page in [1, 3, 1000] {
            assert_eq!(positions(&read_matching(&*log, &filter, page).await), wanted, "{filter:?} by {page}");
            let mut backward = Vec::new();
            let mut from = Some(Position::MAX);
            while let Some(start) = from {
                let read = log.read_all(start, Direction::Backward, page, &filter).await.unwrap();
                backward.extend(positions(&read.events));
                from = read.next;
            }
            backward.reverse();
            assert_eq!(backward, wanted, "{filter:?} backward by {page}");
        }
        if let [_, .., last] = wanted[..] {
            let part = log.read_all(wanted[0] + 1, Direction::Forward, 1000, &filter).await.unwrap();
            assert_eq!(positions(&part.events), wanted[1..], "{filter:?} from the middle");
            let part = log.read_all(last - 1, Direction::Backward, 1000, &filter).await.unwrap();
            assert_eq!(part.events.len(), wanted.len() - 1, "{filter:?} back from the middle");
        }
    }
}

pub async fn an_event_is_found_by_its_id(log: Arc<dyn Log>) {
    let event = sample("a");
    append_at_end(&*log, "s-1", vec![sample("b"), event.clone(), sample("c")]).await;
    let found = log.event(event.id).await.unwrap().unwrap();
    assert_eq!((found.id, found.revision), (event.id, 1));
    assert!(log.event(random_id()).await.unwrap().is_none());
}

pub async fn beats_rise_and_the_last_facts_win(log: Arc<dyn Log>) {
    assert!(log.beats().await.unwrap().is_empty());
    log.beat("worker-1", serde_json::json!({"jobs": 1})).await;
    log.beat("worker-2", serde_json::json!({})).await;
    log.beat("worker-1", serde_json::json!({"jobs": 2})).await;
    let beats: BTreeMap<String, _> =
        log.beats().await.unwrap().into_iter().map(|beat| (beat.who.clone(), beat)).collect();
    assert_eq!(beats.len(), 2);
    assert_eq!(beats["worker-1"].facts, serde_json::json!({"jobs": 2}));
    assert!(beats["worker-1"].counter > beats["worker-2"].counter);
    assert_eq!(log.head().position, 0, "a beat is no event");
}

pub async fn a_closed_log_refuses_and_keeps_what_it_took(log: Arc<dyn Log>) {
    let appends: Vec<_> = (0..50)
        .map(|n| {
            let log = Arc::clone(&log);
            tokio::spawn(
                async move { log.append(&format!("s-{n}"), Expected::NoStream, vec![sample("a")]).await },
            )
        })
        .collect();
    tokio::task::yield_now().await;
    log.close().await;
    let mut taken = 0;
    for append in appends {
        match append.await.unwrap() {
            Ok(_) => taken += 1,
            Err(AppendError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(read_matching(&*log, &Filter::All, 1000).await.len(), taken);
    let late = log.append("late", Expected::NoStream, vec![sample("a")]).await;
    assert!(matches!(late, Err(AppendError::Unavailable(_))), "{late:?}");
    assert!(log.health().append_refused.is_some());
    log.close().await;
}
