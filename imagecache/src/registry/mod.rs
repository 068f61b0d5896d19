//! Registries: one client for the OCI distribution protocol and Docker's, schema 2.
//!
//! ```text
//! Registries ── open(reference) ──► Registry ── manifest, resolve
//!   clients, tokens, health           │  hosts in order (mirrors, registry), one retry budget
//!                                     └─ sources ──► fetch (blobs)
//! ```
//!
//! Promises: every answer begins and goes on within the stall timeout; manifests are digest-exact
//! and bounded; credentials go to the host that they are for, and to the token service that it
//! names, never further; tokens are kept in memory and shared by all pulls. Deliberately not here:
//! pushing, and `urls` of descriptors.

mod auth;
mod challenge;
mod clients;
mod credential_helper;
mod credentials;
mod endpoint;
mod hosts;
mod hosts_file;
mod http;
mod signatures;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::auth::Auth;
use self::clients::Clients;
use self::credentials::{Credentials, DockerConfig, Login};
use self::endpoint::{Endpoint, Health};
pub use self::hosts_file::HostsError;
use self::http::Http;
use crate::error::{PullError, named};
use crate::fetch::{Attempts, Budget, Failure, FetchOptions, Hedge, Source, Sources, Turn};
use crate::{Digest, Reference};

/// Entries kept of what is shared; more are dropped when nobody uses them.
const MOST_KEPT: usize = 1024;

/// What all pulls of the process share: clients, tokens, and which hosts are well.
#[derive(Clone)]
pub struct Registries(Arc<Shared>);

struct Shared {
    options: FetchOptions,
    clients: Arc<Clients>,
    /// By API, repository and fingerprint of the credentials.
    auths: Mutex<HashMap<(String, String, Digest), Arc<Auth>>>,
    /// By API.
    health: Mutex<HashMap<String, Arc<Health>>>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").finish_non_exhaustive()
    }
}

impl Registries {
    /// Reads nothing yet: files are read for each pull, so that changes count.
    pub fn new(options: &FetchOptions) -> Self {
        Self(Arc::new(Shared {
            options: options.clone(),
            clients: Arc::new(Clients::new(options)),
            auths: Mutex::default(),
            health: Mutex::default(),
        }))
    }

    /// The registry of `reference`, for one pull. Reads the files of credentials and hosts; asks
    /// nobody yet.
    pub fn open(&self, reference: &Reference) -> Result<Registry, PullError> {
        let options = &self.0.options;
        let hosts = hosts::of(
            reference,
            options.hosts_dir.as_deref(),
            &options.insecure_registries,
        )?;
        let config = match &options.auth_file {
            Some(path) => {
                let helpers = options.credential_helpers.as_deref();
                Some(DockerConfig::read(path, helpers)?)
            }
            None => None,
        };
        let mut endpoints = Vec::with_capacity(hosts.len());
        for host in hosts {
            let login = match &config {
                Some(config) => config.login(&host.name)?,
                None => Login::Known(Credentials::Anonymous),
            };
            let http = Http {
                clients: Arc::clone(&self.0.clients),
                trust: Arc::clone(&host.trust),
                home: host.api.clone(),
                patience: options.stall_timeout,
            };
            // What is wrong with certificates and proxies is told before anything is asked.
            http.client(&host.api).map_err(|source| PullError::Client {
                registry: host.name.clone(),
                source: source.into(),
            })?;
            endpoints.push(Arc::new(Endpoint {
                repository: reference.repository().to_owned(),
                auth: self.auth(host.api.as_ref(), reference.repository(), login),
                health: self.health(host.api.as_ref()),
                http,
                host,
            }));
        }
        Ok(Registry {
            endpoints,
            budget: Arc::new(Budget::new(options.retries)),
            stall_timeout: options.stall_timeout,
        })
    }

    fn auth(&self, api: &str, repository: &str, login: Login) -> Arc<Auth> {
        let mut auths = self.0.auths.lock().unwrap_or_else(PoisonError::into_inner);
        if auths.len() >= MOST_KEPT {
            auths.retain(|_, auth| Arc::strong_count(auth) > 1);
        }
        let key = (api.to_owned(), repository.to_owned(), login.fingerprint());
        let made = || Arc::new(Auth::new(login, repository));
        Arc::clone(auths.entry(key).or_insert_with(made))
    }

    fn health(&self, api: &str) -> Arc<Health> {
        let mut health = self.0.health.lock().unwrap_or_else(PoisonError::into_inner);
        if health.len() >= MOST_KEPT {
            health.retain(|_, health| Arc::strong_count(health) > 1);
        }
        Arc::clone(health.entry(api.to_owned()).or_default())
    }
}

/// One repository for one pull.
#[derive(Debug, Clone)]
pub struct Registry {
    /// Never empty; the registry itself is the last.
    endpoints: Vec<Arc<Endpoint>>,
    budget: Arc<Budget>,
    stall_timeout: Duration,
}

/// What is asked of a host in [`Registry::ask`].
enum Question<'r> {
    Manifest(&'r Reference),
    Digest(&'r Reference),
}

enum Reply {
    Manifest(Bytes),
    Digest(Option<Digest>),
}

impl Registry {
    /// The index or manifest that `reference` names, checked against its digest where it has one.
    pub async fn manifest(&self, reference: &Reference) -> Result<Bytes, PullError> {
        match self.ask(&Question::Manifest(reference)).await? {
            Reply::Manifest(bytes) => Ok(bytes),
            // No host was asked for it.
            Reply::Digest(_) => Err(self.nobody(&object(reference))),
        }
    }

    /// The digest of the index or manifest that `reference` names now. Fetches no body where the
    /// registry says the digest without.
    pub async fn resolve(&self, reference: &Reference) -> Result<Digest, PullError> {
        if let Some(digest) = reference.digest() {
            return Ok(digest.clone());
        }
        match self.ask(&Question::Digest(reference)).await? {
            Reply::Digest(Some(digest)) => Ok(digest),
            _ => Ok(Digest::of(&self.manifest(reference).await?)),
        }
    }

    /// The hosts that have the repository's blobs, in the order in which they are asked, and what
    /// this pull may still spend on asking again.
    pub fn sources(&self) -> Sources {
        let pull = self.endpoints.iter().filter(|endpoint| endpoint.host.pull);
        Sources {
            ordered: pull
                .map(|endpoint| Arc::clone(endpoint) as Arc<dyn Source>)
                .collect(),
            budget: Arc::clone(&self.budget),
            stall_timeout: self.stall_timeout,
            hedge: Hedge::Anybody,
        }
    }

    async fn ask(&self, question: &Question<'_>) -> Result<Reply, PullError> {
        let (Question::Manifest(reference) | Question::Digest(reference)) = question;
        let object = object(reference);
        let (name, by_tag) = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => (digest.as_str(), false),
            (None, tag) => (tag.unwrap_or("latest"), true),
        };
        let able = |endpoint: &&Arc<Endpoint>| match by_tag {
            true => endpoint.host.resolve,
            false => endpoint.host.pull,
        };
        let endpoints: Vec<&Arc<Endpoint>> = self.endpoints.iter().filter(able).collect();
        let mut attempts = Attempts::new(endpoints.iter().map(|endpoint| endpoint.is_well()));
        let mut last: Option<(usize, Failure)> = None;
        loop {
            let asked = match attempts.turn(Instant::now(), None) {
                Turn::Ask(asked) => asked,
                Turn::Rest(until) => {
                    tokio::time::sleep_until(until.into()).await;
                    continue;
                }
                Turn::Over => break,
            };
            let endpoint = endpoints[asked];
            let reply = match question {
                Question::Manifest(_) => endpoint.manifest(name).await.map(Reply::Manifest),
                Question::Digest(_) => endpoint.digest_of(name).await.map(Reply::Digest),
            };
            let failure = match reply {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            tracing::debug!(host = %endpoint.host.name, object, %failure, "host did not answer");
            let verdict = failure.verdict();
            attempts.failed(
                asked,
                verdict,
                Instant::now(),
                fastrand::f64(),
                &self.budget,
            );
            // The registry itself has the last word, not the mirrors before it.
            if last.as_ref().is_none_or(|(before, _)| *before <= asked) {
                last = Some((asked, failure));
            }
        }
        Err(match last {
            Some((asked, failure)) => {
                let endpoint = endpoints[asked];
                failure.of(&endpoint.host.name, &endpoint.repository, &object)
            }
            None => self.nobody(&object),
        })
    }

    fn nobody(&self, object: &str) -> PullError {
        let (registry, repository) = self.endpoints.last().map_or(("", ""), |endpoint| {
            (endpoint.host.name.as_str(), endpoint.repository.as_str())
        });
        PullError::Unauthorised {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            message: format!("the hosts directory lets no host be asked for {object}"),
        }
    }
}

fn object(reference: &Reference) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => named("manifest", digest),
        (None, tag) => format!("manifest {}", tag.unwrap_or("latest")),
    }
}
