//! Mail: plain text with an HTML alternative that says the same. `Message-ID` is made from the delivery, so that who gets it
//! twice can tell; all messages of one alert refer to one thread.

use beampipe_domain::channel::Email;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::{Address, Message};
use secrecy::SecretString;
use uuid::Uuid;

use super::{Opened, Outbound, Sending, Texts};
use crate::alerts::message::one_line;
use crate::outgoing::{Letter, MailServer};

/// A letter as a preview shows it.
#[derive(Clone, Debug)]
pub struct Shown {
    pub message_id: String,
    pub from: String,
    pub to: Vec<String>,
    pub subject: String,
    pub text: String,
    pub html: String,
}

/// A letter, where it is handed over, and how it is shown.
#[derive(Clone, Debug)]
pub struct Mail {
    pub server: MailServer,
    pub letter: Letter,
    pub shown: Shown,
}

pub fn sending(
    email: &Email,
    opened: &Opened,
    message: &Outbound<'_>,
    texts: &Texts,
) -> Result<Sending, String> {
    let address = |field: &str, text: &str| {
        text.parse::<Address>().map_err(|_| format!("{field}: it is no mail address"))
    };
    let from = address("from", &email.from)?;
    let to = email.to.iter().map(|to| address("to", to)).collect::<Result<Vec<_>, _>>()?;
    let domain = from.domain().to_owned();
    let subject = one_line(&texts.title);
    let shown = Shown {
        message_id: format!("<{}@{domain}>", message.id),
        from: email.from.clone(),
        to: email.to.clone(),
        html: html(&subject, &texts.body),
        text: texts.body.clone(),
        subject,
    };
    let thread = Uuid::new_v5(&Uuid::NAMESPACE_OID, message.said.dedup_key.as_bytes());
    let mut builder = Message::builder()
        .message_id(Some(shown.message_id.clone()))
        .references(format!("<{thread}@{domain}>"))
        .date(std::time::SystemTime::from(message.now))
        .subject(&shown.subject)
        .from(Mailbox::new(Some("beampipe".into()), from.clone()));
    for to in &to {
        builder = builder.to(Mailbox::new(None, to.clone()));
    }
    let part = |kind: ContentType, text: &str| SinglePart::builder().header(kind).body(text.to_owned());
    let parts = MultiPart::alternative()
        .singlepart(part(ContentType::TEXT_PLAIN, &shown.text))
        .singlepart(part(ContentType::TEXT_HTML, &shown.html));
    let mut mail =
        builder.multipart(parts).map_err(|error| format!("the letter cannot be written: {error}"))?;
    // RFC 3834: nobody's absence note answers it.
    let automatic = HeaderName::new_from_ascii_str("Auto-Submitted");
    mail.headers_mut().insert_raw(HeaderValue::new(automatic, "auto-generated".into()));
    let login = email.user.as_ref().zip(opened.get("password_ref"));
    let server = MailServer {
        host: email.smtp_host.clone(),
        port: email.port,
        tls: email.tls,
        ca_file: email.ca_file.as_ref().map(Into::into),
        login: login.map(|(user, password)| (user.clone(), SecretString::from(password))),
    };
    let letter = Letter { from, to, message: mail.formatted() };
    Ok(Sending::Mail(Box::new(Mail { server, letter, shown })))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The same text for who reads HTML, with its addresses to be clicked on.
fn html(title: &str, body: &str) -> String {
    let word = |word: &str| {
        let text = escaped(word);
        let open = word.starts_with("https://") || word.starts_with("http://");
        if open { format!("<a href=\"{text}\">{text}</a>") } else { text }
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = body.lines().map(line).collect();
    format!(
        "<!doctype html><html><body><h3>{}</h3><p style=\"white-space: pre-wrap\">{}</p></body></html>",
        escaped(title),
        lines.join("\n")
    )
}
