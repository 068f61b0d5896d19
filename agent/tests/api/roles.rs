//! Roles: every route with every role, by processes of other users and groups.
//!
//! A thread of this test becomes another user: the system calls below change one thread, and the
//! kernel notes who connects. Needs root, as everything that tests them does.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nodeagent::api::v1::{Problem, ProblemCode};
use nodeagent::api::{BindError, Limits, Method, ROUTES, Role, Server};
use nodeagent::config::{Account, Api, Members};
use rustix::process::{Gid, Uid};

use crate::twin::Served;

/// Groups that the tests' configuration gives roles to. Nobody has to be in them by name.
const VIEW: u32 = 70_101;
const OPERATE: u32 = 70_102;
const ADMIN: u32 = 70_103;
const STRANGER: u32 = 70_999;

fn api() -> Api {
    let group = |gid| Members {
        users: Vec::new(),
        groups: vec![Account::Id(gid)],
    };
    Api {
        socket_mode: 0o666,
        view: group(VIEW),
        operate: group(OPERATE),
        admin: group(ADMIN),
        ..Api::default()
    }
}

fn served(limits: Limits) -> Served {
    let served = Served::open_to(&["web"], limits, &api());
    let directory = served.path().parent().unwrap();
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    served
}

/// One exchange by a process of this user and these groups; the answer's head and body.
async fn exchange_as(socket: &Path, groups: &[u32], request: String) -> (u16, String) {
    let socket = socket.to_owned();
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let exchange = move || {
        rustix::thread::set_thread_groups(&groups).unwrap();
        rustix::thread::set_thread_gid(Gid::from_raw(STRANGER)).unwrap();
        rustix::thread::set_thread_uid(Uid::from_raw(STRANGER)).unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = [0; 64 * 1024];
        let mut text = String::new();
        // Streams have no end: the head, and what came with it, is enough.
        loop {
            let n = stream.read(&mut bytes).unwrap_or(0);
            text.push_str(&String::from_utf8_lossy(&bytes[..n]));
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length = length.and_then(|text| text.parse::<usize>().ok());
            if n == 0 || (!head.is_empty() && body.len() >= length.unwrap_or(0)) {
                break;
            }
        }
        text
    };
    // A thread of its own: it stays another user for good.
    let text = tokio::task::spawn_blocking(|| std::thread::spawn(exchange).join().unwrap())
        .await
        .unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head[9..12].parse().unwrap(), body.to_owned())
}

fn request(method: Method, path: &str) -> String {
    let path = path
        .replace("{app}", "web")
        .replace("{id}", "t-1")
        .replace("{name}", "web-0");
    let body = match method {
        Method::Post => r#"{"to":1}"#,
        _ => "",
    };
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_refused_to_every_lesser_role_and_to_no_other() {
    let callers = [
        (None, vec![]),
        (Some(Role::View), vec![VIEW]),
        (Some(Role::Operate), vec![VIEW, OPERATE]),
        (Some(Role::Admin), vec![ADMIN]),
    ];
    let mut refusals = 0;
    for (role, groups) in &callers {
        let served = served(Limits::default());
        // Somebody fills the feed, as the host does.
        served.twin.feed.begin([]);
        for route in ROUTES {
            let what = format!("{} {} as {role:?}", route.method, route.path);
            let text = request(route.method, route.path);
            let (status, body) = exchange_as(served.path(), groups, text).await;
            let needed = match route.needs {
                Some(needed) if *role < Some(needed) => needed,
                _ => {
                    assert_ne!(status, 403, "{what}: {body}");
                    continue;
                }
            };
            assert_eq!(status, 403, "{what}: {body}");
            let problem: Problem = serde_json::from_str(&body).unwrap();
            assert_eq!(problem.code, ProblemCode::Forbidden, "{what}");
            let current = problem.current.unwrap();
            if role.is_some() {
                assert_eq!(current["needed"], needed.as_str(), "{what}");
                assert!(problem.detail.contains(needed.as_str()), "{what}");
            }
            assert_eq!(current["role"], role.map_or("none", Role::as_str), "{what}");
            refusals += 1;
        }
        if *role < Some(Role::Operate) {
            assert_eq!(served.twin.submitted(), [], "{role:?} had an effect");
        }
    }
    let lesser = |needs: Option<Role>| callers.iter().filter(|(role, _)| *role < needs).count();
    let expected: usize = ROUTES.iter().map(|route| lesser(route.needs)).sum();
    assert_eq!(refusals, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_who_is_refused_and_what_is_missing() {
    let served = served(Limits::default());
    let text = request(Method::Post, "/v1/apps/web/activate");
    let (_, body) = exchange_as(served.path(), &[VIEW], text).await;
    let problem: Problem = serde_json::from_str(&body).unwrap();
    assert_eq!(
        problem.detail,
        "the role operate is needed and user id 70999 (groups 70999, 70101) has the role view; \
         api.*_groups and api.*_users of the agent's configuration say who has which"
    );
    assert_eq!(problem.instance.as_deref(), Some("/v1/apps/web/activate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_without_a_role_learns_only_that_the_agent_lives() {
    let served = served(Limits::default());
    for path in ["/v1/nothing", "/", "/v1/status", "/v1/apps/web"] {
        let (status, body) = exchange_as(served.path(), &[], request(Method::Get, path)).await;
        assert_eq!(status, 403, "{path}: {body}");
    }
    let health = request(Method::Get, "/healthz");
    assert_eq!(
        exchange_as(served.path(), &[], health).await,
        (200, "ok\n".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_keep_out_who_has_a_role() {
    let limits = Limits {
        connections: 3,
        reserved: 1,
        strangers: 1,
        ..Limits::default()
    };
    let served = served(limits);
    let socket = served.path().to_owned();
    // A stranger that says nothing holds the strangers' only place.
    let holding = std::thread::spawn(move || {
        rustix::thread::set_thread_uid(Uid::from_raw(STRANGER)).unwrap();
        UnixStream::connect(socket).unwrap()
    });
    let _held = tokio::task::spawn_blocking(|| holding.join().unwrap()).await;
    let status = request(Method::Get, "/v1/status");
    let (code, _) = exchange_as(served.path(), &[VIEW], status).await;
    assert_eq!(code, 200);
    served.client().status().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_file_has_the_configured_mode_and_group() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let api = Api {
        socket_mode: 0o660,
        socket_group: Some(Account::Id(OPERATE)),
        ..Api::default()
    };
    let server = Server::bind(&path, Limits::default()).unwrap();
    let _server = server.open_to(&path, &api).unwrap();
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!((found.mode() & 0o7777, found.gid()), (0o660, OPERATE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let api = Api {
        socket_group: Some(Account::Name("no-such-group".to_owned())),
        ..Api::default()
    };
    let server = Server::bind(&path, Limits::default()).unwrap();
    let error = server.open_to(&path, &api).unwrap_err();
    assert!(matches!(error, BindError::NoSuchGroup { .. }), "{error}");
    assert!(error.to_string().contains("no-such-group"), "{error}");
}
