//! An execution from several sides: its status, a summary, a snapshot for who supports it, and what was observed of it.

use axum::Json;
use axum::extract::State;
use beampipe_domain::Event as AnyEvent;
use beampipe_domain::execution::{Event, Execution, Terminal};
use beampipe_log::{Direction, Filter, Position, Recorded};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::Api;
use crate::api::events::render;
use crate::api::extract::{Id, Params};
use crate::api::problem::Problem;
use crate::api::shape::execution as shape;
use crate::codec;
use crate::handle::{HandleError, stream_name};

/// How many of the latest events a snapshot has.
const RECENT: usize = 20;

pub async fn status(
    State(api): State<Api>,
    Id(execution): Id,
    params: Params,
) -> Result<Json<Value>, Problem> {
    params.finish()?;
    let (row, beside) = api.execution_row(execution).await?;
    Ok(Json(shape::status(&row, &beside, api.clock().now())))
}

pub async fn summary(
    State(api): State<Api>,
    Id(execution): Id,
    params: Params,
) -> Result<Json<Value>, Problem> {
    params.finish()?;
    let (row, _) = api.execution_row(execution).await?;
    Ok(Json(shape::summary(&row)))
}

pub async fn ledger_snapshot(
    State(api): State<Api>,
    Id(execution): Id,
    mut params: Params,
) -> Result<Json<Value>, Problem> {
    let include_manifest = params.flag("include_manifest").unwrap_or(false);
    params.finish()?;
    let (row, _) = api.execution_row(execution).await?;
    let manifest = if include_manifest { api.manifest(&row).await? } else { None };
    let filter = Filter::tag(format!("execution:{execution}"));
    let page = api.handle.log().read_all(Position::MAX, Direction::Backward, RECENT, &filter).await?;
    api.names.learn(&api.models, &page.events).await;
    let recent: Vec<Value> = page
        .events
        .iter()
        .rev()
        .filter_map(|event| {
            let mut bytes = vec![];
            render::write_object(&mut bytes, event, &api.names.of(&event.actor));
            serde_json::from_slice(&bytes).ok()
        })
        .collect();
    Ok(Json(json!({
        "uuid": row.id,
        "status": row.status,
        "execution_phase": row.execution_phase,
        "scheduler_name": row.scheduler_name,
        "scheduler_job_id": row.scheduler_job_id,
        "correlation_id": row.correlation_id,
        "active_job_id": shape::active_job(&row),
        "workflow_manifest": manifest,
        "last_error": row.last_error,
        "run_record_phases": row.phase_timestamps(),
        "provenance_summary": {
            "config_version": row.project_config_version,
            "discovery_signature": row.discovery_signature,
            "recent_events": recent,
        },
    })))
}

pub async fn observations(
    State(api): State<Api>,
    Id(execution): Id,
    mut params: Params,
) -> Result<Json<Vec<Value>>, Problem> {
    let (limit, offset) = params.window(100, 1000);
    params.finish()?;
    let stream = stream_name::<Execution>(&execution.to_string());
    let mut seen = vec![];
    let mut from = 0;
    loop {
        let events = api.handle.log().read_stream(&stream, from, Direction::Forward, 1000).await?;
        if from == 0 && events.is_empty() {
            return Err(super::unknown(execution));
        }
        for recorded in &events {
            if let AnyEvent::Execution(event) = codec::decode(recorded).map_err(HandleError::from)? {
                seen.extend(observation(execution, recorded, &event));
            }
        }
        if events.len() < 1000 {
            break;
        }
        from += events.len() as u64;
    }
    let take = usize::try_from(limit).unwrap_or(usize::MAX);
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    Ok(Json(seen.into_iter().skip(skip).take(take).collect()))
}

/// What an event says about the backend, if it does.
fn observation(execution: Uuid, recorded: &Recorded, event: &Event) -> Option<Value> {
    let end = |kind: &str, terminal: &Terminal| {
        json!({
            "uuid": recorded.id,
            "execution_id": execution,
            "kind": kind,
            "normalized_state": terminal.session_state,
            "raw_state": terminal.session_state,
            "reason": terminal.error,
            "source_version": null,
            "payload": terminal,
            "observed_at": terminal.observed_at,
        })
    };
    match event {
        Event::Observed(e) => {
            let state = e.axes.daliuge_state.as_ref().or(e.axes.scheduler_state.as_ref());
            Some(json!({
                "uuid": recorded.id,
                "execution_id": execution,
                "kind": e.observation.source,
                "normalized_state": state.or(e.axes.output_state.as_ref()),
                "raw_state": e.observation.raw_state,
                "reason": e.observation.reason,
                "source_version": null,
                "payload": e,
                "observed_at": e.observation.observed_at,
            }))
        }
        Event::Completed(e) => Some(end("terminal", &e.terminal)),
        Event::Failed(e) => e.terminal.as_ref().map(|terminal| end("terminal", terminal)),
        Event::Cancelled(e) => e.terminal.as_ref().map(|terminal| end("terminal", terminal)),
        _ => None,
    }
}
