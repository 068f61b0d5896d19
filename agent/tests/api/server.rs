//! The API server with an in-memory host behind it: what it lets through, what it refuses, and how.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::twin::{Served, Twin};
use nodeagent::api::v1::*;
use nodeagent::api::{BindError, Client, ClientError, Deletion, Limits, Server, TaskFilter};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

const WAIT: Duration = Duration::from_secs(5);

/// One raw exchange on a connection of its own: status and body.
async fn raw(socket: &Path, request: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(request).await.unwrap();
    answer(&mut stream).await
}

/// The next answer on the connection: everything up to its Content-Length.
async fn answer(stream: &mut UnixStream) -> (u16, String) {
    let read = async {
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|l| l.strip_prefix("content-length: "));
                let length: usize = length.map_or(0, |l| l.parse().unwrap());
                if body.len() >= length {
                    return (head[9..12].parse().unwrap(), body.to_owned());
                }
            }
            let mut chunk = [0; 65536];
            let n = stream.read(&mut chunk).await.unwrap();
            assert!(n > 0, "closed after {text:?}");
            bytes.extend_from_slice(&chunk[..n]);
        }
    };
    tokio::time::timeout(WAIT, read)
        .await
        .expect("no answer within 5 s")
}

fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn closed(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(WAIT, stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "still open after 5 s");
}

fn problem(body: &str) -> Problem {
    serde_json::from_str(body).unwrap_or_else(|e| panic!("no problem document ({e}): {body}"))
}

fn request(to: u32, id: &str) -> TaskRequest {
    TaskRequest {
        task_id: Some(id.to_owned()),
        ..TaskRequest::to(to)
    }
}

fn refused(error: ClientError) -> Problem {
    match error {
        ClientError::Problem(problem) => *problem,
        other => panic!("no problem: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_reaches_the_host_whole_and_its_task_comes_back() {
    let served = Served::start(&["web"], Limits::default());
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let wanted = TaskRequest {
        deadline_seconds: Some(5.0),
        ..request(3, "peak-7")
    };
    let task = served
        .client()
        .submit("web", Verb::Activate, &wanted, WAIT, Some(traceparent))
        .await
        .unwrap();
    assert_eq!(
        (task.state, task.active, task.target_seq),
        (TaskState::Done, 3, 8)
    );

    let seen = served.twin.submitted().remove(0);
    assert_eq!(
        (seen.app.as_str(), seen.verb, seen.wait),
        ("web", Verb::Activate, WAIT)
    );
    assert_eq!(seen.request, wanted);
    assert_eq!(seen.received.traceparent.as_deref(), Some(traceparent));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_document_of_the_host_passes_the_wire_unchanged() {
    use nodeagent::api::Host;
    let served = Served::start(&["web"], Limits::default());
    let client = served.client();
    client
        .submit("web", Verb::Scale, &request(2, "one"), WAIT, None)
        .await
        .unwrap();
    assert_eq!(
        client.status().await.unwrap(),
        served.twin.status().await.unwrap()
    );
    assert_eq!(
        client.task("one").await.unwrap(),
        served.twin.task("one").await.unwrap()
    );
    assert_eq!(
        client.trail("one").await.unwrap(),
        served.twin.trail("one").await.unwrap()
    );
    assert_eq!(
        client.tasks(&TaskFilter::default()).await.unwrap(),
        served.twin.tasks(TaskFilter::default()).await.unwrap()
    );
    assert_eq!(
        client.apps().await.unwrap(),
        served.twin.apps().await.unwrap()
    );
    assert_eq!(
        client.app("web").await.unwrap(),
        served.twin.app("web").await.unwrap()
    );
    assert_eq!(
        client
            .apply("metadata:\n  name: new\n")
            .await
            .unwrap()
            .outcome,
        ApplyOutcome::Created
    );
    let in_use = refused(
        client
            .delete_app("web", Deletion::WhenUnused)
            .await
            .unwrap_err(),
    );
    assert_eq!(
        (in_use.code, in_use.current.unwrap()["active"].clone()),
        (ProblemCode::AppInUse, json!(2))
    );
    assert_eq!(
        client
            .delete_app("web", Deletion::Forced)
            .await
            .unwrap()
            .outcome,
        ApplyOutcome::Deleted
    );
    let gone = refused(client.app("web").await.unwrap_err());
    assert_eq!(gone.detail, "no app is named \"web\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_a_name_is_given_one() {
    let served = Served::start(&["web"], Limits::default());
    let (status, body) = raw(served.path(), &post("/v1/apps/web/activate", r#"{"to":1}"#)).await;
    let task: Task = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(
        served.twin.submitted()[0].request.task_id,
        Some(task.task_id)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_ends_first_is_answered_202_and_running() {
    let served = Served::start(&["slow"], Limits::default());
    let (status, body) = raw(
        served.path(),
        &post("/v1/apps/slow/activate?wait=0", r#"{"to":1}"#),
    )
    .await;
    let task: Task = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, task.state, task.finished_at),
        (202, TaskState::Running, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_fields_are_answered_with_field_value_and_what_is_allowed() {
    let served = Served::start(&["web"], Limits::default());
    let cases = [
        ("/v1/apps/web/activate", r#"{"to":"3"}"#, "to", "\"3\""),
        ("/v1/apps/web/activate", r#"{"to":3.5}"#, "to", "3.5"),
        (
            "/v1/apps/web/activate",
            r#"{"to":1,"taskid":"x"}"#,
            "taskid",
            "\"x\"",
        ),
        (
            "/v1/apps/web/activate",
            r#"{"to":1,"force":true}"#,
            "force",
            "true",
        ),
        (
            "/v1/apps/web/activate?wait=soon",
            r#"{"to":1}"#,
            "?wait",
            "soon",
        ),
        (
            "/v1/apps/web/scale?force=true",
            r#"{"to":1}"#,
            "?force",
            "true",
        ),
        ("/v1/apps/WEB/activate", r#"{"to":1}"#, "app", "WEB"),
        ("/v1/apps/a%2Fb/activate", r#"{"to":1}"#, "app", "a/b"),
    ];
    for (path, body, field, value) in cases {
        let (status, answer) = raw(served.path(), &post(path, body)).await;
        let problem = problem(&answer);
        assert_eq!(
            (status, problem.code),
            (400, ProblemCode::InvalidRequest),
            "{path} {body}"
        );
        assert_eq!(
            (
                problem.findings[0].field.as_str(),
                problem.findings[0].value.as_deref().unwrap()
            ),
            (field, value)
        );
        assert!(!problem.findings[0].allowed.is_empty());
    }
    assert_eq!(served.twin.submitted(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_of_json_are_refused_without_being_kept() {
    let served = Served::start(&["web"], Limits::default());
    let big = format!(r#"{{"to":1,"taskId":"{}"}}"#, "x".repeat(10 * 1024 * 1024));
    let (status, body) = raw(served.path(), &post("/v1/apps/web/activate", &big)).await;
    assert_eq!(status, 413);
    assert_eq!(
        problem(&body).detail,
        "a body may have at most 1048576 bytes"
    );

    // Without a length, in chunks.
    let mut chunked =
        b"PUT /v1/apps HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..160 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&[b'x'; 65536]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let (status, body) = raw(served.path(), &chunked).await;
    assert_eq!((status, problem(&body).code), (413, ProblemCode::TooLarge));

    // A client that asks before it sends is told at once.
    let asks = b"PUT /v1/apps HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 10485760\r\n\r\n";
    assert_eq!(raw(served.path(), asks).await.0, 413);
    let error = refused(
        served
            .client()
            .apply(vec![b'x'; 10 << 20])
            .await
            .unwrap_err(),
    );
    assert_eq!(error.code, ProblemCode::TooLarge);
    assert_eq!(served.twin.submitted(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_exactly_the_limit_is_read() {
    let served = Served::start(&["web"], Limits::default());
    let manifest = format!("metadata:\n  name: big\n{}", "#".repeat(1024 * 1024));
    let fits = manifest[..1024 * 1024].to_owned();
    assert_eq!(served.client().apply(fits).await.unwrap().name, "big");
    let over = manifest[..1024 * 1024 + 1].to_owned();
    assert_eq!(
        refused(served.client().apply(over).await.unwrap_err()).code,
        ProblemCode::TooLarge
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_cut_off_half_way_has_no_effect() {
    let served = Served::start(&["web"], Limits::default());
    let whole = post("/v1/apps/web/activate", r#"{"to":1,"taskId":"cut"}"#);
    for length in 0..whole.len() {
        let mut stream = UnixStream::connect(served.path()).await.unwrap();
        stream.write_all(&whole[..length]).await.unwrap();
        // Half-closed: an answer could still be read, so the server has seen the end when we have.
        stream.shutdown().await.unwrap();
        closed(&mut stream).await;
    }
    assert_eq!(served.twin.submitted(), []);
    assert_eq!(raw(served.path(), &whole).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_slower_than_the_deadline_is_ended_without_effect() {
    let limits = Limits {
        read: Duration::from_millis(100),
        ..Limits::default()
    };
    let served = Served::start(&["web"], limits);
    let whole = post("/v1/apps/web/activate", r#"{"to":1}"#);

    let mut in_header = UnixStream::connect(served.path()).await.unwrap();
    in_header.write_all(&whole[..20]).await.unwrap();
    closed(&mut in_header).await;

    let mut in_body = UnixStream::connect(served.path()).await.unwrap();
    in_body.write_all(&whole[..whole.len() - 1]).await.unwrap();
    let (status, body) = answer(&mut in_body).await;
    assert_eq!(
        (status, problem(&body).detail.as_str()),
        (408, "the body did not arrive within 0.1 s")
    );
    assert_eq!(served.twin.submitted(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_never_reads_is_disconnected() {
    let limits = Limits {
        write_stall: Duration::from_millis(100),
        connections: 1,
        ..Limits::default()
    };
    let served = Served::start(&[], limits);
    // An app whose document is larger than the socket's buffers.
    let manifest = format!("metadata:\n  name: big\n{}", "#".repeat(1_000_000));
    served.client().apply(manifest).await.unwrap();
    let mut deaf = UnixStream::connect(served.path()).await.unwrap();
    deaf.write_all(b"GET /v1/apps/big HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    // There is room for one connection: the next is served only once the deaf one is gone.
    let (status, _) = raw(served.path(), b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_does_not_end_its_submission() {
    let served = Served::start(&["slow"], Limits::default());
    let mut stream = UnixStream::connect(served.path()).await.unwrap();
    stream
        .write_all(&post("/v1/apps/slow/activate?wait=60", r#"{"to":1}"#))
        .await
        .unwrap();
    served
        .twin
        .until("submitted", |twin| twin.submitted().len() == 1)
        .await;
    drop(stream);
    served.client().status().await.unwrap();
    assert_eq!(served.twin.finished(), 0);
    served.twin.release.cancel();
    served
        .twin
        .until("finished", |twin| twin.finished() == 1)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_counts_from_the_first_byte_of_this_request_on_a_kept_connection() {
    let served = Served::start(&["web"], Limits::default());
    let mut stream = UnixStream::connect(served.path()).await.unwrap();
    let mut spans = Vec::new();
    for n in 0..3 {
        let whole = post(
            "/v1/apps/web/activate",
            &format!(r#"{{"to":1,"taskId":"t{n}"}}"#),
        );
        let sent = Instant::now();
        stream.write_all(&whole[..1]).await.unwrap();
        stream.write_all(&whole[1..]).await.unwrap();
        assert_eq!(answer(&mut stream).await.0, 200);
        spans.push((sent, Instant::now()));
    }
    served
        .twin
        .until("answered", |twin| twin.answered().len() == 3)
        .await;
    for (n, (submitted, (id, after))) in served
        .twin
        .submitted()
        .iter()
        .zip(served.twin.answered())
        .enumerate()
    {
        let (sent, answered) = spans[n];
        let first_byte = submitted.received.first_byte;
        assert!(sent <= first_byte && first_byte <= answered, "request {n}");
        assert_eq!(id, format!("t{n}"));
        assert!(!after.is_zero());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn submissions_over_the_bound_are_refused_and_reads_go_on() {
    let served = Served::start(
        &["slow"],
        Limits {
            submissions: 2,
            ..Limits::default()
        },
    );
    let submit = |n: u32| {
        let client = served.client();
        async move {
            client
                .submit(
                    "slow",
                    Verb::Activate,
                    &request(n, &format!("t{n}")),
                    WAIT * 10,
                    None,
                )
                .await
        }
    };
    let waiting = [tokio::spawn(submit(1)), tokio::spawn(submit(2))];
    served
        .twin
        .until("two wait", |twin| twin.submitted().len() == 2)
        .await;
    let third = refused(submit(3).await.unwrap_err());
    assert_eq!(
        (third.code, third.detail.as_str()),
        (
            ProblemCode::Unavailable,
            "2 submissions are in progress, try again"
        )
    );
    assert_eq!(
        served
            .client()
            .tasks(&TaskFilter::default())
            .await
            .unwrap()
            .tasks
            .len(),
        2
    );
    served.twin.release.cancel();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().unwrap().state, TaskState::Running);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_task_id_fifty_times_at_once_is_one_task() {
    let served = Served::start(&["web"], Limits::default());
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let client = served.client();
            tokio::spawn(async move {
                client
                    .submit("web", Verb::Activate, &request(2, "same"), WAIT, None)
                    .await
            })
        })
        .collect();
    let mut first = 0;
    for call in calls {
        let task = call.await.unwrap().unwrap();
        assert_eq!((task.state, task.target_seq), (TaskState::Done, 8));
        first += u32::from(!task.replayed);
    }
    assert_eq!(first, 1);
    let other = served
        .client()
        .submit("web", Verb::Activate, &request(9, "same"), WAIT, None)
        .await;
    assert_eq!(refused(other.unwrap_err()).code, ProblemCode::TaskConflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_defect_behind_the_seam_is_an_answer_and_not_a_hang_up() {
    let served = Served::start(&["defect"], Limits::default());
    let error = served
        .client()
        .submit("defect", Verb::Activate, &request(1, "d"), WAIT, None)
        .await;
    let problem = refused(error.unwrap_err());
    assert_eq!(
        (problem.code, problem.instance.as_deref()),
        (ProblemCode::Internal, Some("/v1/tasks/d"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_problems_too() {
    let served = Served::start(&["web"], Limits::default());
    let ask = |text: &str| {
        let text = format!("{text} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        let socket = served.socket.clone();
        async move { raw(&socket, text.as_bytes()).await }
    };
    let cases = [
        ("GET /v2/status", 404, ProblemCode::NotFound),
        ("GET /", 404, ProblemCode::NotFound),
        ("GET /v1/tasks/nope", 404, ProblemCode::NotFound),
        ("POST /v1/apps//activate", 400, ProblemCode::InvalidRequest),
        ("POST /v1/status", 405, ProblemCode::MethodNotAllowed),
        ("PUT /v1/apps/web", 405, ProblemCode::MethodNotAllowed),
        (
            "GET /v1/apps/web/activate",
            405,
            ProblemCode::MethodNotAllowed,
        ),
        ("BREW /v1/tasks", 405, ProblemCode::MethodNotAllowed),
        ("GET /v1/tasks/a%20b", 400, ProblemCode::InvalidRequest),
        ("GET /v1/tasks/%ff", 400, ProblemCode::InvalidRequest),
        ("GET /v1/status?x=%ff", 400, ProblemCode::InvalidRequest),
    ];
    for (what, status, code) in cases {
        let (got, body) = ask(what).await;
        assert_eq!((got, problem(&body).code), (status, code), "{what}: {body}");
        let wire: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(wire["status"], json!(status));
    }
    assert_eq!(ask("GET /healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(ask("GET /readyz").await, (200, "ok\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_the_hosts_and_health_is_the_servers() {
    let served = Served::start(&["unready"], Limits::default());
    let (status, body) = raw(served.path(), b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(
        (status, problem(&body).detail.as_str()),
        (503, "the journal is being read")
    );
    assert_eq!(
        raw(served.path(), b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .0,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_ended() {
    let served = Served::start(&["web"], Limits::default());
    let many_headers = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(10_000));
    for garbage in ["\0\0\0\0\r\n\r\n", "{\"to\":1}\r\n\r\n", &many_headers] {
        let mut stream = UnixStream::connect(served.path()).await.unwrap();
        stream.write_all(garbage.as_bytes()).await.ok();
        closed(&mut stream).await;
    }
    assert_eq!(served.twin.submitted(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_roots_alone() {
    let served = Served::start(&["web"], Limits::default());
    let mode = std::fs::metadata(served.path())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    drop(StdListener::bind(&path).unwrap());
    let first = Server::bind(&path, Limits::default()).unwrap();

    let second = Server::bind(&path, Limits::default()).unwrap_err();
    assert!(matches!(&second, BindError::InUse { path: p } if *p == path));
    assert_eq!(
        second.to_string(),
        format!("another agent is serving {}", path.display())
    );

    let stop = CancellationToken::new();
    let serving = tokio::spawn(first.serve(Twin::with_apps(&[]), stop.clone()));
    Client::new(&path).status().await.unwrap();
    stop.cancel();
    serving.await.unwrap();
    assert!(!path.exists());
    assert!(matches!(
        Client::new(&path).status().await.unwrap_err(),
        ClientError::Unreachable { .. }
    ));
}

#[tokio::test]
async fn a_file_in_the_sockets_place_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    std::fs::write(&path, "precious").unwrap();
    let error = Server::bind(&path, Limits::default()).unwrap_err();
    assert!(matches!(error, BindError::NotASocket { .. }));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

    let long = directory.path().join("x".repeat(120));
    let error = Server::bind(&long, Limits::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot use the path {}", long.display())
    );
    let nowhere = directory.path().join("no/such/dir.sock");
    let error = Server::bind(&nowhere, Limits::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot bind {}", nowhere.display())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_tells_who_waits_and_drops_no_submission() {
    let mut served = Served::start(&["slow"], Limits::default());
    let client = served.client();
    let waiting = tokio::spawn(async move {
        client
            .submit(
                "slow",
                Verb::Activate,
                &request(1, "t1"),
                Duration::from_secs(60),
                None,
            )
            .await
    });
    served
        .twin
        .until("submitted", |twin| twin.submitted().len() == 1)
        .await;
    served.stop.cancel();
    let problem = refused(waiting.await.unwrap().unwrap_err());
    assert_eq!(
        (problem.code, problem.instance.as_deref()),
        (ProblemCode::Unavailable, Some("/v1/tasks/t1"))
    );
    tokio::time::timeout(WAIT, served.serving.take().unwrap())
        .await
        .unwrap()
        .unwrap();
    served.twin.release.cancel();
    served
        .twin
        .until("finished", |twin| twin.finished() == 1)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_tells_silence_from_absence() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mute.sock");
    let _mute = StdListener::bind(&path).unwrap();
    let client = Client::new(&path).with_deadline(Duration::from_millis(50));
    let error = client.status().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the agent on {} did not answer within 0.05 s",
            path.display()
        )
    );
}

/// Not a benchmark: it prints what one round trip costs (`cargo test --release -- --nocapture`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_trip_is_printed() {
    const ROUNDS: usize = 2000;
    let served = Served::start(&["web"], Limits::default());
    let socket = served.socket.clone();
    // Blocking clients on threads of their own, as a caller's process would be.
    let measure = move |kept: bool| {
        let mut times = Vec::with_capacity(ROUNDS);
        let mut connection = StdStream::connect(&socket).unwrap();
        for n in 0..ROUNDS {
            let request = post(
                "/v1/apps/web/activate",
                &format!(r#"{{"to":1,"taskId":"{kept}-{n}"}}"#),
            );
            let began = Instant::now();
            if !kept {
                connection = StdStream::connect(&socket).unwrap();
            }
            connection.write_all(&request).unwrap();
            let mut answer = [0; 4096];
            let read = connection.read(&mut answer).unwrap();
            times.push(began.elapsed());
            assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
        }
        times.sort();
        (
            times[ROUNDS / 2],
            times[ROUNDS * 99 / 100],
            times[ROUNDS - 1],
        )
    };
    let measured = Arc::new(measure);
    for kept in [true, false] {
        let measured = Arc::clone(&measured);
        let (p50, p99, max) = tokio::task::spawn_blocking(move || measured(kept))
            .await
            .unwrap();
        let connection = if kept { "kept" } else { "new" };
        println!(
            "POST to answer, {connection} connection, n={ROUNDS}: p50 {p50:?}, p99 {p99:?}, max {max:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_without_end_is_refused_and_never_kept() {
    let served = Served::start(&["web"], Limits::default());
    let long = format!("x: {}\r\n", "y".repeat(4_000_000));
    let many = "x: y\r\n".repeat(20_000);
    for bomb in [long, many] {
        let mut stream = UnixStream::connect(served.path()).await.unwrap();
        let head = format!("GET /v1/status HTTP/1.1\r\nHost: a\r\n{bomb}\r\n");
        // The server stops reading in the middle of it.
        stream.write_all(head.as_bytes()).await.ok();
        let mut answer = Vec::new();
        let end = tokio::time::timeout(WAIT, stream.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "still open after 5 s");
        let text = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || text.starts_with("HTTP/1.1 431 "),
            "{text}"
        );
    }
    served.client().status().await.unwrap();
}
