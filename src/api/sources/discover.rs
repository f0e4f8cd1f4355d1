//! Asks for the discovery of some sources of a project, or of all. The scheduler sees what was asked for and enqueues it.

use axum::Json;
use axum::extract::State;
use beampipe_domain::id;
use beampipe_domain::source::{Command, Source};
use beampipe_projections::Window;
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::unknown_project;
use crate::api::Api;
use crate::api::authenticate::Caller;
use crate::api::extract::Body;
use crate::api::problem::{FieldError, Problem};

const AT_ONCE: usize = 256;
/// How many rows are read at once when a whole project is asked for.
const PAGE: u64 = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    project_module: String,
    source_identifier: Option<String>,
    source_identifiers: Option<Vec<String>>,
}

pub async fn request(
    State(api): State<Api>,
    caller: Caller,
    Body(order): Body<Order>,
) -> Result<Json<Value>, Problem> {
    if order.source_identifier.is_some() && order.source_identifiers.is_some() {
        return Err(Problem::field(
            "invalid-body",
            "source_identifiers",
            "is given beside source_identifier",
            "one of the two, or neither for the whole project",
        ));
    }
    let mut errors: Vec<FieldError> =
        unknown_project(&api, &order.project_module, "project_module").await?.into_iter().collect();
    if !errors.is_empty() {
        return Err(Problem::fields("invalid-body", errors));
    }
    let module = order.project_module.clone();
    let named = order.source_identifiers.or(order.source_identifier.map(|one| vec![one]));
    let mut skipped = 0;
    let marked: Vec<(Uuid, String)> = match named {
        None => whole_project(&api, &module).await?,
        Some(identifiers) => {
            let mut known: Vec<(Uuid, String)> = vec![];
            for (i, identifier) in identifiers.into_iter().enumerate() {
                let source = id::source(&module, &identifier);
                if known.iter().any(|(id, _)| *id == source) {
                    continue;
                }
                match api.handle.load::<Source>(&source.to_string()).await?.state {
                    Source::Registered(facts) if facts.enabled => known.push((source, identifier)),
                    Source::Registered(_) => skipped += 1,
                    Source::Absent | Source::Removed(_) => {
                        let shown: String = identifier.chars().take(60).collect();
                        errors.push(
                            FieldError::new(
                                format!("source_identifiers[{i}]"),
                                format!("{shown:?} is not registered in {module}"),
                            )
                            .hint("GET /sources lists what is"),
                        );
                    }
                }
            }
            known
        }
    };
    if !errors.is_empty() {
        return Err(Problem::fields("invalid-body", errors));
    }
    let context = caller.context();
    let ids: Vec<String> = marked.iter().map(|(source, _)| source.to_string()).collect();
    let position = futures::stream::iter(ids)
        .map(|source| {
            let (handle, context) = (api.handle.clone(), context.clone());
            async move { handle.handle::<Source>(&source, &context, Command::RequestDiscovery).await }
        })
        .buffer_unordered(AT_ONCE)
        .try_fold(0, |last, done| async move { Ok(last.max(done.position)) })
        .await?;
    api.settle(position).await;
    let identifiers: Vec<&str> = marked.iter().map(|(_, identifier)| identifier.as_str()).collect();
    let mut message = match identifiers.len() {
        1 => "1 source is marked for discovery".to_owned(),
        n => format!("{n} sources are marked for discovery"),
    };
    if skipped > 0 {
        message.push_str(&format!("; {skipped} disabled left out"));
    }
    Ok(Json(json!({
        "project_module": module,
        "marked_count": identifiers.len(),
        "source_identifiers": identifiers,
        "message": message,
    })))
}

/// Every enabled source of a project.
async fn whole_project(api: &Api, module: &str) -> Result<Vec<(Uuid, String)>, Problem> {
    let mut found = vec![];
    let mut window = Window::first(PAGE);
    loop {
        let name = module.to_owned();
        let rows = api.read(move |models| models.sources().list(Some(&name), window)).await?;
        let last = rows.last().map(|row| row.created_position);
        let full = rows.len() as u64 == PAGE;
        found.extend(rows.into_iter().filter(|row| row.enabled).map(|row| (row.id, row.source_identifier)));
        match last {
            Some(last) if full => window = Window::before(last, PAGE),
            _ => return Ok(found),
        }
    }
}
