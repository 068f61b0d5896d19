use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// Longest wait for what should come at once.
const SOON: Duration = Duration::from_secs(10);

struct Container {
    root: TempDir,
}

impl Container {
    fn new(log: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("log")).unwrap();
        fs::write(root.path().join("log/app.log"), log).unwrap();
        Self { root }
    }

    fn log(&self) -> PathBuf {
        self.root.path().join("log")
    }

    fn write(&self, text: &str) {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.log().join("app.log"));
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn read(&self, extent: Extent) -> mpsc::Receiver<io::Result<Bytes>> {
        read(&self.log(), "app", extent).unwrap()
    }
}

fn extent(tail: Option<u64>, follow: Follow) -> Extent {
    Extent {
        tail,
        since: None,
        follow,
    }
}

async fn whole(mut pieces: mpsc::Receiver<io::Result<Bytes>>) -> String {
    let mut text = Vec::new();
    while let Some(piece) = timeout(SOON, pieces.recv())
        .await
        .expect("the log does not end")
    {
        text.extend_from_slice(&piece.unwrap());
    }
    String::from_utf8(text).unwrap()
}

/// Reads until `text` was told, which is all that may come.
async fn hear(pieces: &mut mpsc::Receiver<io::Result<Bytes>>, text: &str) {
    let mut heard = Vec::new();
    while heard.len() < text.len() {
        let piece = timeout(SOON, pieces.recv()).await;
        let piece = piece.unwrap_or_else(|_| panic!("only {:?}", String::from_utf8_lossy(&heard)));
        heard.extend_from_slice(&piece.expect("the log has ended").unwrap());
    }
    assert_eq!(String::from_utf8(heard).unwrap(), text);
}

#[tokio::test]
async fn the_last_lines_are_told_whether_the_last_is_finished_or_not() {
    for (log, tail, told) in [
        ("a\nb\nc\n", Some(2), "b\nc\n"),
        ("a\nb\nc", Some(2), "b\nc"),
        ("a\nb\n", Some(9), "a\nb\n"),
        ("a\nb\n", Some(0), ""),
        ("a\nb\n", None, "a\nb\n"),
        ("\n\n\n", Some(1), "\n"),
        ("", Some(3), ""),
    ] {
        let container = Container::new(log);
        let pieces = container.read(extent(tail, Follow::No));
        assert_eq!(whole(pieces).await, told, "{tail:?} of {log:?}");
    }
    let long = Container::new(&"0123456789abcde\n".repeat(100_000));
    let told = whole(long.read(extent(Some(50_000), Follow::No))).await;
    assert_eq!(told.lines().count(), 50_000);
}

#[tokio::test]
async fn a_log_that_nobody_wrote_to_of_late_is_left_out() {
    let container = Container::new("old\n");
    let file = OpenOptions::new()
        .append(true)
        .open(container.log().join("app.log"))
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600))
        .unwrap();
    let since = |seconds| Extent {
        since: Some(Duration::from_secs(seconds)),
        ..extent(None, Follow::No)
    };
    assert_eq!(whole(container.read(since(60))).await, "");
    assert_eq!(whole(container.read(since(7200))).await, "old\n");
}

#[tokio::test]
async fn a_follower_goes_on_across_rotation_and_truncation_and_ends_with_the_instance() {
    let container = Container::new("one\n");
    let mut pieces = container.read(extent(Some(1), Follow::Yes));
    hear(&mut pieces, "one\n").await;
    container.write("two\n");
    hear(&mut pieces, "two\n").await;

    let (log, old) = (
        container.log().join("app.log"),
        container.log().join("app.log.1"),
    );
    fs::rename(&log, &old).unwrap();
    // The process still writes where it wrote before.
    let mut rotated = OpenOptions::new().append(true).open(&old).unwrap();
    rotated.write_all(b"three\n").unwrap();
    container.write("four\n");
    hear(&mut pieces, "three\nfour\n").await;

    fs::write(&log, "5\n").unwrap();
    hear(&mut pieces, "5\n").await;

    container.write("last words\n");
    fs::remove_dir_all(container.log()).unwrap();
    assert!(whole(pieces).await.ends_with("last words\n"));
}

#[tokio::test]
async fn the_app_has_an_empty_log_before_its_first_line_and_others_have_none() {
    let container = Container::new("");
    fs::remove_file(container.log().join("app.log")).unwrap();
    let said = whole(container.read(extent(Some(5), Follow::No))).await;
    assert_eq!(said, "");
    let mut pieces = container.read(extent(Some(0), Follow::Yes));
    container.write("first\n");
    hear(&mut pieces, "first\n").await;
    fs::remove_dir_all(container.log()).unwrap();
    assert_eq!(whole(pieces).await, "");
    let gone = read(&container.log(), "app", extent(None, Follow::No));
    assert_eq!(gone.unwrap_err().to_string(), "it cannot be opened");
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_following_and_one_that_waits_costs_four_pieces() {
    let container = Container::new(&"x".repeat(10 * 1024 * 1024));
    let mut pieces = container.read(extent(None, Follow::Yes));
    assert!(pieces.recv().await.unwrap().unwrap().len() <= 32 * 1024);
    assert!(pieces.len() <= QUEUE);
    drop(pieces);
}

#[tokio::test]
async fn what_a_container_put_in_place_of_its_log_is_not_read() {
    let container = Container::new("");
    let log = container.log();
    symlink("/etc/passwd", log.join("link.log")).unwrap();
    fs::hard_link(log.join("app.log"), log.join("twice.log")).unwrap();
    fs::create_dir(log.join("directory.log")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        log.join("fifo.log"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    for (process, why) in [
        ("link", "it is a symbolic link"),
        ("twice", "it has another name"),
        ("directory", "it is not a regular file"),
        ("fifo", "it is not a regular file"),
        ("nobody", "it cannot be opened"),
        ("../log/app", "it leads out of its directory"),
    ] {
        let error = read(&log, process, extent(None, Follow::No)).unwrap_err();
        assert_eq!(error.to_string(), why, "{process}");
    }
    assert_eq!(
        processes(&log),
        ["app", "directory", "fifo", "link", "twice"]
    );
}
