//! A page of events, as JSON: read from the log until there are enough, the end is reached, or enough was examined.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use beampipe_log::{Direction, MAX_EXAMINED, Position};

use super::render;
use super::select::Selection;
use crate::api::Api;
use crate::api::problem::Problem;

/// How many events are read from the log at once.
const CHUNK: usize = 1000;

/// Where the read models or the log were when an answer was made.
pub const POSITION: HeaderName = HeaderName::from_static("beampipe-position");

/// Answers with a bare array. `Link: rel=next` is there when there may be more.
pub async fn answer(api: &Api, selection: &Selection, uri: &Uri) -> Result<Response, Problem> {
    let log = api.handle.log();
    let head = log.head().position;
    let limit = usize::try_from(selection.limit.unwrap_or(1)).unwrap_or(usize::MAX);
    let mut skip = selection.offset;
    let (first, last) =
        (selection.after() + 1, selection.before.map_or(Position::MAX, |b| b.saturating_sub(1)));
    let mut from = match selection.direction {
        Direction::Forward => first,
        Direction::Backward => last,
    };

    let mut body = Vec::with_capacity(64 * 1024);
    body.push(b'[');
    let mut shown = 0;
    let mut examined = 0;
    // Where the next page starts, exclusive; `None` when there is none.
    let mut next: Option<Position> = None;
    'read: while shown < limit && first <= last {
        let want = (limit - shown).saturating_add(usize::try_from(skip).unwrap_or(0)).clamp(1, CHUNK);
        let page = log.read_all(from, selection.direction, want, &selection.filter).await?;
        api.names.learn(&api.models, &page.events).await;
        examined += page.events.len();
        for event in &page.events {
            if event.position < first || event.position > last {
                break 'read;
            }
            if !selection.wants(event, &api.names) {
                continue;
            }
            if skip > 0 {
                skip -= 1;
                continue;
            }
            if shown > 0 {
                body.push(b',');
            }
            shown += 1;
            match event.rendered.get() {
                Some(frame) => body.extend_from_slice(&render::object(frame, event.position)),
                None => render::write_object(&mut body, event, &api.names.of(&event.actor)),
            }
        }
        match page.next {
            // A log that looked far without a match answers short and says where it stopped.
            Some(to) => {
                from = to;
                next = Some(match selection.direction {
                    Direction::Forward => to.saturating_sub(1),
                    Direction::Backward => to.saturating_add(1),
                });
            }
            None => {
                next = None;
                break;
            }
        }
        if examined >= MAX_EXAMINED || page.events.is_empty() {
            break;
        }
    }
    body.push(b']');

    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(POSITION, HeaderValue::from(head));
    let within = next.is_some_and(|next| match selection.direction {
        Direction::Forward => next < last,
        Direction::Backward => next > first,
    });
    if let Some(next) = next.filter(|_| within)
        && let Ok(link) = HeaderValue::from_str(&link(uri, selection.direction, next))
    {
        headers.insert(header::LINK, link);
    }
    Ok((headers, body).into_response())
}

/// The same request, going on after (or before) `next`.
fn link(uri: &Uri, direction: Direction, next: Position) -> String {
    let (replaced, order) = match direction {
        Direction::Forward => ("after", "asc"),
        Direction::Backward => ("before", "desc"),
    };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        if name != replaced && name != "order" && name != "offset" {
            query.append_pair(&name, &value);
        }
    }
    query.append_pair("order", order).append_pair(replaced, &next.to_string());
    format!("<{}?{}>; rel=\"next\"", uri.path(), query.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_asks_for_the_same_further_on() {
        let uri = Uri::from_static("/api/v2/events?limit=2&type=a.*&after=1&offset=3");
        assert_eq!(
            link(&uri, Direction::Forward, 9),
            "</api/v2/events?limit=2&type=a.*&order=asc&after=9>; rel=\"next\""
        );
        assert_eq!(
            link(&uri, Direction::Backward, 9),
            "</api/v2/events?limit=2&type=a.*&after=1&order=desc&before=9>; rel=\"next\""
        );
    }
}
