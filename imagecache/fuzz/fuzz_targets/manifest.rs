//! Any bytes as index, manifest and config, read as those of an image that is in the store.
#![no_main]

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use imagecache::memory::MemoryWriter;
use imagecache::{Begun, ContentStore, Descriptor, Digest, Reference, StoreError, local};
use libfuzzer_sys::fuzz_target;

/// Gives one document after the other, whatever is asked for.
struct Documents(Mutex<Vec<Bytes>>);

impl ContentStore for Documents {
    type Writer = MemoryWriter;

    async fn has(&self, _: &Digest) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn begin(&self, _: &Descriptor) -> Result<Begun<MemoryWriter>, StoreError> {
        Ok(Begun::Present)
    }

    async fn read(&self, digest: &Digest, _: u64) -> Result<Bytes, StoreError> {
        let digest = digest.clone();
        self.0.lock().unwrap().pop().ok_or(StoreError::NotFound { digest })
    }

    async fn label(&self, _: &Digest, _: BTreeMap<String, String>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn labels(&self, _: &Digest) -> Result<BTreeMap<String, String>, StoreError> {
        Ok(BTreeMap::new())
    }
}

fuzz_target!(|documents: (&[u8], &[u8], &[u8])| {
    let (first, second, third) = documents;
    let documents = [third, second, first].map(Bytes::copy_from_slice);
    let store = Documents(Mutex::new(documents.to_vec()));
    let reference: Reference = "registry.test/web:1".parse().unwrap();
    let target = Digest::of(first);
    let read = pin!(local(&reference, &target, &store));
    match read.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(_) => {}
        Poll::Pending => unreachable!("nothing here waits"),
    }
});
