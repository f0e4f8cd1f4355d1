//! Registers many sources: everything is checked first, then everything is appended. A repetition changes nothing, so a
//! request that broke off in the middle is simply sent again.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Request, State};
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Registration, carry_out, unknown_project};
use crate::api::Api;
use crate::api::authenticate::Caller;
use crate::api::extract::{media_type, parse, receive};
use crate::api::problem::{FieldError, Problem};
use crate::api::shape;
use crate::api::shape::why::Survey;

/// The most items of a request.
const MOST: usize = 20_000;
/// Appends under way at once: they share the log's fsyncs.
const AT_ONCE: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    items: Vec<Registration>,
}

pub async fn register(
    State(api): State<Api>,
    caller: Caller,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let media = media_type(request.headers());
    if media.as_deref() != Some("application/json") {
        let given = media.unwrap_or_else(|| "not given".into());
        let detail = format!("Content-Type is {given}; this route takes application/json");
        return Err(Problem::new("unsupported-media-type", detail));
    }
    let bytes = receive(request, api.settings.max_bulk_bytes).await?;
    let order: Order = parse(&bytes)?;
    check(&api, &order).await?;

    let position = futures::stream::iter(order.items.clone())
        .map(|item| {
            let (api, caller) = (api.clone(), caller.clone());
            async move { carry_out(&api, &caller, &item).await }
        })
        .buffer_unordered(AT_ONCE)
        .try_fold(0, |last, (_, position)| async move { Ok(last.max(position)) })
        .await?;
    api.settle(position).await;

    let ids: Vec<Uuid> = order.items.iter().map(Registration::id).collect();
    let rows = api
        .read(move |models| ids.into_iter().map(|id| models.sources().get(id)).collect::<Result<Vec<_>, _>>())
        .await?;
    let mut surveys: HashMap<String, Survey> = HashMap::new();
    let mut items = Vec::with_capacity(rows.len());
    for (row, item) in rows.into_iter().zip(&order.items) {
        let Some(row) = row else {
            items.push(api.shown_source(item.id()).await?);
            continue;
        };
        if !surveys.contains_key(&row.project_module) {
            surveys.insert(row.project_module.clone(), api.survey(&row.project_module).await?);
        }
        items.push(shape::source::whole(&row, &surveys[&row.project_module]));
    }
    Ok(Json(json!({ "total": items.len(), "items": items })))
}

/// Says everything that is wrong, item by item.
async fn check(api: &Api, order: &Order) -> Result<(), Problem> {
    if order.items.is_empty() || order.items.len() > MOST {
        let message = format!("{} items", order.items.len());
        return Err(Problem::field("invalid-body", "items", message, format!("1 to {MOST} items")));
    }
    let mut errors = vec![];
    let mut projects: HashMap<&str, bool> = HashMap::new();
    let mut wanted: HashMap<Uuid, (usize, Option<bool>)> = HashMap::new();
    for (i, item) in order.items.iter().enumerate() {
        errors.extend(item.errors(&format!("items[{i}].")));
        let field = format!("items[{i}].project_module");
        if !projects.contains_key(item.project_module.as_str()) {
            let known = unknown_project(api, &item.project_module, &field).await?.is_none();
            projects.insert(&item.project_module, known);
        }
        if !projects[item.project_module.as_str()] {
            errors.push(
                FieldError::new(field, "the project has no configuration")
                    .hint("upload one with POST /project-configs"),
            );
        }
        match wanted.get(&item.id()) {
            Some((first, enabled)) if *enabled != item.enabled => errors.push(
                FieldError::new(format!("items[{i}].enabled"), format!("contradicts items[{first}]"))
                    .hint("name a source once"),
            ),
            Some(_) => {}
            None => {
                wanted.insert(item.id(), (i, item.enabled));
            }
        }
        if errors.len() >= 1000 {
            break;
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Problem::fields("invalid-body", errors)) }
}
