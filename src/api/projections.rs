//! The read models: how each stands, and having one folded again from the log while the present one goes on serving.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use beampipe_projections::{ProjectionStatus, RebuildError};
use serde_json::{Value, json};

use super::Api;
use super::extract::{Name, Params};
use super::problem::Problem;
use super::route::{Access, Route};

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/projections", Access::Viewer, list),
        Route::post("/projections/{name}/rebuild", Access::Admin, rebuild),
    ]
}

async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<ProjectionStatus>>, Problem> {
    params.finish()?;
    Ok(Json(api.models.status()))
}

async fn rebuild(State(api): State<Api>, Name(name): Name) -> Result<(StatusCode, Json<Value>), Problem> {
    match api.models.rebuild(&name) {
        // Whoever asks while it is under way gets what was asked for.
        Ok(()) | Err(RebuildError::UnderWay(_)) => {}
        Err(RebuildError::Unknown(_)) => {
            let known: Vec<&str> = api.models.status().iter().map(|one| one.name).collect();
            let detail = format!("no read model has this name; there are {}", known.join(", "));
            return Err(Problem::new("projection-unknown", detail));
        }
        Err(error @ RebuildError::Thread(_)) => return Err(Problem::internal(error)),
    }
    let status = api.models.status().into_iter().find(|one| one.name == name);
    Ok((StatusCode::ACCEPTED, Json(json!({ "projection": name, "status": status }))))
}
