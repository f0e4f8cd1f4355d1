//! The artifacts of an execution, and their bytes. Bytes are checked against the digest they are asked for by.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::api::Api;
use crate::api::extract::{Id, Names, Params, uuid_in_path};
use crate::api::problem::Problem;
use crate::api::shape::execution as shape;
use crate::artifacts::ArtifactError;

impl From<ArtifactError> for Problem {
    fn from(error: ArtifactError) -> Self {
        match &error {
            ArtifactError::Absent(_) => Self::new("artifact-unknown", error.to_string()),
            ArtifactError::Damaged(_) | ArtifactError::Unavailable(_) => {
                tracing::error!(%error, cause = ?std::error::Error::source(&error), "an artifact cannot be read");
                Self::new("artifacts-unavailable", error.to_string()).retry_after(5)
            }
        }
    }
}

pub async fn list(
    State(api): State<Api>,
    Id(execution): Id,
    mut params: Params,
) -> Result<Json<Vec<Value>>, Problem> {
    let (limit, offset) = params.window(1000, 1000);
    params.finish()?;
    api.execution_row(execution).await?;
    let rows = api.read(move |models| models.executions().artifacts(execution)).await?;
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let take = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(Json(rows.iter().skip(skip).take(take).map(shape::artifact).collect()))
}

pub async fn bytes(
    State(api): State<Api>,
    Names(execution, sha256): Names,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let execution = uuid_in_path(&execution)?;
    api.execution_row(execution).await?;
    let wanted = sha256.clone();
    let row = api.read(move |models| models.executions().artifact_by_sha(execution, &wanted)).await?;
    let Some(row) = row else {
        let shown: String = sha256.chars().take(64).collect();
        return Err(Problem::new(
            "artifact-unknown",
            format!("execution {execution} has no artifact {shown:?}"),
        ));
    };
    let bytes = api.artifacts.get(&row.sha256).await?;
    let media = HeaderValue::from_str(&row.media_type)
        .unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let etag =
        HeaderValue::from_str(&format!("\"{}\"", row.sha256)).unwrap_or(HeaderValue::from_static("\"\""));
    let headers = [
        (header::CONTENT_TYPE, media),
        (header::ETAG, etag),
        (header::CACHE_CONTROL, HeaderValue::from_static("private, immutable, max-age=31536000")),
    ];
    Ok((headers, bytes).into_response())
}
