//! Journals that are lost, damaged, newer or older.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::*;
use crate::instance::{ImageConfig, InstanceName, Phase, Revision, Urgency};
use crate::pool::Evidence;
use crate::runtime::Image;

const KEEP: Duration = Duration::from_secs(3600);

fn revision(id: &str) -> Arc<Revision> {
    let manifest = "apiVersion: nodeagent/v1\nkind: App\nmetadata: {name: web}\nspec:\n  image: 127.0.0.1:5000/web:1\n  \
         ports: [{name: http, containerPort: 8080}]\n";
    Arc::new(Revision {
        id: id.to_owned(),
        app: crate::app::parse(manifest).unwrap(),
        manifest: manifest.to_owned(),
        image: Image {
            reference: "127.0.0.1:5000/web:1".into(),
            digest: "sha256:1".into(),
            config_digest: "sha256:2".into(),
            chain_id: "sha256:3".into(),
            config: ImageConfig::default(),
        },
    })
}

fn instance(ordinal: u32) -> InstanceRow {
    InstanceRow {
        instance: InstanceName::new("web".parse().unwrap(), ordinal),
        generation: 3,
        create_generation: 2,
        rootfs_generation: 2,
        revision: "r1".into(),
        phase: Phase::Active,
        serving: true,
        from: None,
        task: None,
        address: Some([10, 88, 0, 7].into()),
        registered: true,
        urgency: Urgency::Drain,
        released_ms: None,
        host_ports: Vec::new(),
        reuses: 0,
    }
}

/// A journal with an app and `instances`, closed; all of it is in the main file.
async fn written(state: &Path, instances: u32) {
    let (journal, _) = Journal::open(state, KEEP).unwrap();
    let mut writes = vec![
        Write::Boot {
            id: "b1".to_owned(),
            clock_offset_ms: 0,
        },
        Write::Revision(revision("r1"), 7),
        Write::Target {
            app: "web".parse().unwrap(),
            target: instances,
            seq: 4,
        },
        Write::Stable(
            "web".parse().unwrap(),
            Some(StableRow {
                revision: "r1".to_owned(),
                evidence: Evidence::ByHand,
                since_ms: 9,
            }),
        ),
    ];
    writes.extend((0..instances).map(|n| Write::Instance(instance(n))));
    journal.commit(writes).await.unwrap();
    drop(journal);
    let db = Connection::open(state.join("journal.db")).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
}

/// The journal was lost, and what outlives it is there.
fn assert_lost(recovered: &Recovered, epoch: u64, reason: &str) {
    let loss = recovered.loss.as_ref().expect("the loss is known");
    assert!(loss.reason.contains(reason), "{loss:?}");
    assert!(!loss.rebuilt);
    assert_eq!(recovered.epoch, epoch);
    assert_eq!(
        (recovered.instances.len(), recovered.boot_id.as_ref()),
        (0, None)
    );
    let pools: Vec<_> = recovered.pools.iter().collect();
    assert_eq!(pools.len(), 1, "{pools:?}");
    assert_eq!((pools[0].revision.as_str(), pools[0].applied_ms), ("r1", 7));
    assert_eq!(recovered.revisions[0].manifest, revision("r1").manifest);
    assert_eq!(recovered.revisions[0].image, revision("r1").image);
}

#[tokio::test]
async fn a_deleted_journal_begins_the_next_epoch_with_the_manifests() {
    let state = tempfile::tempdir().unwrap();
    written(state.path(), 2).await;
    for file in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        let _ = fs::remove_file(state.path().join(file));
    }
    let (journal, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_lost(&recovered, 2, "missing");
    assert_eq!(recovered.loss.unwrap().set_aside, None);
    drop(journal);
    // Killed before it was rebuilt: the next start finds the same.
    let (journal, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_lost(&recovered, 2, "missing");
    let loss = recovered.loss.unwrap();
    let rebuilt = Loss {
        rebuilt: true,
        ..loss
    };
    journal
        .commit(vec![Write::Loss(rebuilt), Write::Floor(1_000_000)])
        .await
        .unwrap();
    journal.commit(vec![Write::Accepted]).await.unwrap();
    drop(journal);
    let (_, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_eq!(
        (recovered.epoch, recovered.floor, recovered.loss),
        (2, 1_000_000, None)
    );
}

#[tokio::test]
async fn a_truncated_or_emptied_journal_is_set_aside() {
    for (length, reason) in [(0, "empty"), (5000, ""), (100, "")] {
        let state = tempfile::tempdir().unwrap();
        written(state.path(), 40).await;
        let path = state.path().join("journal.db");
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        let (_journal, recovered) = Journal::open(state.path(), KEEP).unwrap();
        assert_lost(&recovered, 2, reason);
        let aside = recovered.loss.unwrap().set_aside.unwrap();
        assert_eq!(fs::metadata(&aside).unwrap().len(), length);
        assert!(!state.path().join("journal.damaged").exists());
    }
}

#[tokio::test]
async fn a_journal_that_lost_its_log_and_has_no_tables_is_no_new_one() {
    let state = tempfile::tempdir().unwrap();
    written(state.path(), 2).await;
    for file in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        let _ = fs::remove_file(state.path().join(file));
    }
    let db = Connection::open(state.path().join("journal.db")).unwrap();
    db.pragma_update(None, "journal_mode", "wal").unwrap();
    drop(db);
    let (_journal, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_lost(&recovered, 2, "no tables");
}

#[tokio::test]
async fn a_flipped_bit_is_found_or_changes_nothing_that_a_start_continues_from() {
    let state = tempfile::tempdir().unwrap();
    written(state.path(), 40).await;
    let path = state.path().join("journal.db");
    let sound = fs::read(&path).unwrap();
    let before = Journal::open(state.path(), KEEP).unwrap().1;
    let (mut found, mut unseen) = (0, 0);
    // The header of the file and of every page: what SQLite can tell. A flip inside a value is a
    // value.
    let headers = (0..sound.len()).step_by(4096).flat_map(|page| {
        let header = if page == 0 { 100 } else { 0 };
        (header..header + 8).map(move |byte| page + byte)
    });
    for at in (0..16).chain(headers) {
        let mut flipped = sound.clone();
        flipped[at] ^= 1 << (at % 8);
        let spoilt = tempfile::tempdir().unwrap();
        fs::write(spoilt.path().join("journal.db"), &flipped).unwrap();
        fs::write(spoilt.path().join("epoch"), "1\n").unwrap();
        fs::create_dir(spoilt.path().join("apps")).unwrap();
        let copy = state.path().join("apps/web.json");
        fs::copy(copy, spoilt.path().join("apps/web.json")).unwrap();
        match Journal::open(spoilt.path(), KEEP) {
            Ok((_, recovered)) if recovered.loss.is_some() => {
                assert_lost(&recovered, 2, "");
                found += 1;
            }
            Ok((_, recovered)) => {
                assert_eq!(recovered, before, "byte {at}");
                unseen += 1;
            }
            Err(error) => panic!("byte {at}: {error:?}"),
        }
    }
    assert!(found > unseen, "{found} found, {unseen} unseen");
}

#[tokio::test]
async fn damage_that_is_found_in_use_ends_the_agent_and_the_next_start_sets_the_journal_aside() {
    let state = tempfile::tempdir().unwrap();
    written(state.path(), 2).await;
    {
        // A table that no start needs: the check behind it finds what was done to it.
        let db = Connection::open(state.path().join("journal.db")).unwrap();
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900)
            INSERT INTO trails SELECT 'task-' || i, hex(randomblob(60)) FROM n";
        db.execute_batch(fill).unwrap();
        let page: i64 = db
            .query_row(
                "SELECT rootpage FROM sqlite_schema WHERE name = 'trails'",
                [],
                |r| r.get(0),
            )
            .unwrap();
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        drop(db);
        let path = state.path().join("journal.db");
        let mut bytes = fs::read(&path).unwrap();
        let at = (usize::try_from(page).unwrap() - 1) * 4096;
        bytes[at..at + 64].fill(0xff);
        fs::write(&path, bytes).unwrap();
    }
    let (journal, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_eq!(recovered.loss, None, "the start needs none of it");
    let told = tokio::time::timeout(Duration::from_secs(20), journal.damaged()).await;
    assert!(matches!(told, Ok(JournalError::Damaged { .. })), "{told:?}");
    drop(journal);
    let (_, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_lost(&recovered, 2, "");
}

#[tokio::test]
async fn a_copy_follows_what_is_applied_and_goes_with_the_app() {
    let state = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(state.path(), KEEP).unwrap();
    let copy = state.path().join("apps/web.json");
    journal
        .commit(vec![Write::Revision(revision("r1"), 7)])
        .await
        .unwrap();
    assert!(fs::read_to_string(&copy).unwrap().contains("\"r1\""));
    journal
        .commit(vec![Write::Revision(revision("r2"), 8)])
        .await
        .unwrap();
    let text = fs::read_to_string(&copy).unwrap();
    assert!(
        text.contains("\"current\": \"r2\"") && text.contains("\"r1\""),
        "{text}"
    );
    journal
        .commit(vec![Write::AppGone("web".parse().unwrap())])
        .await
        .unwrap();
    assert!(!copy.exists());
    // What a kill between commit and copy left is put right by the next start.
    journal
        .commit(vec![Write::Revision(revision("r3"), 9)])
        .await
        .unwrap();
    drop(journal);
    fs::remove_file(&copy).unwrap();
    fs::write(state.path().join("apps/gone.json"), "{}").unwrap();
    drop(Journal::open(state.path(), KEEP).unwrap());
    assert!(copy.exists() && !state.path().join("apps/gone.json").exists());
}

#[tokio::test]
async fn a_journal_of_the_first_schema_is_brought_forward() {
    let state = tempfile::tempdir().unwrap();
    let db = Connection::open(state.path().join("journal.db")).unwrap();
    db.execute_batch(include_str!("testdata/v1.sql")).unwrap();
    drop(db);
    let (journal, recovered) = Journal::open(state.path(), KEEP).unwrap();
    assert_eq!((recovered.epoch, recovered.floor), (1, 0));
    assert_eq!((recovered.pools[0].target, recovered.pools[0].seq), (2, 5));
    let rows: Vec<_> = recovered
        .instances
        .iter()
        .map(|row| {
            (
                row.instance.to_string(),
                row.generation,
                row.rootfs_generation,
                row.phase,
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("web-0".to_owned(), 4, 3, Phase::Active),
            ("web-1".to_owned(), 2, 2, Phase::Armed)
        ]
    );
    assert_eq!(recovered.open_tasks.len(), 1);
    assert!(journal.task(&"up".parse().unwrap()).unwrap().is_some());
}
