//! Commands in instances, with an in-memory host behind the server.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use nodeagent::api::v1::*;
use nodeagent::api::{ClientError, ExecInput, ExecOutput, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::twin::Served;

/// Longest wait for what should come at once.
const SOON: Duration = Duration::from_secs(10);

fn request(command: &[&str]) -> ExecRequest {
    ExecRequest {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        stdin: true,
        terminal: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_both_ways_and_the_exit_code_is_the_last() {
    let served = Served::start(&["web"], Limits::default());
    let client = served.client();
    let (mut reader, mut writer) = client.exec("web-0", &request(&["cat"])).await.unwrap();
    // More than one frame, and no text.
    let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let telling = {
        let sent = sent.clone();
        tokio::spawn(async move {
            writer.tell(ExecInput::Data(sent.into())).await.unwrap();
            let size = TerminalSize {
                columns: 100,
                rows: 30,
            };
            writer.tell(ExecInput::Resize(size)).await.unwrap();
            writer.tell(ExecInput::End).await.unwrap();
            writer
        })
    };
    let (mut heard, mut complaints) = (Vec::new(), Vec::new());
    let code = loop {
        let piece = timeout(SOON, reader.next()).await.unwrap().unwrap();
        match piece.expect("no exit code") {
            ExecOutput::Stdout(bytes) => heard.extend_from_slice(&bytes),
            ExecOutput::Stderr(bytes) => complaints.extend_from_slice(&bytes),
            ExecOutput::Exit(code) => break code,
            ExecOutput::Failed(why) => panic!("{why}"),
        }
    };
    assert!(heard == sent, "{} bytes came back", heard.len());
    assert_eq!((complaints.as_slice(), code), (&b"100x30"[..], 0));
    telling.await.unwrap();
    assert_eq!(reader.next().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_command_along() {
    let served = Served::start(&["web"], Limits::default());
    let streams = served.client().exec("web-0", &request(&["cat"])).await;
    drop(streams.unwrap());
    let left = timeout(SOON, served.twin.left.notified()).await;
    left.expect("the command goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_commands_and_no_more() {
    let limits = Limits {
        commands: 1,
        ..Limits::default()
    };
    let served = Served::start(&["web"], limits);
    let first = served.client().exec("web-0", &request(&["cat"])).await;
    let (reader, writer) = first.unwrap();
    let refused = served.client().exec("web-0", &request(&["cat"])).await;
    match refused.unwrap_err() {
        ClientError::Problem(problem) => {
            assert_eq!(problem.code, ProblemCode::Unavailable);
            assert_eq!(problem.detail, "1 commands are running, try again");
        }
        other => panic!("{other}"),
    }
    drop((reader, writer));
    timeout(SOON, served.twin.left.notified()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_is_refused_field_by_field() {
    let served = Served::start(&["web"], Limits::default());
    let upgrade = "Connection: upgrade\r\nUpgrade: nodeagent-exec\r\n";
    let good = r#"{"command":["cat"]}"#;
    for (headers, body, told) in [
        ("", good, "a command's streams need the connection"),
        (
            "Connection: upgrade\r\nUpgrade: websocket\r\n",
            good,
            "need the connection",
        ),
        (upgrade, "[]", "the body is not a JSON object"),
        (
            upgrade,
            "{}",
            r#""field":"command","allowed":"required: a list of texts"#,
        ),
        (
            upgrade,
            r#"{"command":[]}"#,
            r#""field":"command","value":"[]""#,
        ),
        (upgrade, r#"{"command":["a\u0000"]}"#, "without NUL"),
        (
            upgrade,
            r#"{"command":["a"],"command":["b"]}"#,
            "each field once",
        ),
        (upgrade, r#"{"command":["a"],"stdin":1}"#, "true or false"),
        (
            upgrade,
            r#"{"command":["a"],"terminal":{"columns":0,"rows":1}}"#,
            "the size of a terminal",
        ),
        (upgrade, r#"{"comand":["a"]}"#, "did you mean command?"),
    ] {
        let length = body.len();
        let text = format!(
            "POST /v1/instances/web-0/exec HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        );
        let mut stream = UnixStream::connect(served.path()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut bytes = vec![0; 4096];
        let length = timeout(SOON, stream.read(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        let answer = String::from_utf8_lossy(&bytes[..length]);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body}: {answer}");
        assert!(answer.contains(told), "{body}: {answer}");
    }
}

/// `nodeagent exec` with these words and this input: exit code, stdout, stderr.
async fn ran(served: &Served, words: &[&str], input: &'static [u8]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodeagent"));
    command
        .env_clear()
        .args(["--socket".as_ref(), served.path()])
        .arg("exec")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = timeout(SOON, output).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_hands_streams_and_code_through() {
    let served = Served::start(&["web"], Limits::default());
    let said = ran(&served, &["-i", "web-0", "--", "cat"], b"one\ntwo").await;
    assert_eq!(said, (0, "one\ntwo".to_owned(), String::new()));
    let said = ran(&served, &["web-0", "exit", "77"], b"").await;
    assert_eq!(said, (77, String::new(), "None false\n".to_owned()));
    let (code, _, told) = ran(&served, &["web-0", "vanish"], b"").await;
    assert_eq!(code, 1);
    let why = "nodeagent: how the command ended is not known: containerd has gone\n";
    assert_eq!(told, format!("None false\n{why}"));
    let (code, _, told) = ran(&served, &["web-0", "nothing"], b"").await;
    assert_eq!(code, 3, "{told}");
    assert!(told.contains("\"nothing\" is not found"), "{told}");
    let (code, _, told) = ran(&served, &["web-7", "cat"], b"").await;
    assert_eq!(code, 4, "{told}");
    let (code, _, told) = ran(&served, &["-it", "web-0", "cat"], b"").await;
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("--tty needs a terminal"), "{told}");
    let (code, _, told) = ran(&served, &["web-0"], b"").await;
    assert_eq!(code, 2, "{told}");
}
