//! An incoming webhook of Slack: one text in its markup (docs.slack.dev, "Sending messages using incoming webhooks").

use serde_json::json;

use super::{Opened, Post, Texts};
use crate::alerts::template::shortened;

/// Slack cuts longer texts off, in characters.
const LONGEST: usize = 4000;

pub fn post(opened: &Opened, texts: &Texts) -> Result<Post, String> {
    let title = if texts.own_title { texts.title.clone() } else { format!("*{}*", texts.title) };
    let text = shortened(&format!("{title}\n{}", texts.body), LONGEST);
    Ok(Post::json(opened.url()?, vec![], &json!({"text": text})))
}
