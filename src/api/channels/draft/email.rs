use beampipe_domain::channel::{Email, Tls};

use super::{is_named, merged, merged_template, reference};
use crate::alerts::template::Kind;
use crate::api::fields::Fields;

const MOST_RECIPIENTS: usize = 50;
/// Where a server expects TLS from the first byte.
const IMPLICIT_TLS: u16 = 465;
const SUBMISSION: u16 = 587;

pub fn email(fields: &mut Fields, before: &Email) -> Email {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let smtp_host =
        merged(fields, "smtp_host", some(&before.smtp_host).as_ref(), |fields| fields.text("smtp_host", 253));
    let is_new = before.smtp_host.is_empty();
    let port = merged(fields, "port", Some(&before.port), |fields| {
        fields.number("port", 1, 65_535).and_then(|port| u16::try_from(port).ok())
    });
    let port = port.filter(|port| *port > 0).unwrap_or(SUBMISSION);
    let tls = merged(fields, "tls", Some(&before.tls).filter(|_| !is_new), |fields| {
        fields.take::<Tls>("tls", "starttls, implicit or none")
    });
    let by_port = if port == IMPLICIT_TLS { Tls::Implicit } else { Tls::Starttls };
    let ca_file = merged(fields, "ca_file", before.ca_file.as_ref(), |fields| fields.text("ca_file", 1000));
    let user = merged(fields, "user", before.user.as_ref(), |fields| fields.text("user", 320));
    let from = merged(fields, "from", some(&before.from).as_ref(), |fields| fields.text("from", 320));
    let to = merged(fields, "to", Some(&before.to), |fields| {
        fields.take("to", "a list of addresses such as [\"ops@example.org\"]")
    });
    let password = merged(fields, "password_ref", before.password.as_ref(), |fields| {
        reference(fields, "password_ref", before.password.as_ref())
    });
    let email = Email {
        smtp_host: smtp_host.unwrap_or_default(),
        port,
        tls: tls.unwrap_or(by_port),
        ca_file,
        user,
        from: from.unwrap_or_default(),
        to: to.unwrap_or_default(),
        password,
        title_template: merged_template(fields, "title_template", before.title_template.as_ref(), Kind::Text),
        body_template: merged_template(fields, "body_template", before.body_template.as_ref(), Kind::Text),
    };
    check(fields, &email);
    email
}

/// An address that every server takes: `a@b`, of one line, without what only some servers know.
fn is_address(text: &str) -> bool {
    text.is_ascii() && text.len() <= 320 && text.parse::<lettre::Address>().is_ok()
}

fn check(fields: &mut Fields, email: &Email) {
    if url::Host::parse(&email.smtp_host).is_err() && !is_named(fields, "smtp_host") {
        fields.refuse("smtp_host", "is no name of a host", "such as mail.example.org");
    }
    if email.ca_file.as_ref().is_some_and(|file| !file.starts_with('/')) {
        fields.refuse("ca_file", "is no whole path", "a PEM file of the service, such as /etc/ssl/site.pem");
    }
    if !is_address(&email.from) && !is_named(fields, "from") {
        fields.refuse("from", "is no mail address", "such as beampipe@example.org");
    }
    let good = (1..=MOST_RECIPIENTS).contains(&email.to.len()) && email.to.iter().all(|to| is_address(to));
    if !good && !is_named(fields, "to") {
        fields.refuse("to", "is no list of mail addresses", format!("1 to {MOST_RECIPIENTS} addresses"));
    }
    if email.password.is_some() && email.user.is_none() {
        fields.refuse("user", "is missing: a password belongs to a user", "the user's name on the server");
    }
}
