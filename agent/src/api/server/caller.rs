//! Who calls, and whether the route may be had.

use std::fmt;

use axum::Extension;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::UnixStream;

use super::requests::Requests;
use super::table::Route;
use super::{Limits, body};
use crate::api::v1::{Problem, ProblemCode};
use crate::api::{Peer, Role, Roles};
use crate::sys;

/// Who is at the other end of a connection, and what it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub who: Who,
    pub role: Option<Role>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// A process on this host.
    Process(Peer),
    /// Who has the key of a certificate with these names.
    Certificate(Vec<String>),
    /// The kernel does not say.
    Nameless,
}

impl Caller {
    /// The process that connected, by `SO_PEERCRED` and `SO_PEERGROUPS`.
    pub fn of_process(stream: &UnixStream, roles: &Roles) -> Self {
        let credentials = stream
            .peer_cred()
            .and_then(|peer| Ok((peer, sys::peer_groups(stream)?)));
        match credentials {
            Ok((credentials, mut groups)) => {
                groups.insert(0, credentials.gid());
                let uid = credentials.uid();
                let peer = Peer { uid, groups };
                Self {
                    role: roles.of(&peer),
                    who: Who::Process(peer),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "api caller could not be identified");
                Self {
                    who: Who::Nameless,
                    role: None,
                }
            }
        }
    }

    /// Why it may not have what needs `needed`.
    pub fn forbidden(&self, needed: Role, path: &str) -> Problem {
        let has = match self.role {
            Some(role) => format!("has the role {role}"),
            None => "has no role".to_owned(),
        };
        let keys = match self.who {
            Who::Certificate(_) => "api.tls.view, .operate and .admin",
            Who::Process(_) | Who::Nameless => "api.*_groups and api.*_users",
        };
        let detail = format!(
            "the role {needed} is needed and {self} {has}; {keys} of the agent's configuration say who has which"
        );
        let role = self.role.map_or("none", Role::as_str);
        Problem::new(ProblemCode::Forbidden, detail)
            .with_current(json!({"role": role, "needed": needed.as_str()}))
            .about(path)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Process(peer) => {
                // A process may have 65536 groups: the first few tell it from others.
                let shown: Vec<String> = peer
                    .groups
                    .iter()
                    .take(8)
                    .map(ToString::to_string)
                    .collect();
                let more = if peer.groups.len() > 8 { ", ..." } else { "" };
                write!(
                    f,
                    "user id {} (groups {}{more})",
                    peer.uid,
                    shown.join(", ")
                )
            }
            Who::Certificate(names) if names.is_empty() => {
                f.write_str("a certificate without names")
            }
            Who::Certificate(names) => {
                let shown = names
                    .iter()
                    .take(8)
                    .map(|name| name.escape_debug().to_string());
                let shown: Vec<String> = shown.collect();
                let more = if names.len() > 8 { ", ..." } else { "" };
                write!(f, "the certificate of {}{more}", shown.join(", "))
            }
            Who::Nameless => f.write_str("a caller without credentials"),
        }
    }
}

/// Lets the request pass to its handler, or refuses it. The body of a known caller is read first,
/// so that one who reads only after writing gets the answer.
pub(super) async fn guard(
    route: &'static Route,
    limits: &Limits,
    requests: &Requests,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let response = match route.needs {
        Some(needed) if caller.role < Some(needed) => {
            let path = request.uri().path().to_owned();
            let (parts, content) = request.into_parts();
            if caller.role.is_some() {
                // Whatever is wrong with it, the refusal is the answer.
                body::read(&parts.headers, content, limits).await.ok();
            }
            caller.forbidden(needed, &path).into_response()
        }
        _ => next.run(request).await,
    };
    requests.count(Some(route.operation), response.status());
    response
}

/// The connection has nothing more to say after it.
pub(super) fn last_answer(problem: Problem) -> Response<Body> {
    let mut response = problem.into_response();
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}
