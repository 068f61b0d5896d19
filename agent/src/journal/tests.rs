//! The journal on a real file.

use std::time::Duration;

use super::*;
use crate::task::{EndState, Outcome, TaskContext, TaskId, Verb};

const KEEP: Duration = Duration::from_secs(3600);

fn task(id: &str, created_ms: u64) -> TaskRow {
    TaskRow {
        image: Default::default(),
        restart: None,
        roll: None,
        context: TaskContext {
            task_id: id.parse().unwrap(),
            traceparent: "00-1-1-01".into(),
        },
        app: "web".parse().unwrap(),
        verb: Verb::Activate,
        to: 2,
        hash: "h".into(),
        target: 2,
        seq: 1,
        created_ms,
        steady_ms: created_ms + 1,
        deadline_ms: 60_000,
    }
}

fn boot(id: &str) -> Write {
    Write::Boot {
        id: id.to_owned(),
        clock_offset_ms: -7,
    }
}

fn closed(id: &str) -> Write {
    Write::TaskClosed {
        task_id: id.parse().unwrap(),
        outcome: Outcome {
            state: EndState::Done,
            target: 2,
            target_seq: 1,
            active: 2,
            elapsed_us: 1500,
            finished_ms: 7,
            instances: Vec::new(),
            detail: None,
        },
        finished_ms: 7,
    }
}

fn id(text: &str) -> TaskId {
    text.parse().unwrap()
}

#[tokio::test]
async fn what_was_committed_is_there_after_the_process_is_gone() {
    let state = tempfile::tempdir().unwrap();
    let (journal, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_eq!((recovered.epoch, &recovered.loss), (1, &None));
    journal
        .commit(vec![
            Write::TaskOpened(task("t1", u64::MAX >> 2)),
            boot("b1"),
        ])
        .await
        .unwrap();
    drop(journal);
    let (journal, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_eq!(recovered.open_tasks, [task("t1", u64::MAX >> 2)]);
    assert_eq!(
        (
            recovered.boot_id.as_deref(),
            recovered.clock_offset_ms,
            recovered.epoch
        ),
        (Some("b1"), Some(-7), 1)
    );
    journal.commit(vec![closed("t1")]).await.unwrap();
    assert_eq!(
        journal
            .task(&id("t1"))
            .unwrap()
            .unwrap()
            .ended
            .unwrap()
            .1
            .active,
        2
    );
}

#[tokio::test]
async fn a_commit_is_whole_or_not_at_all_and_does_not_take_others_with_it() {
    let state = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(state.path(), KEEP).unwrap();
    journal
        .commit(vec![Write::TaskOpened(task("t1", 1 << 60))])
        .await
        .unwrap();
    // The second has an id that is there already: neither of its rows is written.
    let bad = journal.commit(vec![
        Write::TaskOpened(task("t2", 1 << 60)),
        Write::TaskOpened(task("t1", 1 << 60)),
    ]);
    let good = journal.commit(vec![Write::TaskOpened(task("t3", 1 << 60))]);
    let (bad, good) = tokio::join!(bad, good);
    assert!(matches!(bad, Err(JournalError::Commit(_))), "{bad:?}");
    good.unwrap();
    assert_eq!(journal.task(&id("t2")).unwrap(), None);
    assert!(journal.task(&id("t3")).unwrap().is_some());
}

#[tokio::test]
async fn commits_are_written_in_the_order_of_their_calls() {
    let state = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(state.path(), KEEP).unwrap();
    let first = journal.commit(vec![boot("1")]);
    let second = journal.commit(vec![boot("2")]);
    second.await.unwrap();
    first.await.unwrap();
    drop(journal);
    assert_eq!(
        Journal::open(state.path(), KEEP)
            .unwrap()
            .1
            .boot_id
            .as_deref(),
        Some("2")
    );
}

#[tokio::test]
async fn one_state_directory_has_one_agent() {
    let state = tempfile::tempdir().unwrap();
    let _first = Journal::open(state.path(), KEEP).unwrap();
    let second = Journal::open(state.path(), KEEP);
    assert!(
        matches!(&second, Err(JournalError::Locked { path }) if path == state.path()),
        "{second:?}"
    );
}

#[tokio::test]
async fn a_journal_of_a_newer_nodeagent_is_refused_and_left_alone() {
    let state = tempfile::tempdir().unwrap();
    drop(Journal::open(state.path(), KEEP).unwrap());
    let db = rusqlite::Connection::open(state.path().join("journal.db")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let refused = Journal::open(state.path(), KEEP).unwrap_err();
    assert!(
        refused.to_string().contains(&format!(
            "has schema 99, this nodeagent knows up to {}",
            schema::VERSION
        )),
        "{refused}"
    );
}

#[tokio::test]
async fn a_journal_of_before_host_ports_is_brought_up_to_date() {
    let state = tempfile::tempdir().unwrap();
    let db = rusqlite::Connection::open(state.path().join("journal.db")).unwrap();
    db.execute_batch(schema::V1).unwrap();
    db.execute_batch(
        "INSERT INTO instances VALUES ('web', 0, 2, 1, 'r', 'armed', 0, NULL, NULL, NULL, '10.88.0.1', 0, 'drain', NULL);
         PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(db);
    let (_journal, recovered) = Journal::open(state.path(), KEEP).unwrap();
    let [row] = recovered.instances.as_slice() else {
        panic!("{recovered:?}")
    };
    assert_eq!((row.generation, row.host_ports.as_slice()), (2, &[][..]));
}

#[tokio::test]
async fn tasks_are_listed_by_app_state_time_and_number() {
    let state = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(state.path(), Duration::MAX).unwrap();
    let mut other = task("o1", 3);
    other.app = "shop".parse().unwrap();
    let opened = [task("t1", 1), task("t2", 2), other, task("t4", 4)];
    let opened = opened.map(Write::TaskOpened).into();
    journal.commit(opened).await.unwrap();
    journal.commit(vec![closed("t2")]).await.unwrap();
    let all = TaskQuery {
        limit: 9,
        ..TaskQuery::default()
    };
    let listed = |query: TaskQuery| {
        let tasks = journal.tasks(&query).unwrap();
        let ids = tasks.iter().map(|t| t.row.context.task_id.to_string());
        ids.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(listed(all.clone()), "t4 o1 t2 t1");
    let web = Some("web".parse().unwrap());
    let of_web = TaskQuery {
        app: web,
        ..all.clone()
    };
    assert_eq!(listed(of_web.clone()), "t4 t2 t1");
    let open = TaskQuery {
        states: vec![None],
        ..of_web.clone()
    };
    assert_eq!(listed(open), "t4 t1");
    let done = vec![Some(EndState::Done), Some(EndState::Failed)];
    assert_eq!(
        listed(TaskQuery {
            states: done,
            ..all.clone()
        }),
        "t2"
    );
    assert_eq!(
        listed(TaskQuery {
            since_ms: 3,
            ..all.clone()
        }),
        "t4 o1"
    );
    assert_eq!(listed(TaskQuery { limit: 1, ..of_web }), "t4");
}

#[tokio::test]
async fn ended_tasks_are_removed_after_their_time_and_open_ones_never() {
    let state = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(state.path(), KEEP).unwrap();
    journal
        .commit(vec![
            Write::TaskOpened(task("old", 1)),
            Write::TaskOpened(task("open", 1)),
            closed("old"),
        ])
        .await
        .unwrap();
    drop(journal);
    let (journal, _) = Journal::open(state.path(), KEEP).unwrap();
    journal.commit(vec![boot("1")]).await.unwrap();
    // Behind the commit, in a quiet moment.
    let gone = async {
        while journal.task(&id("old")).unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .expect("the old task is removed within 10 s");
    assert!(journal.task(&id("open")).unwrap().is_some());
}

#[tokio::test]
async fn a_commit_finds_a_log_that_has_its_size_and_survives_a_crash_in_it() {
    let state = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(state.path(), KEEP).unwrap();
    journal.commit(vec![boot("boot-1")]).await.unwrap();
    let log = state.path().join("journal.db-wal");
    // The writer gives the log its size before it takes the first job.
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 4 << 20);

    // What a crash leaves: the files as they are, nothing closed.
    let crashed = tempfile::tempdir().unwrap();
    for file in ["journal.db", "journal.db-wal"] {
        std::fs::copy(state.path().join(file), crashed.path().join(file)).unwrap();
    }
    let (_, recovered) = Journal::open(crashed.path(), KEEP).unwrap();
    assert_eq!(recovered.boot_id.as_deref(), Some("boot-1"));
}

#[tokio::test]
async fn a_log_of_zeros_is_an_empty_log() {
    let state = tempfile::tempdir().unwrap();
    std::fs::write(state.path().join("journal.db-wal"), vec![0; 1 << 20]).unwrap();
    let (journal, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_eq!(recovered.loss, None);
    journal.commit(vec![boot("boot-1")]).await.unwrap();
    drop(journal);
    let (_, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_eq!(recovered.boot_id.as_deref(), Some("boot-1"));
}
