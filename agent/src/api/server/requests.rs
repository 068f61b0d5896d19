//! How many requests were answered, by route and status.

use axum::http::StatusCode;

use super::table::{Operation, ROUTES};
use crate::metrics::{Counter, Kind, Page};

/// Statuses that the API answers with; others count as the last one.
const CODES: [u16; 14] = [
    200, 202, 400, 403, 404, 405, 408, 409, 413, 422, 503, 507, 501, 500,
];

/// The counters. The last row is of requests that no route took. A slice: as the length of an array
/// the table of routes would have to be evaluated before the handlers that are checked with it
/// (E0391 in optimized builds).
#[derive(Debug)]
pub(super) struct Requests(Box<[[Counter; CODES.len()]]>);

impl Default for Requests {
    fn default() -> Self {
        let rows = ROUTES.len() + 1;
        Self(
            std::iter::repeat_with(Default::default)
                .take(rows)
                .collect(),
        )
    }
}

impl Requests {
    /// One more answer. `None`: no route took the request.
    pub fn count(&self, operation: Option<Operation>, status: StatusCode) {
        let row = operation.map_or(ROUTES.len(), |operation| operation as usize);
        let known = CODES.iter().position(|code| *code == status.as_u16());
        self.0[row][known.unwrap_or(CODES.len() - 1)].inc();
    }

    /// Adds the family to a page; what never happened is left out.
    pub fn render(&self, page: &mut Page) {
        let mut family = page.family(
            "nodeagent_api_requests_total",
            Kind::Counter,
            "Requests to the API by route and HTTP status; the route none stands for what is no route.",
        );
        let none = (ROUTES.len(), "none", "none");
        let rows = ROUTES
            .iter()
            .map(|route| (route.operation as usize, route.method.as_str(), route.path))
            .chain([none]);
        for (row, method, path) in rows {
            for (code, counter) in CODES.iter().zip(&self.0[row]) {
                if counter.get() > 0 {
                    let code = code.to_string();
                    let labels = [("method", method), ("route", path), ("code", code.as_str())];
                    family.sample(&labels, counter.get());
                }
            }
        }
    }
}
