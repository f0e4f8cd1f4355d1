//! Which events a request asks for: the log's filter, what is checked on each event, and where it starts and ends.

use axum::http::{HeaderMap, header};
use beampipe_domain::account::Role;
use beampipe_domain::{INSTALLATION, id};
use beampipe_log::{Direction, Filter, Position, Recorded};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::api::extract::Params;
use crate::api::names::Names;
use crate::api::problem::Problem;

/// The most events of a page.
pub const MOST: u64 = 5000;

/// Whose events are read.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    Execution(Uuid),
    Source(Uuid),
    Project(String),
    Everything,
}

impl Scope {
    fn filter(&self) -> Filter {
        match self {
            Self::Execution(id) => Filter::tag(format!("execution:{id}")),
            Self::Source(id) => Filter::tag(format!("source:{id}")),
            Self::Project(module) => Filter::tag(format!("project:{module}")),
            Self::Everything => Filter::All,
        }
    }

    /// How many events a page has unless the request says so: consoles read an execution's whole story at once.
    fn default_limit(&self) -> u64 {
        match self {
            Self::Execution(_) => 1000,
            Self::Source(_) | Self::Project(_) | Self::Everything => 100,
        }
    }
}

/// What an answer is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Page,
    Sse,
    Ndjson,
}

/// Chooses among what is offered; JSON unless something else is liked better.
pub fn negotiate(headers: &HeaderMap) -> Result<Media, Problem> {
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    if accept.iter().all(|value| value.trim().is_empty()) {
        return Ok(Media::Page);
    }
    let mut best: Option<(u32, Media)> = None;
    for range in accept.iter().flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "application/json" | "application/*" | "*/*" => Media::Page,
            "text/event-stream" | "text/*" => Media::Sse,
            "application/x-ndjson" | "application/ndjson" => Media::Ndjson,
            _ => continue,
        };
        let quality = parts
            .find_map(|part| part.strip_prefix("q="))
            .map_or(1.0, |q| q.parse::<f64>().unwrap_or(1.0).clamp(0.0, 1.0));
        // Thousandths, so that they can be compared.
        let quality = (quality * 1000.0) as u32;
        if quality > 0 && best.is_none_or(|(other, _)| quality > other) {
            best = Some((quality, media));
        }
    }
    best.map(|(_, media)| media).ok_or_else(|| {
        Problem::new(
            "not-acceptable",
            "events are offered as application/json, text/event-stream and application/x-ndjson",
        )
    })
}

/// A cursor: a position, and the first bytes of the leaf that was there.
#[derive(Clone, Debug, PartialEq)]
pub struct Cursor {
    pub position: Position,
    pub leaf: Option<String>,
}

impl Cursor {
    fn read(text: &str) -> Option<Self> {
        match text.split_once('-') {
            None => Some(Self { position: text.parse().ok()?, leaf: None }),
            Some((position, leaf)) => {
                let hexadecimal = leaf.len() == 8 && leaf.bytes().all(|b| b.is_ascii_hexdigit());
                hexadecimal.then_some(())?;
                Some(Self { position: position.parse().ok()?, leaf: Some(leaf.to_ascii_lowercase()) })
            }
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Selection {
    pub scope: Scope,
    pub filter: Filter,
    /// Events that belong to the installation are not shown.
    without_installation: bool,
    types: Vec<String>,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
    actor: Option<String>,
    correlation_id: Option<Uuid>,
    pub after: Option<Cursor>,
    pub before: Option<Position>,
    pub direction: Direction,
    pub limit: Option<u64>,
    pub offset: u64,
    pub follow: bool,
    pub until_terminal: bool,
}

impl Selection {
    pub fn read(
        scope: Scope,
        media: Media,
        role: Role,
        headers: &HeaderMap,
        mut params: Params,
    ) -> Result<Self, Problem> {
        let p = &mut params;
        let limit = p.number("limit", 1..=MOST);
        let offset = p.number("offset", 0..=100_000).unwrap_or(0);
        let after = p.text("after");
        let before = p.number("before", 0..=u64::MAX);
        let order = p.word("order", &["asc", "desc"]);
        let types = p.text("type");
        let since = p.time("since");
        let until = p.time("until");
        let actor = p.text("actor");
        let correlation_id = p.uuid("correlation_id");
        let follow = p.flag("follow").unwrap_or(false);
        let until_terminal = p.flag("until_terminal").unwrap_or(false);

        let after = after.and_then(|text| {
            let cursor = Cursor::read(&text);
            if cursor.is_none() {
                p.refuse("after", "cannot be used", "a position, or the id of a server-sent event");
            }
            cursor
        });
        if media != Media::Page {
            if order.as_deref() == Some("desc") {
                p.refuse("order", "a stream is oldest first", "leave it out, or ask for application/json");
            }
            if offset > 0 {
                p.refuse("offset", "a stream has no offset", "use after");
            }
        }
        let stays = media == Media::Sse || (media == Media::Ndjson && follow);
        if stays && (before.is_some() || limit.is_some()) {
            let name = if before.is_some() { "before" } else { "limit" };
            p.refuse(name, "a stream that stays has no end", "leave it out, or ask for application/json");
        }
        if follow && media == Media::Page {
            p.refuse("follow", "a page ends", "ask for application/x-ndjson or text/event-stream");
        }
        if until_terminal && !(stays && matches!(scope, Scope::Execution(_))) {
            p.refuse("until_terminal", "only the stream of one execution has an end", "leave it out");
        }
        let newest_first = match order.as_deref() {
            Some(order) => order == "desc",
            None => {
                media == Media::Page
                    && !matches!(scope, Scope::Execution(_))
                    && after.is_none()
                    && before.is_none()
                    && since.is_none()
                    && until.is_none()
            }
        };
        params.finish()?;

        // A browser that reconnects sends the first address again, so its header is the newer word.
        let resumed = match headers.get("last-event-id").map(|value| value.to_str()) {
            None | Some(Ok("")) => None,
            Some(text) => Some(text.ok().and_then(Cursor::read).ok_or_else(|| {
                Problem::field(
                    "bad-header",
                    "Last-Event-ID",
                    "cannot be used",
                    "<position>-<8 hexadecimal digits>",
                )
            })?),
        };
        let limit = match media {
            Media::Page => Some(limit.unwrap_or(scope.default_limit())),
            Media::Sse | Media::Ndjson => limit,
        };
        Ok(Self {
            filter: match (&scope, correlation_id) {
                (Scope::Everything, Some(id)) => Filter::Correlation(id),
                _ => scope.filter(),
            },
            without_installation: role < Role::Admin,
            types: types.map(|t| t.split(',').map(|t| t.trim().to_owned()).collect()).unwrap_or_default(),
            since,
            until,
            actor,
            correlation_id,
            after: resumed.or(after),
            before,
            direction: if newest_first { Direction::Backward } else { Direction::Forward },
            limit,
            offset,
            follow,
            until_terminal,
            scope,
        })
    }

    /// Whether `event`, which passed the log's filter, is wanted.
    pub fn wants(&self, event: &Recorded, names: &Names) -> bool {
        (!self.without_installation || event.tags.iter().all(|tag| &**tag != INSTALLATION))
            && (self.types.is_empty() || self.types.iter().any(|wanted| is_of(&event.event_type, wanted)))
            && self.since.is_none_or(|since| event.occurred_at >= since)
            && self.until.is_none_or(|until| event.occurred_at < until)
            && self.correlation_id.is_none_or(|id| event.correlation_id == id)
            && self.actor.as_deref().is_none_or(|actor| acted(&event.actor, actor, names))
    }

    pub fn after(&self) -> Position {
        self.after.as_ref().map_or(0, |cursor| cursor.position)
    }
}

/// `execution.failed` is of `execution.failed` and of `execution.*`.
fn is_of(event_type: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(prefix) => event_type.starts_with(prefix),
        None => event_type == wanted,
    }
}

/// Whether the actor is the wanted one, by id or by name; `system:worker` is every worker.
fn acted(actor: &str, wanted: &str, names: &Names) -> bool {
    if actor == wanted {
        return true;
    }
    match wanted.split_once(':') {
        Some(("user", name)) => {
            actor.strip_prefix("user:").is_some_and(|uuid| uuid == id::account(name).to_string())
        }
        Some(("system", _)) => actor.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('/')),
        _ => names.known(actor).is_some_and(|name| *name == *wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(scope: Scope, media: Media, query: &str) -> Result<Selection, Problem> {
        Selection::read(scope, media, Role::Viewer, &HeaderMap::new(), Params::of(query))
    }

    fn backward(scope: Scope, query: &str) -> bool {
        selection(scope, Media::Page, query).unwrap().direction == Direction::Backward
    }

    #[test]
    fn pages_are_newest_first_only_when_nothing_says_where_to_start() {
        let project = || Scope::Project("p".into());
        assert!(backward(project(), ""));
        assert!(backward(project(), "limit=5&offset=5&type=x"));
        for query in
            ["order=asc", "after=3", "before=3", "since=2026-01-01T00:00:00Z", "until=2026-01-01T00:00:00Z"]
        {
            assert!(!backward(project(), query), "{query}");
        }
        assert!(backward(project(), "order=desc&after=3"));
        assert!(!backward(Scope::Execution(Uuid::nil()), ""), "an execution's events are oldest first");
    }

    #[test]
    fn what_makes_no_sense_for_a_stream_is_refused_by_name() {
        let execution = || Scope::Execution(Uuid::nil());
        for (media, query, field) in [
            (Media::Sse, "order=desc", "order"),
            (Media::Sse, "limit=5", "limit"),
            (Media::Ndjson, "follow=true&before=5", "before"),
            (Media::Page, "follow=true", "follow"),
            (Media::Page, "until_terminal=true", "until_terminal"),
            (Media::Page, "after=x", "after"),
            (Media::Page, "after=5-zz", "after"),
            (Media::Page, "correlation_id=5", "correlation_id"),
        ] {
            let problem = selection(execution(), media, query).unwrap_err();
            assert!(problem.detail().starts_with(field), "{query}: {}", problem.detail());
        }
        assert!(selection(execution(), Media::Ndjson, "limit=5&before=9").is_ok());
        assert!(selection(Scope::Everything, Media::Sse, "until_terminal=true").is_err());
    }

    #[test]
    fn the_media_type_that_is_liked_best_is_answered() {
        let media = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            negotiate(&headers).ok()
        };
        assert_eq!(negotiate(&HeaderMap::new()).unwrap(), Media::Page);
        assert_eq!(media("*/*"), Some(Media::Page));
        assert_eq!(media("text/event-stream"), Some(Media::Sse));
        assert_eq!(media("application/json;q=0.5, application/x-ndjson"), Some(Media::Ndjson));
        assert_eq!(media("image/png"), None);
    }

    #[test]
    fn a_type_may_be_a_family() {
        assert!(is_of("execution.failed", "execution.*") && is_of("execution.failed", "execution.failed"));
        assert!(!is_of("execution.failed", "execution.fail"));
    }
}
