//! The store of blobs on a real file system: several writers, kills, boots, damage.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::fs;
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use imagecache::blobs::{Begun, Blobs, BlobsError, Check, CommitError, Partial};
use imagecache::{Descriptor, Digest};
use proptest::prelude::*;

const MIB: usize = 1 << 20;

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/octet-stream".to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
    }
}

fn open(root: &Path) -> Blobs {
    Blobs::open_in_boot(root, "boot-1").unwrap()
}

fn begin(blobs: &Blobs, bytes: &[u8]) -> Partial {
    match blobs.begin(&descriptor(bytes)).unwrap() {
        Begun::Partial(partial) => *partial,
        other => panic!("{other:?}"),
    }
}

fn put(blobs: &Blobs, bytes: &[u8]) {
    let partial = begin(blobs, bytes);
    partial.write_at(0, bytes).unwrap();
    partial.commit().unwrap();
}

fn only(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(at) = ahead.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => ahead.push(path),
                false => found.push(path.strip_prefix(root).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_blob_is_seen_when_it_is_whole_and_right_and_not_before() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    let bytes = content(3 * MIB + 17);
    let digest = Digest::of(&bytes);
    let partial = begin(&blobs, &bytes);
    partial.write_at(2 * MIB as u64, &bytes[2 * MIB..]).unwrap();
    assert!(blobs.find(&digest).unwrap().is_none());
    assert_eq!(partial.missing(), only(0..2 * MIB as u64));
    assert_eq!(partial.contiguous(), 0);
    partial.write_at(0, &bytes[..2 * MIB]).unwrap();
    assert_eq!(partial.contiguous(), bytes.len() as u64);
    assert!(blobs.find(&digest).unwrap().is_none());
    partial.commit().unwrap();
    let mut found = blobs.find(&digest).unwrap().unwrap();
    let mut read = Vec::new();
    found.file.read_to_end(&mut read).unwrap();
    assert!(read == bytes);
    assert!(
        found.file.write_at(b"x", 0).is_err(),
        "a reader cannot write"
    );
    assert_eq!(
        blobs.list().unwrap(),
        vec![(digest.clone(), bytes.len() as u64)]
    );
    assert!(matches!(
        blobs.begin(&descriptor(&bytes)).unwrap(),
        Begun::Present(_)
    ));
    assert!(blobs.remove(&digest).unwrap());
    assert!(!blobs.remove(&digest).unwrap());
    assert_eq!(files(root.path()), Vec::<String>::new());
}

#[test]
fn wrong_bytes_are_never_committed_and_nothing_of_them_stays() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    let bytes = content(MIB + 5);
    let partial = begin(&blobs, &bytes);
    let mut wrong = bytes.clone();
    wrong[MIB] ^= 1;
    partial.write_at(0, &wrong).unwrap();
    match partial.commit() {
        Err(CommitError::Mismatch {
            expected,
            got,
            resumed,
        }) => {
            assert_eq!(
                (expected, got, resumed),
                (Digest::of(&bytes), Digest::of(&wrong), 0)
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(files(root.path()), Vec::<String>::new());
    put(&blobs, &bytes);
}

#[test]
fn bytes_that_are_there_are_not_written_again() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    let bytes = content(2 * MIB);
    let partial = begin(&blobs, &bytes);
    partial.write_at(0, &bytes[..MIB]).unwrap();
    // A slow source that is wrong comes behind one that was right.
    partial.write_at(0, &vec![7; 2 * MIB]).unwrap();
    assert!(partial.missing().is_empty());
    assert!(matches!(
        partial.commit(),
        Err(CommitError::Mismatch { .. })
    ));
    let partial = begin(&blobs, &bytes);
    partial.write_at(0, &bytes).unwrap();
    partial.write_at(0, &vec![7; 2 * MIB]).unwrap();
    partial.commit().unwrap();
}

#[test]
fn a_blob_that_is_not_whole_is_refused_with_what_is_missing_and_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    let bytes = content(4 * MIB);
    let partial = begin(&blobs, &bytes);
    partial.write_at(0, &bytes[..3 * MIB]).unwrap();
    let error = partial.commit().unwrap_err();
    assert!(matches!(error, CommitError::Incomplete { missing, .. } if missing == MIB as u64));
    assert!(
        error.to_string().contains("1048576 of 4194304 bytes"),
        "{error}"
    );
    let partial = begin(&blobs, &bytes);
    assert_eq!(
        (partial.resumed(), partial.missing()),
        (3 * MIB as u64, only(3 * MIB as u64..4 * MIB as u64))
    );
    let error = partial
        .write_at(3 * MIB as u64, &content(MIB + 1))
        .unwrap_err();
    assert!(matches!(error, BlobsError::TooLong { .. }), "{error}");
    partial.write_at(3 * MIB as u64, &bytes[3 * MIB..]).unwrap();
    partial.commit().unwrap();
}

#[test]
fn a_process_that_is_gone_leaves_its_whole_pieces_to_the_next_one() {
    let root = tempfile::tempdir().unwrap();
    let bytes = content(5 * MIB + 100);
    let partial = begin(&open(root.path()), &bytes);
    partial.write_at(0, &bytes[..MIB + 10]).unwrap();
    partial.write_at(3 * MIB as u64, &bytes[3 * MIB..]).unwrap();
    drop(partial);
    let partial = begin(&open(root.path()), &bytes);
    assert_eq!(partial.missing(), only(MIB as u64..3 * MIB as u64));
    partial.write_at(MIB as u64, &bytes[MIB..3 * MIB]).unwrap();
    partial.commit().unwrap();
}

#[test]
fn a_partial_of_another_size_is_begun_anew() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    let bytes = content(2 * MIB);
    let lie = Descriptor {
        size: 3 * MIB as u64,
        ..descriptor(&bytes)
    };
    let Begun::Partial(partial) = blobs.begin(&lie).unwrap() else {
        panic!("a new blob")
    };
    partial.write_at(0, &bytes).unwrap();
    drop(partial);
    let partial = begin(&blobs, &bytes);
    assert_eq!(partial.missing(), only(0..2 * MIB as u64));
}

#[test]
fn one_writes_and_the_others_are_told_that_it_is_busy() {
    let root = tempfile::tempdir().unwrap();
    let bytes = content(MIB);
    let partial = begin(&open(root.path()), &bytes);
    assert!(matches!(
        open(root.path()).begin(&descriptor(&bytes)).unwrap(),
        Begun::Busy
    ));
    assert!(!open(root.path()).give_up(&descriptor(&bytes)).unwrap());
    partial.write_at(0, &bytes).unwrap();
    partial.commit().unwrap();
    assert!(matches!(
        open(root.path()).begin(&descriptor(&bytes)).unwrap(),
        Begun::Present(_)
    ));
}

#[test]
fn what_was_begun_can_be_given_up() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    let bytes = content(MIB);
    begin(&blobs, &bytes).write_at(0, &bytes).unwrap();
    assert!(blobs.give_up(&descriptor(&bytes)).unwrap());
    assert_eq!(files(root.path()), Vec::<String>::new());
}

#[test]
fn an_empty_blob_is_a_blob() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    begin(&blobs, b"").commit().unwrap();
    assert_eq!(blobs.find(&Digest::of(b"")).unwrap().unwrap().size, 0);
}

#[test]
fn a_check_removes_what_is_damaged() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    let bytes = content(MIB);
    let digest = Digest::of(&bytes);
    assert_eq!(blobs.check(&digest).unwrap(), Check::Absent);
    put(&blobs, &bytes);
    assert_eq!(
        blobs.check(&digest).unwrap(),
        Check::Right { size: MIB as u64 }
    );
    let path = blobs.find(&digest).unwrap().unwrap().path;
    let mut damaged = bytes.clone();
    damaged[99] ^= 1;
    fs::write(&path, &damaged).unwrap();
    assert_eq!(
        blobs.check(&digest).unwrap(),
        Check::Damaged {
            got: Digest::of(&damaged)
        }
    );
    assert!(blobs.find(&digest).unwrap().is_none());
    assert_eq!(files(root.path()), Vec::<String>::new());
}

#[test]
fn what_a_boot_left_unsettled_is_hashed_before_anybody_has_it() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    let [settled, whole, torn] = [content(10), content(20), content(30)];
    put(&blobs, &settled);
    assert_eq!(blobs.unsettled().settle(&[]).unwrap(), 1);
    assert_eq!(blobs.unsettled().settle(&[]).unwrap(), 0);
    put(&blobs, &whole);
    put(&blobs, &torn);
    // What a power cut leaves of bytes that were not written: zeros.
    for bytes in [&settled, &torn] {
        let path = blobs.find(&Digest::of(bytes)).unwrap().unwrap().path;
        fs::write(path, vec![0; bytes.len()]).unwrap();
    }
    // The same boot: an agent that is restarted hashes nothing.
    assert!(
        open(root.path())
            .find(&Digest::of(&torn))
            .unwrap()
            .is_some()
    );
    let next = Blobs::open_in_boot(root.path(), "boot-2").unwrap();
    let mut suspects = vec![
        Digest::of(&whole).hex().to_owned(),
        Digest::of(&torn).hex().to_owned(),
    ];
    suspects.sort();
    assert_eq!(next.unsettled().all_suspects(), suspects);
    assert!(next.find(&Digest::of(&whole)).unwrap().is_some());
    assert!(next.find(&Digest::of(&torn)).unwrap().is_none());
    // It was on the disk, for all we know: only `check` looks again.
    assert!(next.find(&Digest::of(&settled)).unwrap().is_some());
    assert!(matches!(
        next.check(&Digest::of(&settled)).unwrap(),
        Check::Damaged { .. }
    ));
    assert_eq!(next.unsettled().all_suspects(), Vec::<String>::new());
    assert_eq!(
        files(root.path()),
        vec![format!("blobs/sha256/{}", Digest::of(&whole).hex())]
    );
}

#[test]
fn what_work_under_way_needs_is_not_removed() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    let bytes = content(10);
    let digest = Digest::of(&bytes);
    put(&blobs, &bytes);
    let two = [(); 2].map(|()| blobs.need([digest.clone()].into_iter()));
    for needed in two {
        assert!(!blobs.remove(&digest).unwrap());
        drop(needed);
    }
    assert!(blobs.remove(&digest).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn however_many_write_in_whatever_pieces_the_blob_is_the_same(
        size in 0_usize..5 * MIB,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        writers in 1_usize..5,
    ) {
        let root = tempfile::tempdir().unwrap();
        let blobs = open(root.path());
        let bytes = content(size);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(size + 1)).chain([0, size]).collect();
        cuts.sort_unstable();
        let partial = begin(&blobs, &bytes);
        std::thread::scope(|scope| {
            for writer in 0..writers {
                let (cuts, bytes, partial) = (&cuts, &bytes, &partial);
                // Each writes all, in another order: whoever is first has it.
                scope.spawn(move || for step in 0..cuts.len() - 1 {
                    let step = (step + writer * 3) % (cuts.len() - 1);
                    partial.write_at(cuts[step] as u64, &bytes[cuts[step]..cuts[step + 1]]).unwrap();
                });
            }
        });
        let mut found = partial.commit().unwrap();
        let mut read = Vec::new();
        found.file.read_to_end(&mut read).unwrap();
        prop_assert!(read == bytes);
    }
}

/// As if nobody had written to it for an hour.
fn age(path: &Path) {
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(hour_ago).unwrap();
}

#[test]
fn what_no_image_names_goes_when_it_is_old_and_nobody_writes_it() {
    let root = tempfile::tempdir().unwrap();
    let blobs = open(root.path());
    let named = content(3 * MIB);
    let [unnamed, young, given_up, under_way] =
        [1, 2, 3, 4].map(|by| content(MIB + by).into_iter().rev().collect::<Vec<u8>>());
    for bytes in [&named, &unnamed, &young] {
        put(&blobs, bytes);
    }
    let partial = begin(&blobs, &given_up);
    partial.write_at(0, &given_up[..MIB / 2]).unwrap();
    drop(partial);
    let writing = begin(&blobs, &under_way);
    writing.write_at(0, &under_way[..MIB / 2]).unwrap();
    let hex = |bytes: &[u8]| Digest::of(bytes).hex().to_owned();
    for bytes in [&named, &unnamed] {
        age(&root.path().join("blobs/sha256").join(hex(bytes)));
    }
    for bytes in [&given_up, &under_way] {
        age(&root.path().join("partial").join(hex(bytes)));
    }
    let keep = [Digest::of(&named)].into_iter().collect();
    let untouched = std::time::Duration::from_secs(1800);
    let bytes = blobs.remove_unnamed(&keep, untouched).unwrap();
    assert!(bytes > unnamed.len() as u64, "{bytes}");
    let left = files(root.path()).join("\n");
    for (bytes, stays) in [
        (&named, true),
        (&young, true),
        (&under_way, true),
        (&unnamed, false),
        (&given_up, false),
    ] {
        assert_eq!(left.contains(&hex(bytes)), stays, "{left}");
    }
    assert_eq!(blobs.remove_unnamed(&keep, untouched).unwrap(), 0);
    writing.write_at(0, &under_way).unwrap();
    writing.commit().unwrap();
}
