//! What may be asked of an execution: to be executed, tried again, cancelled; and a lost hand-over to be given up.
//!
//! Asking for execution is two appends: the execution says which job works on it, then the job is enqueued under that id.
//! Between the two the scheduler finds the half and finishes it, and so does the same request sent again.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use beampipe_domain::execution::{Abandonment, Command, Execution};
use beampipe_domain::id;
use beampipe_domain::job::{self, Enqueued, Job, Kind};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::Api;
use crate::api::authenticate::Caller;
use crate::api::extract::{Body, Id};
use crate::api::problem::{FieldError, Problem};
use crate::handle::Loaded;

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flags {
    do_stage: Option<bool>,
    do_submit: Option<bool>,
}

/// What came of asking for execution.
struct Asked {
    job_id: Uuid,
    do_stage: bool,
    do_submit: bool,
    attempt: u32,
}

async fn known(api: &Api, execution: Uuid) -> Result<Loaded<Execution>, Problem> {
    let loaded = api.handle.load::<Execution>(&execution.to_string()).await?;
    if loaded.head.is_none() { Err(super::unknown(execution)) } else { Ok(loaded) }
}

async fn ask(
    api: &Api,
    caller: &Caller,
    execution: Uuid,
    do_stage: bool,
    do_submit: bool,
) -> Result<Asked, Problem> {
    let key = execution.to_string();
    let done = api
        .handle
        .decide_with::<Execution>(&key, &caller.context(), |loaded| {
            let attempt = loaded.state.facts().map_or(1, |facts| facts.attempt);
            let job_id = id::execution_job(Kind::Execute.as_str(), execution, attempt);
            Ok(Command::Execute { job_id, do_stage, do_submit })
        })
        .await?;
    let (Some(facts), Some(work)) = (done.state.facts(), done.state.work()) else {
        return Err(Problem::internal("an execution that is executed has no work"));
    };
    let order = Enqueued {
        kind: Kind::Execute,
        payload: json!({ "do_stage": do_stage, "do_submit": do_submit }),
        project_module: Some(facts.project_module.clone()),
        execution_id: Some(execution),
        required_capability: Some(facts.capability.clone()),
        idempotency_key: None,
        max_attempts: api.settings.job_max_attempts,
        next_run_at: api.clock().now(),
    };
    let context = match done.event_id {
        Some(event) => caller.context().because_of(event),
        None => caller.context(),
    };
    let enqueue = job::Command::Enqueue(order);
    let enqueued = api.handle.handle::<Job>(&work.job_id.to_string(), &context, enqueue).await?;
    api.settle(done.position.max(enqueued.position)).await;
    Ok(Asked { job_id: work.job_id, do_stage, do_submit, attempt: facts.attempt })
}

async fn status_word(api: &Api, execution: Uuid) -> Result<Option<String>, Problem> {
    let row = api.read(move |models| models.executions().get(execution)).await?;
    Ok(row.map(|row| row.status))
}

pub async fn execute(
    State(api): State<Api>,
    caller: Caller,
    Id(execution): Id,
    Body(flags): Body<Flags>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let (do_stage, do_submit) = (flags.do_stage.unwrap_or(true), flags.do_submit.unwrap_or(true));
    if !do_stage && !do_submit {
        return Err(Problem::field(
            "invalid-body",
            "do_stage",
            "is false, and so is do_submit: nothing would be done",
            "at least one of them true",
        ));
    }
    known(&api, execution).await?;
    let asked = ask(&api, &caller, execution, do_stage, do_submit).await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(json!({
            "status": status_word(&api, execution).await?,
            "execution_id": execution,
            "job_id": asked.job_id,
            "do_stage": asked.do_stage,
            "do_submit": asked.do_submit,
        })),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    reason: String,
    do_stage: Option<bool>,
    do_submit: Option<bool>,
}

fn check_reason(reason: &str) -> Result<(), Problem> {
    if reason.trim().is_empty() || reason.chars().count() > 2000 {
        let message = "has the wrong length";
        return Err(Problem::fields(
            "invalid-body",
            vec![FieldError::new("reason", message).hint("1 to 2000 characters that say why")],
        ));
    }
    Ok(())
}

pub async fn retry(
    State(api): State<Api>,
    caller: Caller,
    Id(execution): Id,
    Body(order): Body<Retry>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    check_reason(&order.reason)?;
    let loaded = known(&api, execution).await?;
    let before = loaded.state.work().map_or((true, true), |work| (work.do_stage, work.do_submit));
    let do_stage = order.do_stage.unwrap_or(before.0);
    let do_submit = order.do_submit.unwrap_or(before.1);
    let retry = Command::Retry { reason: order.reason };
    api.handle.handle::<Execution>(&execution.to_string(), &caller.context(), retry).await?;
    let asked = ask(&api, &caller, execution, do_stage, do_submit).await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(json!({
            "status": status_word(&api, execution).await?,
            "stage": if asked.do_stage { "stage_and_manifest" } else { "submit" },
            "execution_id": execution,
            "job_id": asked.job_id,
            "do_stage": asked.do_stage,
            "do_submit": asked.do_submit,
            "retry_count": asked.attempt.saturating_sub(1),
        })),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    status: String,
    reason: Option<String>,
}

pub async fn patch(
    State(api): State<Api>,
    caller: Caller,
    Id(execution): Id,
    Body(patch): Body<Patch>,
) -> Result<Json<Value>, Problem> {
    if patch.status != "cancelled" {
        let shown: String = patch.status.chars().take(60).collect();
        return Err(Problem::field(
            "invalid-body",
            "status",
            format!("cannot be set to {shown:?}"),
            "cancelled; every other status follows from what happens",
        ));
    }
    known(&api, execution).await?;
    let cancel = Command::RequestCancel { reason: patch.reason };
    let done = api.handle.handle::<Execution>(&execution.to_string(), &caller.context(), cancel).await?;
    api.settle(done.position).await;
    Ok(Json(api.shown_execution(execution).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abandon {
    reason: String,
    /// What was looked at, kept with the abandonment.
    evidence: Option<String>,
    acknowledge_external_job_may_exist: bool,
    expected_submission_state: String,
    expected_daliuge_session_id: Option<Uuid>,
    expected_submission_deadline_at: Option<DateTime<Utc>>,
}

pub async fn abandon(
    State(api): State<Api>,
    caller: Caller,
    Id(execution): Id,
    Body(order): Body<Abandon>,
) -> Result<Json<Value>, Problem> {
    check_reason(&order.reason)?;
    if order.evidence.as_ref().is_some_and(|evidence| evidence.chars().count() > 8000) {
        return Err(Problem::field("invalid-body", "evidence", "is too long", "at most 8000 characters"));
    }
    known(&api, execution).await?;
    let abandon = Command::Abandon(Abandonment {
        reason: order.reason,
        evidence: order.evidence,
        acknowledged: order.acknowledge_external_job_may_exist,
        expected_submission_state: order.expected_submission_state,
        expected_session_id: order.expected_daliuge_session_id,
        expected_deadline_at: order.expected_submission_deadline_at,
    });
    let done = api.handle.handle::<Execution>(&execution.to_string(), &caller.context(), abandon).await?;
    api.settle(done.position).await;
    Ok(Json(api.shown_execution(execution).await?))
}
