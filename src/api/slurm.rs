//! The credential slots that this process sees: which parts of each are there, never what is in them. Each process reads
//! its own directory; where workers run elsewhere, theirs may differ.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Api;
use super::extract::{Name, Params};
use super::problem::Problem;
use super::route::{Access, Route};
use crate::ssh::Credentials;
use crate::ssh::credentials::Presence;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/slurm/credentials", Access::Viewer, list),
        Route::get("/slurm/credentials/{slot}", Access::Viewer, get),
    ]
}

/// Looks at the directory, off the async threads.
async fn look<T: Send + 'static>(
    api: &Api,
    look: impl FnOnce(&Credentials) -> T + Send + 'static,
) -> Result<T, Problem> {
    let credentials = api.settings.credentials.clone();
    tokio::task::spawn_blocking(move || look(&credentials)).await.map_err(Problem::internal)
}

async fn list(State(api): State<Api>, params: Params) -> Result<Json<Value>, Problem> {
    params.finish()?;
    let slots = look(&api, Credentials::slots).await?.map_err(Problem::internal)?;
    Ok(Json(json!({ "slots": slots })))
}

async fn get(State(api): State<Api>, Name(slot): Name, params: Params) -> Result<Json<Presence>, Problem> {
    params.finish()?;
    let found = look(&api, move |credentials| credentials.presence(&slot)).await?;
    found.map(Json).map_err(|error| Problem::new("credential-unknown", error.to_string()))
}
