//! One repository of one registry: asks for manifests and blobs, and says what went wrong in our
//! words. Every answer begins within the stall timeout, and goes on within it.

use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use oci_client::RegistryOperation;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;

use crate::error::{PullError, Retry, named};
use crate::manifest::{ACCEPTED, MANIFEST_LIMIT};
use crate::pull::PullOptions;
use crate::{Descriptor, Digest, Reference, credentials};

/// A TCP (and TLS) handshake that takes longer than this has failed.
const CONNECT: Duration = Duration::from_secs(10);

pub(crate) struct Registry {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
    stall: Duration,
}

impl Registry {
    /// Makes the client and, where the registry wants a token, fetches it.
    pub(crate) async fn open(
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Self, PullError> {
        provide_tls();
        let auth = credentials::for_registry(options.auth_file.as_deref(), reference.registry())?;
        let protocol = if reference.is_plain_http(&options.insecure_registries) {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        let client = Client::try_from(ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT.min(options.stall_timeout)),
            user_agent: concat!("nodeagent/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
        .map_err(|source| PullError::Client {
            registry: reference.registry().to_owned(),
            source: source.into(),
        })?;
        let registry = Self {
            client,
            reference: reference.clone(),
            auth,
            stall: options.stall_timeout,
        };
        let login =
            registry
                .client
                .auth(reference.as_oci(), &registry.auth, RegistryOperation::Pull);
        registry.answer("authorisation", login).await?;
        Ok(registry)
    }

    /// The index or manifest that `reference` names, checked against its digest where it has one.
    pub(crate) async fn manifest(&self, reference: &Reference) -> Result<Bytes, PullError> {
        let object = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => named("manifest", digest),
            (None, tag) => format!("manifest {}", tag.unwrap_or("latest")),
        };
        let pull = self
            .client
            .pull_manifest_raw(reference.as_oci(), &self.auth, ACCEPTED);
        let (bytes, _) = self.answer(&object, pull).await?;
        if bytes.len() as u64 > MANIFEST_LIMIT {
            return Err(PullError::Malformed {
                object,
                why: format!("it has {} bytes, {MANIFEST_LIMIT} are allowed", bytes.len()),
            });
        }
        let got = Digest::of(&bytes);
        match reference.digest() {
            Some(expected) if *expected != got => {
                Err(self.wrong_digest(&object, expected.as_str(), got.as_str()))
            }
            _ => Ok(bytes),
        }
    }

    /// The bytes of a blob as they come. Not verified here: that is [`crate::fetch`]'s.
    pub(crate) async fn blob(
        &self,
        object: &str,
        blob: &Descriptor,
    ) -> Result<BlobStream<'_>, PullError> {
        // Only the digest is handed over: `urls` of a descriptor would send us to other hosts.
        let open = self
            .client
            .pull_blob_stream(self.reference.as_oci(), blob.digest.as_str());
        let opened = self.answer(object, open).await?;
        Ok(BlobStream {
            registry: self,
            object: object.to_owned(),
            bytes: opened.stream,
        })
    }

    /// `host[:port]`.
    pub(crate) fn name(&self) -> &str {
        self.reference.registry()
    }

    pub(crate) fn wrong_digest(&self, object: &str, expected: &str, got: &str) -> PullError {
        PullError::WrongDigest {
            registry: self.name().to_owned(),
            object: object.to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        }
    }

    fn stalled(&self, object: &str) -> PullError {
        PullError::Stalled {
            registry: self.name().to_owned(),
            object: object.to_owned(),
            stalled: self.stall,
        }
    }

    fn unreachable(
        &self,
        object: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> PullError {
        PullError::Unreachable {
            registry: self.name().to_owned(),
            object: object.to_owned(),
            source: source.into(),
        }
    }

    async fn answer<T>(
        &self,
        object: &str,
        request: impl Future<Output = Result<T, OciDistributionError>>,
    ) -> Result<T, PullError> {
        match tokio::time::timeout(self.stall, request).await {
            Err(_) => Err(self.stalled(object)),
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.classify(object, error)),
        }
    }

    fn classify(&self, object: &str, error: OciDistributionError) -> PullError {
        let registry = || self.name().to_owned();
        let repository = || self.reference.repository().to_owned();
        let failed = |retry: Retry, source: OciDistributionError| PullError::Registry {
            registry: registry(),
            object: object.to_owned(),
            retry,
            source: source.into(),
        };
        match error {
            OciDistributionError::RequestError(source) => self.unreachable(object, source),
            OciDistributionError::IoError(source) => self.unreachable(object, source),
            OciDistributionError::DigestError(DigestError::VerificationError {
                expected,
                actual,
            }) => self.wrong_digest(object, &expected, &actual),
            OciDistributionError::AuthenticationFailure(message) => PullError::Unauthorised {
                registry: registry(),
                repository: repository(),
                message,
            },
            OciDistributionError::UnauthorizedError { .. } => PullError::Unauthorised {
                registry: registry(),
                repository: repository(),
                message: match self.auth {
                    RegistryAuth::Anonymous => "it wants credentials and there are none for it",
                    _ => "it refuses our credentials",
                }
                .to_owned(),
            },
            OciDistributionError::ImageManifestNotFoundError(_) => self.missing(object),
            OciDistributionError::ServerError { code: 404, .. } => self.missing(object),
            OciDistributionError::ServerError {
                code: 403, message, ..
            } => PullError::Unauthorised {
                registry: registry(),
                repository: repository(),
                message,
            },
            OciDistributionError::ServerError { code, .. } => {
                let passes = code == 429 || code == 408 || code >= 500;
                failed(if passes { Retry::Later } else { Retry::Never }, error)
            }
            OciDistributionError::RegistryError { ref envelope, .. } => {
                match envelope.errors.first().map(|first| &first.code) {
                    Some(
                        OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::BlobUnknown
                        | OciErrorCode::ManifestBlobUnknown
                        | OciErrorCode::NotFound,
                    ) => self.missing(object),
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => {
                        PullError::Unauthorised {
                            registry: registry(),
                            repository: repository(),
                            message: envelope.to_string(),
                        }
                    }
                    Some(OciErrorCode::Toomanyrequests) => failed(Retry::Later, error),
                    _ => failed(Retry::Never, error),
                }
            }
            other => failed(Retry::Never, other),
        }
    }

    fn missing(&self, object: &str) -> PullError {
        PullError::NotFound {
            registry: self.name().to_owned(),
            repository: self.reference.repository().to_owned(),
            object: object.to_owned(),
        }
    }
}

/// A blob on its way.
pub(crate) struct BlobStream<'r> {
    registry: &'r Registry,
    object: String,
    bytes: BoxStream<'static, Result<Bytes, std::io::Error>>,
}

/// What comes next of a blob.
pub(crate) enum Next {
    /// Some bytes.
    Bytes(Bytes),
    /// There are no more.
    End,
}

impl BlobStream<'_> {
    pub(crate) async fn next(&mut self) -> Result<Next, PullError> {
        match tokio::time::timeout(self.registry.stall, self.bytes.next()).await {
            Err(_) => Err(self.registry.stalled(&self.object)),
            Ok(Some(Ok(bytes))) => Ok(Next::Bytes(bytes)),
            Ok(None) => Ok(Next::End),
            Ok(Some(Err(error))) => {
                let verification = error.get_ref().and_then(|inner| inner.downcast_ref());
                Err(match verification {
                    Some(DigestError::VerificationError { expected, actual }) => {
                        self.registry.wrong_digest(&self.object, expected, actual)
                    }
                    _ => self.registry.unreachable(&self.object, error),
                })
            }
        }
    }
}

/// rustls is built without a default provider; the first one installed in the process serves all.
fn provide_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider()
            .install_default()
            .is_err()
        {
            tracing::debug!("another TLS provider is installed already and will be used");
        }
    });
}
