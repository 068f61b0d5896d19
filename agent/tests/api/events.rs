//! `/v1/events`: what readers see, what slow and dead ones cost, and how the client goes on.

use std::sync::Arc;
use std::time::Duration;

use nodeagent::api::v1::*;
use nodeagent::api::{ClientError, Events, Limits, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::twin::{Served, at};

const WAIT: Duration = Duration::from_secs(5);

fn instance(ordinal: u32, state: InstanceState) -> Event {
    let name = format!("web-{ordinal}");
    let instance = Instance {
        name: name.clone(),
        state,
        generation: 1,
        create_generation: None,
        revision: "3f2a91c0".to_owned(),
        host_ports: Vec::new(),
        address: None,
        task_id: None,
        since: at(1),
        error: None,
    };
    Event::Instance(InstanceChange {
        app: "web".to_owned(),
        name,
        instance: Some(instance),
    })
}

async fn next(events: &mut Events) -> Event {
    let next = tokio::time::timeout(WAIT, events.next()).await;
    next.expect("no event within 5 s").unwrap()
}

async fn stream(served: &Served) -> UnixStream {
    let mut stream = UnixStream::connect(served.path()).await.unwrap();
    let request = b"GET /v1/events HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(request).await.unwrap();
    stream
}

/// What came until `end` was among it.
async fn until(stream: &mut UnixStream, end: &str) -> String {
    let mut text = String::new();
    let read = async {
        let mut chunk = [0; 4096];
        while !text.contains(end) {
            let n = stream.read(&mut chunk).await.unwrap();
            assert!(n > 0, "it ended after {text:?}");
            text.push_str(&String::from_utf8_lossy(&chunk[..n]));
        }
    };
    let waited = tokio::time::timeout(WAIT, read).await;
    assert!(waited.is_ok(), "no {end:?} within 5 s");
    text
}

async fn ended(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(WAIT, stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "still open after 5 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_what_is_true_and_then_what_changes() {
    let served = Served::start(&["web"], Limits::default());
    let mut events = served.client().events(None);
    let armed = instance(0, InstanceState::Armed);
    let feed = Arc::clone(&served.twin.feed);
    let writer = tokio::spawn({
        let armed = armed.clone();
        async move {
            feed.wanted().await;
            feed.begin([armed]);
        }
    });
    assert_eq!(next(&mut events).await, Event::Reset);
    assert_eq!(next(&mut events).await, armed);
    assert_eq!(next(&mut events).await, Event::Synced);
    writer.await.unwrap();
    let active = instance(0, InstanceState::Active);
    served.twin.feed.publish([active.clone()]);
    assert_eq!(next(&mut events).await, active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_announced_as_what_it_is() {
    let served = Served::start(&[], Limits::default());
    served.twin.feed.begin([]);
    let text = until(&mut stream(&served).await, "event: synced").await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    for header in [
        "content-type: text/event-stream\r\n",
        "cache-control: no-store\r\n",
    ] {
        assert!(text.contains(header), "{header:?} is missing in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_where_it_was_after_its_connection_broke() {
    let mut served = Served::start(&[], Limits::default());
    served.twin.feed.begin([]);
    let mut events = served.client().events(None);
    assert_eq!(next(&mut events).await, Event::Reset);
    assert_eq!(next(&mut events).await, Event::Synced);
    served.stop.cancel();
    served.serving.take().unwrap().await.unwrap();
    let missed = instance(1, InstanceState::Armed);
    served.twin.feed.publish([missed.clone()]);
    let server = Server::bind(served.path(), Limits::default()).unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(Arc::clone(&served.twin), stop.clone()));
    assert_eq!(next(&mut events).await, missed);
    assert_eq!(next(&mut events).await, Event::Synced);
    drop(events);
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_without_an_agent_gives_up_after_its_patience() {
    let directory = tempfile::tempdir().unwrap();
    let client = nodeagent::api::Client::new(directory.path().join("api.sock"));
    let mut events = client
        .events(None)
        .with_patience(Duration::from_millis(100));
    let error = events.next().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_never_reads_is_disconnected_from_the_events() {
    let limits = Limits {
        write_stall: Duration::from_millis(100),
        streams: 1,
        ..Limits::default()
    };
    let served = Served::start(&[], limits);
    served.twin.feed.begin([]);
    let mut deaf = stream(&served).await;
    until(&mut deaf, "event: synced").await;
    // More than the socket's buffers hold, in one go.
    let burst = || (0..4000).map(|n| instance(n, InstanceState::Armed));
    served.twin.feed.publish(burst());
    // There is room for one stream: the next is served only once the deaf one is gone.
    let served_again = async {
        loop {
            let mut other = stream(&served).await;
            let mut head = [0; 12];
            other.read_exact(&mut head).await.unwrap();
            if &head == b"HTTP/1.1 200" {
                return;
            }
            assert_eq!(&head, b"HTTP/1.1 503");
            tokio::task::yield_now().await;
        }
    };
    let freed = tokio::time::timeout(WAIT, served_again).await;
    assert!(freed.is_ok(), "the deaf reader holds its stream after 5 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_over_the_bound_are_refused_and_other_requests_go_on() {
    let limits = Limits {
        streams: 2,
        ..Limits::default()
    };
    let served = Served::start(&[], limits);
    served.twin.feed.begin([]);
    let (mut one, mut two) = (stream(&served).await, stream(&served).await);
    until(&mut one, "synced").await;
    until(&mut two, "synced").await;
    let third = until(&mut stream(&served).await, "try again").await;
    assert!(third.starts_with("HTTP/1.1 503"), "{third}");
    assert!(third.contains("2 streams of events are open"), "{third}");
    served.client().status().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_stream_says_that_it_lives() {
    let limits = Limits {
        heartbeat: Duration::from_millis(20),
        ..Limits::default()
    };
    let served = Served::start(&[], limits);
    served.twin.feed.begin([]);
    let mut stream = stream(&served).await;
    until(&mut stream, ": alive\nid: feed.0\n\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_ends_its_streams_at_once() {
    let mut served = Served::start(&[], Limits::default());
    served.twin.feed.begin([]);
    let mut stream = stream(&served).await;
    until(&mut stream, "synced").await;
    served.stop.cancel();
    let stopped = tokio::time::timeout(WAIT, served.serving.take().unwrap()).await;
    assert!(stopped.is_ok(), "the server waits for its streams");
    ended(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_is_judged_like_every_parameter() {
    let served = Served::start(&[], Limits::default());
    served.twin.feed.begin([]);
    for (query, field) in [("?app=No", "?app"), ("?ap=web", "?ap")] {
        let mut stream = UnixStream::connect(served.path()).await.unwrap();
        let request = format!("GET /v1/events{query} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let text = until(&mut stream, "findings").await;
        assert!(text.starts_with("HTTP/1.1 400"), "{text}");
        assert!(text.contains(&format!("\"field\":\"{field}\"")), "{text}");
    }
}
