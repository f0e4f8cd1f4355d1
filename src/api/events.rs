//! The event endpoints: what happened to one execution, source or project, or to everything, as a page or as a stream.
//!
//! They read the log itself and no read model: a page and a stream of the same events have the same bytes an event.
//! Whether the execution, source or project exists is asked of the log too, so an unknown one is 404 and not empty.
//! Events of the installation (accounts, workers, dependencies) are for administrators and left out for everybody else.

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use beampipe_domain::execution::Execution;
use beampipe_domain::project::Project;
use beampipe_domain::source::Source;

use super::Api;
use super::authenticate::Caller;
use super::extract::{Id, Name, Params};
use super::problem::Problem;
use super::route::{Access, Route};
use select::{Media, Scope, Selection};

pub mod follow;
pub mod page;
pub mod render;
pub mod select;

pub fn routes() -> Vec<Route> {
    vec![
        Route::get("/events", Access::Viewer, of_everything),
        Route::get("/executions/{id}/events", Access::Viewer, of_execution),
        Route::get("/sources/{id}/events", Access::Viewer, of_source),
        Route::get("/projects/{module}/events", Access::Viewer, of_project),
    ]
}

/// What every event endpoint is asked with.
struct Asked {
    api: Api,
    caller: Caller,
    headers: HeaderMap,
    uri: Uri,
    params: Params,
}

async fn of_everything(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    Asked { api, caller, headers, uri, params }.answer(Scope::Everything).await
}

async fn of_execution(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    if api.handle.load::<Execution>(&id.to_string()).await?.head.is_none() {
        return Err(Problem::new("execution-unknown", format!("there is no execution {id}")));
    }
    Asked { api, caller, headers, uri, params }.answer(Scope::Execution(id)).await
}

async fn of_source(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    if api.handle.load::<Source>(&id.to_string()).await?.head.is_none() {
        return Err(Problem::new("source-unknown", format!("there is no source {id}")));
    }
    Asked { api, caller, headers, uri, params }.answer(Scope::Source(id)).await
}

async fn of_project(
    State(api): State<Api>,
    caller: Caller,
    Name(module): Name,
    headers: HeaderMap,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    if api.handle.load::<Project>(&module).await?.head.is_none() {
        return Err(Problem::new("project-unknown", format!("there is no project {module:?}")));
    }
    Asked { api, caller, headers, uri, params }.answer(Scope::Project(module)).await
}

impl Asked {
    async fn answer(self, scope: Scope) -> Result<Response, Problem> {
        let Self { api, caller, headers, uri, params } = self;
        let media = select::negotiate(&headers)?;
        let selection = Selection::read(scope, media, caller.principal.role, &headers, params)?;
        follow::check(&api, &selection).await?;
        match media {
            Media::Page => page::answer(&api, &selection, &uri).await,
            Media::Sse | Media::Ndjson => follow::answer(&api, caller, selection, media).await,
        }
    }
}
