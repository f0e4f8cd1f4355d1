//! A topic of an ntfy server (docs.ntfy.sh, "Publish as JSON").

use beampipe_domain::delivery::Message;
use serde_json::{Value, json};

use super::{Opened, Outbound, Post, Texts};
use crate::alerts::message::one_line;
use crate::alerts::template::shortened;

/// A longer message becomes an attachment, in bytes.
const LONGEST: usize = 4096;
/// A notification has at most so many buttons.
const BUTTONS: usize = 3;

pub fn post(opened: &Opened, message: &Outbound<'_>, texts: &Texts) -> Result<Post, String> {
    let said = &message.said;
    let over = said.is(Message::Resolved);
    let (priority, tag) = match said.text("severity") {
        _ if over => (3, "white_check_mark"),
        "critical" => (5, "rotating_light"),
        "warning" => (4, "warning"),
        _ => (3, "information_source"),
    };
    let mut body = texts.body.clone();
    while body.len() > LONGEST {
        body = shortened(&body, body.chars().count() * LONGEST / body.len() - 1);
    }
    let links = said.open_links();
    let buttons =
        links.iter().take(BUTTONS).map(|(name, to)| json!({"action": "view", "label": name, "url": to}));
    let mut json = json!({
        "topic": opened.must("topic")?,
        "title": one_line(&texts.title),
        "message": body,
        "priority": priority,
        "tags": [tag],
        "actions": buttons.collect::<Value>(),
    });
    if let Some((_, first)) = links.first() {
        json["click"] = first.as_str().into();
    }
    let token = opened.get("token").map(|token| ("authorization".to_owned(), format!("Bearer {token}")));
    Ok(Post::json(opened.url()?, token.into_iter().collect(), &json))
}
