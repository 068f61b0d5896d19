//! One connection to one member: every request with its deadline, every error with its place.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Channel, Client, ConnectOptions, Error, GetOptions, KeyValue, LeaseTimeToLiveOptions, Txn,
    TxnResponse, WatchOptions, WatchStream,
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::error::EtcdError;
use crate::config;

/// Permission bits that let others than the owner read.
const READABLE_BY_OTHERS: u32 = 0o077;

/// A client of one member.
pub(super) struct Connection {
    client: Client,
    endpoint: String,
    timeout: Duration,
}

/// What a lease is at this moment.
pub(super) struct Lease {
    pub(super) ttl: Duration,
    pub(super) keys: Vec<String>,
}

impl Connection {
    /// Connects, and authenticates when there is a user.
    pub(super) async fn dial(
        settings: &config::EtcdDiscovery,
        endpoint: &str,
    ) -> Result<Self, EtcdError> {
        let refused = |source| EtcdError::Connect {
            endpoint: endpoint.to_owned(),
            source: Arc::new(source),
        };
        let mut dialled = Endpoint::from_shared(endpoint.to_owned())
            .map_err(refused)?
            .connect_timeout(settings.dial_timeout);
        if let Some(tls) = &settings.tls {
            dialled = dialled.tls_config(certificates(tls)?).map_err(refused)?;
        }
        let late = |operation, after| EtcdError::Deadline {
            endpoint: endpoint.to_owned(),
            operation,
            after,
        };
        // The dial's own deadline covers TCP alone.
        let channel = tokio::time::timeout(settings.dial_timeout, dialled.connect())
            .await
            .map_err(|_| late("accept the connection", settings.dial_timeout))?
            .map_err(refused)?;
        let mut options = ConnectOptions::new().with_require_leader(true);
        if let Some(user) = &settings.user {
            options = options.with_user(&user.name, password(&user.password_file)?);
        }
        let client = Client::from_channel(Channel::Tonic(channel), Some(options));
        let client = tokio::time::timeout(settings.request_timeout, client)
            .await
            .map_err(|_| late("authenticate us", settings.request_timeout))?
            .map_err(|source| EtcdError::Request {
                endpoint: endpoint.to_owned(),
                operation: "authenticate us",
                source: Arc::new(source),
            })?;
        Ok(Self {
            client,
            endpoint: endpoint.to_owned(),
            timeout: settings.request_timeout,
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    async fn within<T>(
        &mut self,
        operation: &'static str,
        request: impl AsyncFnOnce(&mut Client) -> Result<T, Error>,
    ) -> Result<T, EtcdError> {
        match tokio::time::timeout(self.timeout, request(&mut self.client)).await {
            Ok(answer) => answer.map_err(|source| EtcdError::Request {
                endpoint: self.endpoint.clone(),
                operation,
                source: Arc::new(source),
            }),
            Err(_) => Err(EtcdError::Deadline {
                endpoint: self.endpoint.clone(),
                operation,
                after: self.timeout,
            }),
        }
    }

    pub(super) async fn get(&mut self, key: &str) -> Result<Option<KeyValue>, EtcdError> {
        let get = async |client: &mut Client| client.get(key, Some(GetOptions::new())).await;
        let mut answer = self.within("read a key", get).await?;
        Ok(answer.take_kvs().into_iter().next())
    }

    pub(super) async fn txn(
        &mut self,
        operation: &'static str,
        txn: Txn,
    ) -> Result<TxnResponse, EtcdError> {
        self.within(operation, async |client| client.txn(txn).await)
            .await
    }

    /// Watches a key from a revision on.
    pub(super) async fn watch(&mut self, key: &str, from: i64) -> Result<WatchStream, EtcdError> {
        let options = WatchOptions::new().with_start_revision(from);
        let watch = async |client: &mut Client| client.watch(key, Some(options)).await;
        self.within("watch the host's key", watch).await
    }

    /// Grants a lease: its id and its time to live, which etcd may have raised.
    pub(super) async fn grant(&mut self, ttl: Duration) -> Result<(i64, Duration), EtcdError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let grant = async |client: &mut Client| client.lease_grant(seconds, None).await;
        let answer = self.within("grant a lease", grant).await?;
        Ok((answer.id(), seconds_of(answer.ttl())))
    }

    /// Renews a lease once.
    pub(super) async fn renew(&mut self, lease: i64) -> Result<(), EtcdError> {
        let renew = async |client: &mut Client| client.lease_keep_alive(lease).await;
        match self.within("renew the lease", renew).await {
            Ok(_) => Ok(()),
            // The only thing that a stream which was opened says of a lease is that it is gone.
            Err(EtcdError::Request { source, .. })
                if matches!(*source, Error::LeaseKeepAliveError(_)) =>
            {
                Err(EtcdError::LeaseGone { lease })
            }
            Err(error) => Err(error),
        }
    }

    /// The lease with the keys that are attached to it; `None` when it is gone.
    pub(super) async fn lease(&mut self, lease: i64) -> Result<Option<Lease>, EtcdError> {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let look =
            async |client: &mut Client| client.lease_time_to_live(lease, Some(options)).await;
        let answer = self.within("read the lease", look).await?;
        let keys = answer.keys().iter();
        Ok((answer.ttl() > 0).then(|| Lease {
            ttl: seconds_of(answer.granted_ttl()),
            keys: keys
                .filter_map(|key| String::from_utf8(key.clone()).ok())
                .collect(),
        }))
    }
}

fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn read(path: &Path) -> Result<String, EtcdError> {
    fs::read_to_string(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: io::Error) -> EtcdError {
    EtcdError::File {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

fn password(path: &Path) -> Result<String, EtcdError> {
    let metadata = fs::metadata(path).map_err(|source| unreadable(path, source))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & READABLE_BY_OTHERS != 0 {
        return Err(EtcdError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    // Editors end a file with a newline; no password does.
    Ok(read(path)?.trim_end_matches(['\r', '\n']).to_owned())
}

fn certificates(tls: &config::EtcdTls) -> Result<ClientTlsConfig, EtcdError> {
    let authorities = Certificate::from_pem(read(&tls.ca_file)?);
    let config = ClientTlsConfig::new().ca_certificate(authorities);
    Ok(match &tls.identity {
        Some((certificate, key)) => {
            config.identity(Identity::from_pem(read(certificate)?, read(key)?))
        }
        None => config,
    })
}
