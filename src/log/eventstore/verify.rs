//! `verify`: reads the whole log and recomputes what can be recomputed.
//!
//! Leaves and commitments are checked by whatever is read; here the chains, the times and the redactions are added. The
//! index is derived and not checked: delete it to have it built again. The data of redacted events, which the server
//! still has, is not looked at.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::EventStoreLog;
use crate::event::{Hash, Recorded, Revision};
use crate::verify::{Fault, MOST_FAULTS, VerifyProgress, VerifyReport};
use crate::{Direction, Filter, Log, ReadError, leaf, redaction};

const PAGE: usize = 1_000;

#[derive(Default)]
struct Run {
    report: VerifyReport,
    streams: HashMap<Arc<str>, (Revision, Hash)>,
    recorded_at: Option<DateTime<Utc>>,
    redacted: HashSet<Uuid>,
}

impl Run {
    fn fault(&mut self, event: &Recorded, what: impl Into<String>) {
        if self.report.faults.len() < MOST_FAULTS {
            let place =
                format!("position {} (stream {} revision {})", event.position, event.stream, event.revision);
            self.report.faults.push(Fault { place, what: what.into() });
        }
    }

    fn event(&mut self, event: &Recorded) {
        self.report.events += 1;
        if let Err(broken) = leaf::check(event) {
            self.fault(event, broken.to_string());
        }
        let before = self.streams.insert(Arc::clone(&event.stream), (event.revision, event.hash));
        let follows = match before {
            None => event.revision == 0 && event.prev_hash.is_none(),
            Some((revision, hash)) => event.revision == revision + 1 && event.prev_hash == Some(hash),
        };
        if !follows {
            self.fault(event, "it does not follow the event before it in its stream");
        }
        if self.recorded_at.is_some_and(|before| before > event.recorded_at) {
            self.fault(event, "it was recorded before the event that precedes it");
        }
        self.recorded_at = Some(event.recorded_at);
        if event.is_redacted() {
            self.report.redacted += 1;
            self.redacted.insert(event.id);
        }
        for named in redaction::named_by(event) {
            self.redacted.remove(&named);
        }
    }
}

impl EventStoreLog {
    /// Checks everything up to where the log ends now. `progress` hears of it now and then.
    pub async fn verify(
        &self,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<VerifyReport, ReadError> {
        let head = self.head();
        let mut run = Run { report: VerifyReport { head, ..VerifyReport::default() }, ..Run::default() };
        let mut from = Some(0);
        while let Some(start) = from {
            let page = match self.read_all(start, Direction::Forward, PAGE, &Filter::All).await {
                Err(ReadError::Damaged { place, what }) => {
                    run.report.faults.push(Fault { place, what });
                    break;
                }
                other => other?,
            };
            for event in page.events.iter().filter(|event| event.position <= head.position) {
                run.event(event);
            }
            let at = page.events.last().map_or(head.position, |event| event.position);
            progress(VerifyProgress { position: at, of: head.position });
            from = page.next.filter(|next| *next <= head.position);
        }
        for id in std::mem::take(&mut run.redacted) {
            let what = "it has no data, and no log.redacted event names it".into();
            run.report.faults.push(Fault { place: format!("event {id}"), what });
        }
        run.report.streams = run.streams.len() as u64;
        Ok(run.report)
    }
}
