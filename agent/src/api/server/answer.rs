//! Documents as HTTP responses.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::api::v1::{Problem, ProblemCode};

/// `document` as JSON.
pub(super) fn json(status: StatusCode, document: &impl Serialize) -> Response {
    match serde_json::to_vec(document) {
        Ok(text) => typed(status, "application/json", text),
        Err(error) => {
            tracing::error!(%error, "answer could not be spelt as JSON");
            Problem::new(
                ProblemCode::Internal,
                "the answer could not be spelt as JSON",
            )
            .into_response()
        }
    }
}

/// A result as `200` or a problem.
pub(super) fn json_or_problem(result: Result<impl Serialize, Problem>) -> Response {
    match result {
        Ok(document) => json(StatusCode::OK, &document),
        Err(problem) => problem.into_response(),
    }
}

fn typed(status: StatusCode, media_type: &'static str, text: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let media_type = HeaderValue::from_static(media_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    response
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.row().status)
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A problem is plain strings and values: its JSON always exists.
        let text = serde_json::to_vec(&self).unwrap_or_default();
        typed(status, "application/problem+json", text)
    }
}
