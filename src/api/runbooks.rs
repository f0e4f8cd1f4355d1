//! What to do when an alert of the starter set wakes somebody: pages that this service serves itself, so that the link in a
//! message leads to them.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::extract::Name;
use super::problem::Problem;

macro_rules! pages {
    ($($name:literal),* $(,)?) => {
        /// Every page by its name, Markdown.
        const PAGES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../docs/runbooks/", $name, ".md")))),*];
    };
}

pages! {
    "daily-summary",
    "dependency-down",
    "discovery-changed",
    "discovery-stall",
    "error-rate",
    "execution-failed",
    "execution-stuck",
    "heartbeat",
    "pending-stale",
    "projection-lag",
    "queue-age",
    "submission-uncertain",
    "worker-lost",
}

/// The page of a rule.
pub fn page(name: &str) -> Option<&'static str> {
    PAGES.iter().find(|(known, _)| *known == name).map(|(_, page)| *page)
}

pub async fn shown(Name(name): Name) -> Result<impl IntoResponse, Problem> {
    let page = page(name.strip_suffix(".md").unwrap_or(&name));
    page.map(|page| ([(CONTENT_TYPE, "text/markdown; charset=utf-8")], page))
        .ok_or_else(|| Problem::new("unknown-route", "no runbook has this name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_runbook_is_served_and_begins_with_its_name() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runbooks");
        for file in std::fs::read_dir(pages).unwrap() {
            let file = file.unwrap().file_name();
            let name = file.to_str().unwrap().strip_suffix(".md").unwrap();
            assert!(page(name).is_some_and(|page| page.starts_with(&format!("# {name}"))), "{name}");
        }
    }
}
