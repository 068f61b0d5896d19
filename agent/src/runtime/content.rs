//! [`imagecache::ContentStore`] on containerd's content service.
//!
//! Everything is written under a lease and under a name of its own, so two pulls never wait for one
//! another's half-written blob; whoever commits second finds the blob there, which is as good.

use std::collections::BTreeMap;

use bytes::Bytes;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use futures_util::stream;
use imagecache::{Begun, BlobWriter, ContentStore, Descriptor, Digest, StoreError};
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::connection::Connection;
use super::error::{Answer, RuntimeError};
use super::lease::{Lease, unique};

/// Bytes of one write message; containerd takes at most 16 MiB.
const CHUNK: usize = 1 << 20;

/// containerd's content in our namespace.
pub struct ContainerdStore<'l> {
    connection: &'l Connection,
    lease: Option<&'l Lease>,
}

impl<'l> ContainerdStore<'l> {
    /// The content store for writing; what is begun or found present stays until `lease` ends.
    pub fn new(lease: &'l Lease) -> Self {
        Self {
            connection: lease.connection(),
            lease: Some(lease),
        }
    }

    /// The content store for reading what something else protects.
    pub(super) fn unleased(connection: &'l Connection) -> Self {
        Self {
            connection,
            lease: None,
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        match self.lease {
            Some(lease) => lease.request(message),
            None => self.connection.request(message),
        }
    }

    fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.connection.channel())
    }

    async fn info(&self, digest: &Digest) -> Result<Info, StoreError> {
        let request = self.request(InfoRequest {
            digest: digest.to_string(),
        });
        let mut client = self.client();
        let answer = self
            .connection
            .answer(self.connection.plain(), client.info(request))
            .await;
        match answer.map(|response| response.into_inner().info) {
            Ok(Some(info)) => Ok(info),
            Ok(None) | Err(Answer::NotFound) => Err(StoreError::NotFound {
                digest: digest.clone(),
            }),
            Err(said) => Err(store_error(said, "ask for blob", digest)),
        }
    }
}

impl ContentStore for ContainerdStore<'_> {
    type Writer = ContentWriter;

    async fn has(&self, digest: &Digest) -> Result<bool, StoreError> {
        match self.info(digest).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn begin(&self, blob: &Descriptor) -> Result<Begun<ContentWriter>, StoreError> {
        let ingest = unique("blob");
        let (requests, mut incoming) = mpsc::channel(1);
        let mut open = ContentWriter {
            connection: self.connection.clone(),
            blob: blob.clone(),
            ingest,
            stream: None,
            offset: 0,
            pending: Vec::new(),
        };
        let first = open.message(WriteAction::Stat, Vec::new());
        let outgoing = stream::poll_fn(move |context| incoming.poll_recv(context));
        let mut client = self.client();
        let begin = async {
            // The channel has room for one, and nothing was sent yet.
            requests
                .try_send(first)
                .map_err(|_| Status::internal("the request was not sent"))?;
            let mut responses = client.write(self.request(outgoing)).await?.into_inner();
            let status = next(&mut responses).await?;
            Ok((responses, status))
        };
        let (responses, status) = match self.connection.answer(self.connection.plain(), begin).await
        {
            Ok(begun) => begun,
            Err(Answer::Exists) => return Ok(Begun::Present),
            Err(said) => return Err(store_error(said, "begin blob", &blob.digest)),
        };
        open.stream = Some((requests, responses));
        open.offset = status.offset;
        if status.offset == 0 {
            return Ok(Begun::Writer(open));
        }
        // Another namespace has the blob and shares it: containerd begins with all of it written
        // (`content_sharing_policy`), so it only remains to commit.
        open.commit().await?;
        Ok(Begun::Present)
    }

    async fn read(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        let request = self.request(ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        });
        let mut client = self.client();
        let read = async {
            let mut pieces = client.read(request).await?.into_inner();
            let mut bytes = Vec::new();
            // What is too large is not read to its end.
            while bytes.len() as u64 <= limit
                && let Some(piece) = pieces.message().await?
            {
                bytes.extend_from_slice(&piece.data);
            }
            Ok(Bytes::from(bytes))
        };
        match self.connection.answer(self.connection.plain(), read).await {
            Ok(bytes) if bytes.len() as u64 > limit => Err(StoreError::TooLarge {
                digest: digest.clone(),
                size: u64::try_from(self.info(digest).await?.size).unwrap_or(0),
                limit,
            }),
            Ok(bytes) => Ok(bytes),
            Err(Answer::NotFound) => Err(StoreError::NotFound {
                digest: digest.clone(),
            }),
            Err(said) => Err(store_error(said, "read blob", digest)),
        }
    }

    async fn label(
        &self,
        digest: &Digest,
        labels: BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        if labels.is_empty() {
            return self.info(digest).await.map(drop);
        }
        let request = self.request(UpdateRequest {
            update_mask: Some(FieldMask {
                paths: labels.keys().map(|key| format!("labels.{key}")).collect(),
            }),
            info: Some(Info {
                digest: digest.to_string(),
                labels: labels.into_iter().collect(),
                ..Info::default()
            }),
        });
        let mut client = self.client();
        match self
            .connection
            .answer(self.connection.plain(), client.update(request))
            .await
        {
            Ok(_) => Ok(()),
            Err(Answer::NotFound) => Err(StoreError::NotFound {
                digest: digest.clone(),
            }),
            Err(said) => Err(store_error(said, "label blob", digest)),
        }
    }

    async fn labels(&self, digest: &Digest) -> Result<BTreeMap<String, String>, StoreError> {
        Ok(self.info(digest).await?.labels.into_iter().collect())
    }
}

type WriteStream = (
    mpsc::Sender<WriteContentRequest>,
    Streaming<WriteContentResponse>,
);

/// Writes one blob into containerd. Dropped without commit, the ingest is aborted behind us.
pub struct ContentWriter {
    connection: Connection,
    blob: Descriptor,
    ingest: String,
    /// Open until committed or aborted.
    stream: Option<WriteStream>,
    offset: i64,
    pending: Vec<u8>,
}

impl ContentWriter {
    fn message(&self, action: WriteAction, data: Vec<u8>) -> WriteContentRequest {
        WriteContentRequest {
            action: action.into(),
            r#ref: self.ingest.clone(),
            total: i64::try_from(self.blob.size).unwrap_or(i64::MAX),
            expected: self.blob.digest.to_string(),
            offset: self.offset,
            data,
            ..WriteContentRequest::default()
        }
    }

    async fn send(&mut self, action: WriteAction, data: Vec<u8>) -> Result<(), Answer> {
        let message = self.message(action, data);
        let Some((requests, responses)) = &mut self.stream else {
            return Err(Answer::Other(Status::internal(
                "the blob was ended already",
            )));
        };
        let exchange = async {
            // A closed channel means that the call ended; how is in the response.
            drop(requests.send(message).await);
            next(responses).await
        };
        let response = self
            .connection
            .answer(self.connection.plain(), exchange)
            .await?;
        self.offset = response.offset;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Answer> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.pending);
        self.send(WriteAction::Write, data).await
    }
}

impl BlobWriter for ContentWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let room = CHUNK - self.pending.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.pending.extend_from_slice(now);
            rest = later;
            if self.pending.len() == CHUNK {
                let flushed = self.flush().await;
                flushed.map_err(|said| store_error(said, "write blob", &self.blob.digest))?;
                self.pending.reserve_exact(CHUNK);
            }
        }
        Ok(())
    }

    async fn commit(mut self) -> Result<(), StoreError> {
        let committed = match self.flush().await {
            Ok(()) => self.send(WriteAction::Commit, Vec::new()).await,
            Err(said) => Err(said),
        };
        match committed {
            Ok(()) | Err(Answer::Exists) => {
                self.stream = None;
                Ok(())
            }
            Err(Answer::Precondition(_)) => {
                let digest = self.blob.digest.clone();
                self.abort().await;
                Err(StoreError::Mismatch { digest })
            }
            Err(said) => Err(store_error(said, "commit blob", &self.blob.digest)),
        }
    }

    async fn abort(mut self) {
        self.stream = None;
        abort(&self.connection, &self.ingest).await;
    }
}

impl Drop for ContentWriter {
    fn drop(&mut self) {
        // Only when neither committed nor aborted: cancelled, or the connection broke.
        if self.stream.take().is_none() {
            return;
        }
        let (connection, ingest) = (self.connection.clone(), std::mem::take(&mut self.ingest));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Not awaited by anybody: should it not come to it, the end of the lease does the same.
            drop(runtime.spawn(async move { abort(&connection, &ingest).await }));
        }
    }
}

async fn abort(connection: &Connection, ingest: &str) {
    let request = connection.request(AbortRequest {
        r#ref: ingest.to_owned(),
    });
    let mut client = ContentClient::new(connection.channel());
    match connection
        .answer(connection.plain(), client.abort(request))
        .await
    {
        Ok(Response { .. }) | Err(Answer::NotFound) => {}
        Err(said) => {
            let error: &dyn std::error::Error = &said.into_error("abort blob", ingest);
            tracing::warn!(error, "half a blob stays until its lease ends");
        }
    }
}

async fn next(
    responses: &mut Streaming<WriteContentResponse>,
) -> Result<WriteContentResponse, Status> {
    match responses.message().await? {
        Some(response) => Ok(response),
        None => Err(Status::unavailable(
            "containerd ended the write without an answer",
        )),
    }
}

fn store_error(said: Answer, operation: &'static str, digest: &Digest) -> StoreError {
    match said.into_error(operation, digest.as_str()) {
        RuntimeError::Unavailable {
            operation,
            object,
            source,
        } => StoreError::Unavailable {
            operation,
            object,
            source: Box::new(source),
        },
        RuntimeError::Failed {
            operation,
            object,
            source,
        } => StoreError::Failed {
            operation,
            object,
            source: Box::new(source),
        },
        other => StoreError::Failed {
            operation,
            object: digest.to_string(),
            source: Box::new(other),
        },
    }
}
