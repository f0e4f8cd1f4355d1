//! Clauses about subscriptions.

use super::*;

pub async fn a_subscription_catches_up_and_goes_on_live(log: Arc<dyn Log>) {
    append_at_end(&*log, "s-1", (0..10).map(|n| sample(&n.to_string())).collect()).await;
    let third = read_matching(&*log, &Filter::All, 100).await[2].position;
    let mut subscription = log.subscribe(Filter::All, third);
    let history = follow_through(&mut subscription, log.head().position, 4).await;
    assert_eq!(history.len(), 7);
    let appended = append_at_end(&*log, "s-2", vec![sample("live")]).await;
    let live = follow_through(&mut subscription, appended.position, 100).await;
    assert_eq!(positions(&live), [appended.position]);
    assert_eq!(&*live[0].stream, "s-2");
}

pub async fn a_subscription_says_once_that_it_caught_up(log: Arc<dyn Log>) {
    let mut early = log.subscribe(Filter::All, 0);
    let batch = tokio::time::timeout(PATIENCE, early.next_batch(10)).await.unwrap().unwrap();
    assert!(batch.caught_up && batch.events.is_empty(), "an empty log is caught up with at once");
    assert!(
        tokio::time::timeout(Duration::from_millis(100), early.next_batch(10)).await.is_err(),
        "and said once"
    );

    append_at_end(&*log, "s-1", (0..10).map(|n| sample(&n.to_string())).collect()).await;
    let mut late = log.subscribe(Filter::All, 0);
    let mut seen = 0;
    loop {
        let batch = tokio::time::timeout(PATIENCE, late.next_batch(3)).await.unwrap().unwrap();
        seen += batch.events.len();
        if batch.caught_up {
            break;
        }
        assert!(seen <= 10);
    }
    assert_eq!(seen, 10, "caught up means that nothing is left");

    let mut nothing = log.subscribe(Filter::tag("nobody"), 0);
    let batch = tokio::time::timeout(PATIENCE, nothing.next_batch(10)).await.unwrap().unwrap();
    assert!(batch.caught_up && batch.events.is_empty());
    assert_eq!(batch.through, log.head().position);
}

async fn write_some(log: Arc<dyn Log>, writer: usize, events: usize) {
    for n in 0..events {
        let tag = format!("writer:{writer}");
        append_at_end(&*log, &format!("s-{}", (writer + n) % 5), vec![tagged(&n.to_string(), &[&tag])]).await;
    }
}

pub async fn a_subscription_that_races_with_appends_misses_and_repeats_nothing(log: Arc<dyn Log>) {
    const WRITERS: usize = 8;
    const EVENTS: usize = 60;
    let total = WRITERS * EVENTS;
    let (end, ended) = tokio::sync::watch::channel(None);
    let followers: Vec<_> = (0..16)
        .map(|n| {
            let (log, mut ended) = (Arc::clone(&log), ended.clone());
            let (filter, share) = match n % 4 {
                0 => (Filter::All, total),
                1 => (Filter::tag(format!("writer:{}", n % WRITERS)), EVENTS),
                2 => (Filter::stream(format!("s-{}", n % 5)), 0),
                _ => (Filter::category("s"), total),
            };
            tokio::spawn(async move {
                // Some start in the middle of the storm.
                tokio::time::sleep(Duration::from_millis(n as u64 * 3)).await;
                let mut subscription = log.subscribe(filter.clone(), 0);
                let (mut seen, mut through) = (Vec::new(), 0);
                while ended.borrow().is_none_or(|end| through < end) {
                    let batch = tokio::select! {
                        batch = subscription.next_batch(1 + n * 5) => batch.unwrap(),
                        _ = ended.changed() => continue,
                        () = tokio::time::sleep(PATIENCE) => panic!("the subscription goes on"),
                    };
                    through = batch.through;
                    seen.extend(batch.events);
                }
                (filter, share, seen)
            })
        })
        .collect();
    join_all((0..WRITERS).map(|writer| tokio::spawn(write_some(Arc::clone(&log), writer, EVENTS)))).await;
    end.send_replace(Some(log.head().position));
    for follower in followers {
        let (filter, share, seen) = follower.await.unwrap();
        assert!(share == 0 || seen.len() == share, "{filter:?}");
        let read = read_matching(&*log, &filter, 100).await;
        assert_eq!(positions(&seen), positions(&read), "{filter:?}");
    }
}

pub async fn a_slow_subscriber_misses_nothing_and_stalls_nobody(log: Arc<dyn Log>) {
    // More than any ring keeps, while one follower does not take a thing.
    let mut slow = log.subscribe(Filter::All, 0);
    let first = slow.next_batch(10).await.unwrap();
    assert!(first.caught_up);
    let data = Bytes::from(vec![b'x'; 64 * 1024]);
    let appends = (0..320).map(|n| {
        let log = Arc::clone(&log);
        let event = NewEvent { data: data.clone(), ..sample("") };
        async move { append_at_end(&*log, &format!("s-{n}"), vec![event]).await }
    });
    tokio::time::timeout(PATIENCE * 3, join_all(appends)).await.expect("nobody waits for a slow subscriber");
    let seen = follow_through(&mut slow, log.head().position, 7).await;
    assert_eq!(positions(&seen), positions(&read_matching(&*log, &Filter::All, 100).await));
}

pub async fn a_filtered_subscription_equals_a_filtered_read(log: Arc<dyn Log>) {
    for n in 0..40 {
        append_at_end(
            &*log,
            &format!("s-{}", n % 3),
            vec![tagged(&n.to_string(), &[&format!("t:{}", n % 4)])],
        )
        .await;
    }
    let all = positions(&read_matching(&*log, &Filter::All, 100).await);
    let after = |nth: usize| if nth == 0 { 0 } else { all[nth - 1] };
    for filter in [Filter::tag("t:1"), Filter::stream("s-2"), Filter::category("s"), Filter::category("x")] {
        for after in [0, 1, 17, 39, 40].map(after) {
            let mut subscription = log.subscribe(filter.clone(), after);
            let seen = follow_through(&mut subscription, all[39], 3).await;
            let read = read_matching(&*log, &filter, 100).await;
            let wanted: Vec<Position> = positions(&read).into_iter().filter(|&p| p > after).collect();
            assert_eq!(positions(&seen), wanted, "{filter:?} after {after}");
        }
    }
}

pub async fn a_checkpoint_moves_on_when_nothing_matches(log: Arc<dyn Log>) {
    let mut subscriptions: Vec<Subscription> =
        [Filter::tag("nobody"), Filter::category("other"), Filter::stream("x")]
            .into_iter()
            .map(|filter| log.subscribe(filter, 0))
            .collect();
    for subscription in &mut subscriptions {
        assert!(subscription.next_batch(10).await.unwrap().caught_up);
    }
    let appended = append_at_end(&*log, "s-1", vec![sample("a"), sample("b")]).await;
    for subscription in &mut subscriptions {
        let batch = tokio::time::timeout(PATIENCE, subscription.next_batch(10)).await.unwrap().unwrap();
        assert!(batch.events.is_empty());
        assert_eq!(batch.through, appended.position);
    }
}

pub async fn a_dropped_wait_loses_nothing(log: Arc<dyn Log>) {
    let mut subscription = log.subscribe(Filter::All, 0);
    assert!(subscription.next_batch(10).await.unwrap().caught_up);
    let writer = tokio::spawn(write_some(Arc::clone(&log), 1, 60));
    let mut seen = Vec::new();
    while seen.len() < 60 {
        // Hardly ever long enough.
        let wait = Duration::from_micros(u64::from(random::<1>()[0]) * 4);
        if let Ok(batch) = tokio::time::timeout(wait, subscription.next_batch(3)).await {
            seen.extend(batch.unwrap().events);
        }
    }
    writer.await.unwrap();
    assert_eq!(positions(&seen), positions(&read_matching(&*log, &Filter::All, 100).await));
}

pub async fn an_answered_append_is_seen_by_every_reader(log: Arc<dyn Log>) {
    for n in 0..30 {
        let event = sample(&n.to_string());
        let appended = append_at_end(&*log, "s-1", vec![event.clone()]).await;
        assert!(log.head().position >= appended.position);
        assert_eq!(log.stream_head("s-1").await.unwrap(), Some(appended.head));
        assert_eq!(log.event(event.id).await.unwrap().unwrap().position, appended.position);
        let read = log.read_stream("s-1", n, Direction::Forward, 10).await.unwrap();
        assert_eq!(positions(&read), [appended.position]);
        let page = log.read_all(appended.position, Direction::Forward, 10, &Filter::All).await.unwrap();
        assert_eq!(page.events[0].hash, appended.head.hash);
        let tagged =
            log.read_all(Position::MAX, Direction::Backward, 1, &Filter::tag("project:wallaby")).await;
        assert_eq!(tagged.unwrap().events[0].hash, appended.head.hash);
    }
}

pub async fn a_reader_that_saw_a_position_never_sees_an_earlier_one_appear(log: Arc<dyn Log>) {
    let writers: Vec<_> =
        (0..8).map(|writer| tokio::spawn(write_some(Arc::clone(&log), writer, 40))).collect();
    let mut seen: Vec<Position> = Vec::new();
    while seen.len() < 320 {
        let page = log.read_all(0, Direction::Forward, 1000, &Filter::All).await;
        let now = positions(&page.unwrap().events);
        assert_eq!(now[..seen.len().min(now.len())], seen[..], "what was seen stays as it was");
        seen = now;
        tokio::task::yield_now().await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
}
