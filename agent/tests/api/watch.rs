//! `nodeagent status --watch`, run as a process in front of an in-memory host.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nodeagent::api::v1::*;
use nodeagent::api::{Limits, Server};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

use crate::twin::{Served, at};

const WAIT: Duration = Duration::from_secs(20);

fn watch(served: &Served, words: &[&str], stdout: Stdio) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodeagent"));
    command.env_clear().stdin(Stdio::null()).stdout(stdout);
    command.arg("--socket").arg(served.path());
    command.args(["status", "--watch"]).args(words);
    command.kill_on_drop(true).spawn().unwrap()
}

fn interrupt(child: &Child) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
}

async fn ended(mut child: Child) -> i32 {
    let ended = tokio::time::timeout(WAIT, child.wait()).await;
    let status = ended.expect("still running after 20 s").unwrap();
    status.code().expect("ended by a signal")
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let line = tokio::time::timeout(WAIT, lines.next_line()).await;
    line.expect("no line after 20 s").unwrap().expect("the end")
}

fn pool(active: u32) -> Pool {
    Pool {
        app: "web".to_owned(),
        revision: "3f2a91c0".to_owned(),
        labels: Default::default(),
        target: 2,
        target_seq: 7,
        active,
        starting: 2 - active,
        armed: 0,
        arming: 0,
        draining: 0,
        failed: 0,
        warm: WarmTargets { armed: 0 },
        alarm: None,
        instances: Vec::new(),
    }
}

fn app(active: u32) -> Event {
    Event::App(AppChange {
        app: "web".to_owned(),
        pool: Some(pool(active)),
    })
}

fn instance(ordinal: u32, state: InstanceState) -> Event {
    let name = format!("web-{ordinal}");
    Event::Instance(InstanceChange {
        app: "web".to_owned(),
        name: name.clone(),
        instance: Some(Instance {
            name,
            state,
            generation: 1,
            create_generation: None,
            revision: "3f2a91c0".to_owned(),
            host_ports: Vec::new(),
            address: Some("10.88.0.1".to_owned()),
            task_id: None,
            since: at(1),
            error: None,
        }),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_a_line_of_json_across_a_restart_until_it_is_interrupted() {
    let mut served = Served::start(&["web"], Limits::default());
    served.twin.feed.begin([app(1)]);
    let mut child = watch(&served, &["-o", "json"], Stdio::piped());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(line(&mut lines).await, r#"{"event":"reset","data":{}}"#);
    let first: serde_json::Value = serde_json::from_str(&line(&mut lines).await).unwrap();
    assert_eq!(first["event"], "app");
    assert_eq!(first["data"]["pool"]["active"], 1);
    assert_eq!(line(&mut lines).await, r#"{"event":"synced","data":{}}"#);

    served.stop.cancel();
    served.serving.take().unwrap().await.unwrap();
    let missed = instance(1, InstanceState::Active);
    served.twin.feed.publish([missed]);
    let server = Server::bind(served.path(), Limits::default()).unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(Arc::clone(&served.twin), stop.clone()));
    let after: serde_json::Value = serde_json::from_str(&line(&mut lines).await).unwrap();
    assert_eq!(after["data"]["instance"]["state"], "active");
    assert_eq!(line(&mut lines).await, r#"{"event":"synced","data":{}}"#);

    interrupt(&child);
    assert_eq!(ended(child).await, 0);
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_the_tables_come_again_when_something_changes() {
    let served = Served::start(&["web"], Limits::default());
    let armed = instance(0, InstanceState::Armed);
    served.twin.feed.begin([app(1), armed]);
    let mut child = watch(&served, &["web"], Stdio::piped());
    let mut out = child.stdout.take().unwrap();
    let mut text = String::new();
    let mut until = async |what: &str| {
        let mut chunk = [0; 4096];
        while !text.contains(what) {
            let read = tokio::time::timeout(WAIT, out.read(&mut chunk)).await;
            let n = read.expect("nothing after 20 s").unwrap();
            assert!(n > 0, "it ended after {text}");
            text.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
        }
        std::mem::take(&mut text)
    };
    let first = until("web-0     armed").await;
    assert!(first.starts_with("APP "), "{first}");
    let active = instance(0, InstanceState::Active);
    served.twin.feed.publish([active, app(2)]);
    let second = until("web-0     active").await;
    assert!(second.starts_with("\nAPP "), "{second}");
    assert!(!second.contains('\u{1b}'), "{second}");
    interrupt(&child);
    assert_eq!(ended(child).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_drawn_in_place_and_nothing_is_wider_than_it() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{Winsize, tcsetwinsize};
    let served = Served::start(&["web"], Limits::default());
    served.twin.feed.begin([app(1)]);
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let size = Winsize {
        ws_row: 5,
        ws_col: 30,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&screen, size).unwrap();
    let name = ptsname(&screen, Vec::new()).unwrap();
    let side = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let child = watch(&served, &[], side.into());
    let screen = std::fs::File::from(screen);
    let read = tokio::task::spawn_blocking(move || {
        use std::io::Read;
        let (mut text, mut chunk) = (String::new(), [0; 4096]);
        while !text.ends_with("\u{1b}[J") {
            let n = (&screen).read(&mut chunk).unwrap();
            text.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
        }
        (text, screen)
    });
    let read = tokio::time::timeout(WAIT, read).await;
    let (text, _screen) = read.expect("no picture after 20 s").unwrap();
    let picture = text.strip_prefix("\u{1b}[2J\u{1b}[H").unwrap();
    let lines: Vec<_> = picture.split("\u{1b}[K").map(str::trim_start).collect();
    assert_eq!(lines.len(), 5, "{picture:?}");
    assert_eq!(lines[0], "host h1 (fleet default): ready");
    assert!(lines[3].starts_with("... ") && lines[3].ends_with(" more lines"));
    assert!(lines.iter().all(|line| line.chars().count() <= 30));
    interrupt(&child);
    assert_eq!(ended(child).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_not_there_is_refused_before_anything_is_drawn() {
    let served = Served::start(&["web"], Limits::default());
    assert_eq!(ended(watch(&served, &["wbe"], Stdio::null())).await, 4);
}
