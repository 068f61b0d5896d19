//! What every [`ContentStore`] must do, as one suite for all of them. It panics with the claim that
//! failed, so it belongs into a test; the store must not hold the suite's blobs beforehand.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{Begun, BlobWriter as _, ContentStore, Descriptor, Digest, StoreError};

/// Runs the whole suite against `store`.
pub async fn content_store<S: ContentStore>(store: &S) {
    a_blob_is_seen_only_after_its_commit(store).await;
    a_blob_that_is_there_is_not_written_again(store).await;
    two_writers_of_one_blob_make_one_blob(store).await;
    what_was_not_announced_is_not_committed(store).await;
    what_was_given_up_never_was(store).await;
    reading_is_whole_and_bounded(store).await;
    labels_add_up(store).await;
}

async fn a_blob_is_seen_only_after_its_commit<S: ContentStore>(store: &S) {
    let (blob, bytes) = sample("committed");
    let mut writer = writer(store, &blob).await;
    let (front, back) = (bytes.slice(..3), bytes.slice(3..));
    writer.write(front).await.expect("first half is written");
    writer.write(back).await.expect("second half is written");
    assert!(
        !seen(store, &blob).await,
        "a blob is seen before its commit"
    );
    writer.commit().await.expect("whole blob is committed");
    assert!(seen(store, &blob).await, "a committed blob is not seen");
}

async fn a_blob_that_is_there_is_not_written_again<S: ContentStore>(store: &S) {
    let (blob, bytes) = sample("twice");
    put(store, &blob, bytes).await;
    let again = store.begin(&blob).await.expect("begun");
    assert!(
        matches!(again, Begun::Present),
        "a present blob wants to be written again"
    );
}

async fn two_writers_of_one_blob_make_one_blob<S: ContentStore>(store: &S) {
    let (blob, bytes) = sample("raced");
    let (mut one, mut two) = (writer(store, &blob).await, writer(store, &blob).await);
    one.write(bytes.clone()).await.expect("one writes");
    two.write(bytes.clone())
        .await
        .expect("two writes beside it");
    one.commit().await.expect("one commits");
    two.commit()
        .await
        .expect("two commits what is there already");
    assert_eq!(store.read(&blob.digest, 1024).await.expect("read"), bytes);
}

async fn what_was_not_announced_is_not_committed<S: ContentStore>(store: &S) {
    for written in [&b"other bytes"[..], b"shor", b"announced and more"] {
        let (blob, _) = sample("announced");
        let mut writer = writer(store, &blob).await;
        // A store may refuse as soon as it knows, or at the commit.
        let refused = match writer.write(Bytes::copy_from_slice(written)).await {
            Ok(()) => writer.commit().await,
            Err(early) => Err(early),
        };
        let error = refused.expect_err("wrong bytes were committed");
        assert!(
            matches!(&error, StoreError::Mismatch { digest } if *digest == blob.digest),
            "{error:?}"
        );
        assert!(!seen(store, &blob).await, "wrong bytes are seen");
    }
}

async fn what_was_given_up_never_was<S: ContentStore>(store: &S) {
    let (blob, bytes) = sample("given up");
    let mut aborted = writer(store, &blob).await;
    aborted
        .write(bytes.slice(..4))
        .await
        .expect("half is written");
    aborted.abort().await;
    let mut dropped = writer(store, &blob).await;
    dropped
        .write(bytes.slice(..4))
        .await
        .expect("half is written");
    drop(dropped);
    assert!(!seen(store, &blob).await, "half a blob is seen");
    put(store, &blob, bytes).await;
}

async fn reading_is_whole_and_bounded<S: ContentStore>(store: &S) {
    // Larger than one message of any transport in use.
    let bytes = Bytes::from(vec![7; 5 << 20]);
    let blob = describe(&bytes);
    put(store, &blob, bytes.clone()).await;
    assert_eq!(
        store.read(&blob.digest, blob.size).await.expect("read"),
        bytes
    );
    let error = store
        .read(&blob.digest, blob.size - 1)
        .await
        .expect_err("limit is kept");
    assert!(
        matches!(error, StoreError::TooLarge { size, .. } if size == blob.size),
        "{error:?}"
    );
    let absent = Digest::of(b"nobody wrote this");
    let error = store.read(&absent, 1).await.expect_err("absent");
    assert!(
        matches!(&error, StoreError::NotFound { digest } if *digest == absent),
        "{error:?}"
    );
}

async fn labels_add_up<S: ContentStore>(store: &S) {
    let (blob, bytes) = sample("labelled");
    put(store, &blob, bytes).await;
    for (key, value) in [("test/a", "1"), ("test/b", "2"), ("test/a", "3")] {
        let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        store.label(&blob.digest, labels).await.expect("labelled");
    }
    let labels = store.labels(&blob.digest).await.expect("asked");
    assert_eq!(labels.get("test/a").map(String::as_str), Some("3"));
    assert_eq!(labels.get("test/b").map(String::as_str), Some("2"));
    let absent = Digest::of(b"nobody wrote this");
    let error = store
        .label(&absent, BTreeMap::new())
        .await
        .expect_err("absent");
    assert!(matches!(error, StoreError::NotFound { .. }), "{error:?}");
}

fn sample(name: &str) -> (Descriptor, Bytes) {
    let bytes = Bytes::from(format!("conformance: {name}"));
    (describe(&bytes), bytes)
}

fn describe(bytes: &Bytes) -> Descriptor {
    Descriptor {
        media_type: "application/octet-stream".to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
    }
}

async fn writer<S: ContentStore>(store: &S, blob: &Descriptor) -> S::Writer {
    match store.begin(blob).await.expect("begun") {
        Begun::Writer(writer) => writer,
        Begun::Present => panic!("{} is there before it was written", blob.digest),
    }
}

async fn seen<S: ContentStore>(store: &S, blob: &Descriptor) -> bool {
    store.has(&blob.digest).await.expect("asked")
}

async fn put<S: ContentStore>(store: &S, blob: &Descriptor, bytes: Bytes) {
    let mut writer = writer(store, blob).await;
    writer.write(bytes).await.expect("written");
    writer.commit().await.expect("committed");
}
