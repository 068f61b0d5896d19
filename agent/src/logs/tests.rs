use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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

    /// As container-init does it.
    fn rotate(&self, max_files: u8) {
        let path = |number| match number {
            0 => self.log().join("app.log"),
            number => self.log().join(format!("app.log.{number}")),
        };
        for from in (0..max_files - 1).rev() {
            match fs::rename(path(from), path(from + 1)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done.unwrap(),
            }
        }
    }

    fn write(&self, text: &str) {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.log().join("app.log"));
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn read(&self, extent: Extent) -> mpsc::Receiver<io::Result<Bytes>> {
        read(&self.log(), "app", &extent).unwrap()
    }
}

fn extent(tail: Option<u64>, follow: Follow) -> Extent {
    Extent {
        tail,
        since: None,
        stream: None,
        timestamps: false,
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
        since: Some(SystemTime::now() - Duration::from_secs(seconds)),
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

    let log = container.log().join("app.log");
    container.rotate(3);
    // The process still writes where it wrote before.
    let mut rotated = OpenOptions::new()
        .append(true)
        .open(log.with_extension("log.1"))
        .unwrap();
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
    let gone = read(&container.log(), "app", &extent(None, Follow::No));
    assert_eq!(gone.unwrap_err().to_string(), "it cannot be opened");
}

#[tokio::test]
async fn a_reader_that_leaves_ends_the_following_and_one_that_waits_costs_four_pieces() {
    let container = Container::new(&"x".repeat(10 * 1024 * 1024));
    let mut pieces = container.read(extent(None, Follow::Yes));
    // A line without an end is told when it is longer than what is held of it.
    assert!(pieces.recv().await.unwrap().unwrap().len() <= 96 * 1024);
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
        let error = read(&log, process, &extent(None, Follow::No)).unwrap_err();
        assert_eq!(error.to_string(), why, "{process}");
    }
    assert_eq!(
        processes(&log),
        ["app", "directory", "fifo", "link", "twice"]
    );
}

#[tokio::test]
async fn lines_are_read_and_counted_across_rotated_files() {
    let container = Container::new("1\n2\n");
    container.rotate(5);
    container.write("3\n4\n");
    container.rotate(5);
    container.write("5\n");
    for (tail, told) in [
        (None, "1\n2\n3\n4\n5\n"),
        (Some(1), "5\n"),
        (Some(2), "4\n5\n"),
        (Some(4), "2\n3\n4\n5\n"),
        (Some(5), "1\n2\n3\n4\n5\n"),
        (Some(9), "1\n2\n3\n4\n5\n"),
    ] {
        let pieces = container.read(extent(tail, Follow::No));
        assert_eq!(whole(pieces).await, told, "{tail:?}");
    }
    let mut pieces = container.read(extent(Some(3), Follow::Yes));
    hear(&mut pieces, "3\n4\n5\n").await;
    container.write("6\n");
    hear(&mut pieces, "6\n").await;
    // The disk is full: the next file could not be made.
    container.rotate(5);
    let pieces = container.read(extent(Some(2), Follow::No));
    assert_eq!(whole(pieces).await, "5\n6\n");
}

#[tokio::test]
async fn a_file_that_was_written_to_last_before_is_left_out_and_records_are_judged_by_their_times()
{
    let at = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + second);
    let line = |second, text: &str| {
        let time = String::from_utf8(spelled(at(second)).to_vec()).unwrap();
        format!("{time} stdout F {text}\n")
    };
    let container = Container::new("plain\n");
    let written = |second| {
        let file = fs::File::open(container.log().join("app.log")).unwrap();
        file.set_modified(at(second)).unwrap();
    };
    written(10);
    container.rotate(5);
    container.write(&[line(20, "twenty"), line(30, "thirty")].concat());
    written(30);
    container.rotate(5);
    container.write(&line(40, "forty"));
    written(40);
    for (since, tail, told) in [
        (5, None, "plain\ntwenty\nthirty\nforty\n"),
        (12, None, "twenty\nthirty\nforty\n"),
        (21, None, "thirty\nforty\n"),
        (30, None, "thirty\nforty\n"),
        (35, None, "forty\n"),
        (45, None, ""),
        (5, Some(4), "plain\ntwenty\nthirty\nforty\n"),
        (12, Some(9), "twenty\nthirty\nforty\n"),
        (21, Some(1), "forty\n"),
        (21, Some(9), "thirty\nforty\n"),
        (45, Some(9), ""),
    ] {
        let pieces = container.read(Extent {
            since: Some(at(since)),
            ..extent(tail, Follow::No)
        });
        assert_eq!(whole(pieces).await, told, "{since} {tail:?}");
    }
}

/// Writes numbered lines and rotates all the time, never more files ahead of its reader than are
/// kept.
fn write_and_rotate(container: &Container, lines: usize, read: &AtomicUsize) {
    const PER_FILE: usize = 10;
    for number in 0..lines {
        if number % PER_FILE == 0 {
            let limit = std::time::Instant::now() + SOON;
            while number > read.load(Ordering::Acquire) + 3 * PER_FILE {
                assert!(
                    std::time::Instant::now() < limit,
                    "the reader does not read"
                );
                std::thread::yield_now();
            }
            container.rotate(5);
        }
        container.write(&format!("{number}\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_loses_and_repeats_nothing_however_fast_files_move() {
    const LINES: usize = 4000;
    let container = Arc::new(Container::new(""));
    let read = Arc::new(AtomicUsize::new(0));
    let mut pieces = container.read(extent(None, Follow::Yes));
    let writer = {
        let (container, read) = (Arc::clone(&container), Arc::clone(&read));
        std::thread::spawn(move || write_and_rotate(&container, LINES, &read))
    };
    let mut told = Vec::new();
    let mut expected = 0;
    while expected < LINES {
        let piece = timeout(SOON, pieces.recv()).await.expect("no more comes");
        told.extend_from_slice(&piece.unwrap().unwrap());
        while let Some(end) = told.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = told.drain(..=end).collect();
            assert_eq!(String::from_utf8(line).unwrap(), format!("{expected}\n"));
            expected += 1;
        }
        read.store(expected, Ordering::Release);
    }
    writer.join().unwrap();
}

#[tokio::test]
async fn what_was_moved_away_before_it_was_read_is_told_as_missing() {
    let container = Container::new("1\n");
    let mut pieces = container.read(extent(None, Follow::Yes));
    hear(&mut pieces, "1\n").await;
    let path = |name: &str| container.log().join(name);
    fs::write(path("next"), "5\n").unwrap();
    fs::rename(path("next"), path("app.log")).unwrap();
    hear(
        &mut pieces,
        "nodeagent: lines may be missing here: the log was rotated faster than it was read\n5\n",
    )
    .await;
}

#[tokio::test]
async fn a_reader_that_does_not_follow_ends_at_the_end_that_was_there() {
    let container = Container::new(&"old\n".repeat(100_000));
    container.rotate(5);
    container.write(&"new\n".repeat(100_000));
    let mut pieces = container.read(extent(None, Follow::No));
    let first = pieces.recv().await.unwrap().unwrap();
    container.write("later\n");
    container.rotate(5);
    container.write("latest\n");
    let text = String::from_utf8(first.to_vec()).unwrap() + &whole(pieces).await;
    let expected = ["old\n".repeat(100_000), "new\n".repeat(100_000)].concat();
    assert!(text == expected, "{} bytes", text.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_moved_in_circles_keep_nobody() {
    let container = Arc::new(Container::new("a\n"));
    fs::write(container.log().join("app.log.1"), "b\n").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mover = {
        let (container, stop) = (Arc::clone(&container), Arc::clone(&stop));
        std::thread::spawn(move || {
            let path = |name: &str| container.log().join(name);
            while !stop.load(Ordering::Acquire) {
                for (from, to) in [
                    ("app.log", "x"),
                    ("app.log.1", "app.log"),
                    ("x", "app.log.1"),
                ] {
                    fs::rename(path(from), path(to)).unwrap();
                }
            }
        })
    };
    for _ in 0..20 {
        for tail in [None, Some(1), Some(9)] {
            // What is told of such a log is its container's affair.
            if let Ok(pieces) = read(&container.log(), "app", &extent(tail, Follow::No)) {
                let mut pieces = pieces;
                while timeout(SOON, pieces.recv())
                    .await
                    .expect("the log does not end")
                    .is_some()
                {}
            }
            let mut pieces = read(&container.log(), "app", &extent(tail, Follow::Yes)).ok();
            if let Some(pieces) = &mut pieces {
                timeout(Duration::from_millis(1), pieces.recv()).await.ok();
            }
        }
    }
    stop.store(true, Ordering::Release);
    mover.join().unwrap();
}
