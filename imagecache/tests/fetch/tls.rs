//! Registries with certificates of their own, made by openssl(1) as an operator makes them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use imagecache::fetch::FetchOptions;
use imagecache::registry::Registries;
use imagecache::{PullError, Reference};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::server::{Reply, Server};

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;
const NEW_KEY: &str = "-nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1";

/// An authority in a directory of its own, and what it has signed: `server`, `client`.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        authority.openssl(&format!(
            "req -x509 {NEW_KEY} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"
        ));
        for (name, extension) in [
            ("server", "subjectAltName=IP:127.0.0.1"),
            ("client", "extendedKeyUsage=clientAuth"),
        ] {
            std::fs::write(authority.file("extension.cnf"), extension).unwrap();
            authority.openssl(&format!(
                "req {NEW_KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ));
            authority.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                 -extfile extension.cnf -out {name}.pem"
            ));
        }
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, words: &str) {
        let mut command = Command::new("openssl");
        command
            .current_dir(self.0.path())
            .args(words.split_whitespace());
        let output = command.output().unwrap();
        assert!(output.status.success(), "openssl {words}: {output:?}");
    }

    /// A server's side, which wants to see our certificate or not.
    fn acceptor(&self, client: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if client {
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_file(self.file("ca.pem")).unwrap())
                .unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let certificate = CertificateDer::from_pem_file(self.file("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.file("server.key")).unwrap();
        let config = builder.with_single_cert(vec![certificate], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A directory of hosts with one file for `server`.
fn hosts(server: &Server, text: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join(&server.address);
    std::fs::create_dir_all(&directory).unwrap();
    let text = format!("server = \"https://{}\"\n{text}", server.address);
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
    root
}

async fn ask(server: &Server, options: FetchOptions) -> Result<Vec<u8>, PullError> {
    let reference: Reference = format!("{}/web:1", server.address).parse().unwrap();
    let registry = Registries::new(&options).open(&reference)?;
    Ok(registry.manifest(&reference).await?.to_vec())
}

fn options(hosts: &Path) -> FetchOptions {
    FetchOptions {
        hosts_dir: Some(hosts.to_owned()),
        stall_timeout: Duration::from_secs(5),
        // A wrong certificate is wrong the second time as well.
        retries: 0,
        ..FetchOptions::default()
    }
}

#[tokio::test]
async fn a_registry_is_believed_by_the_certificates_that_are_given_for_it() {
    let authority = Authority::new();
    let acceptor = authority.acceptor(false);
    let server = Server::start_with(Some(acceptor), |_| Reply::body(MANIFEST)).await;
    let untold = hosts(&server, "");
    let error = ask(&server, options(untold.path())).await.unwrap_err();
    let PullError::Unreachable { source, .. } = &error else {
        panic!("{error:?}")
    };
    let mut chain = source.to_string();
    let mut cause = source.source();
    while let Some(next) = cause {
        chain.push_str(&format!(": {next}"));
        cause = next.source();
    }
    assert!(chain.contains("certificate"), "{chain}");

    let ca = authority.file("ca.pem");
    let told = hosts(&server, &format!("ca = {ca:?}"));
    assert_eq!(ask(&server, options(told.path())).await.unwrap(), MANIFEST);
    let bundle = FetchOptions {
        ca_file: Some(ca),
        ..options(untold.path())
    };
    assert_eq!(ask(&server, bundle).await.unwrap(), MANIFEST);
    let blind = hosts(&server, "skip_verify = true");
    assert_eq!(ask(&server, options(blind.path())).await.unwrap(), MANIFEST);
}

#[tokio::test]
async fn our_certificate_is_shown_to_the_host_that_it_is_for_and_to_no_other() {
    let authority = Authority::new();
    // Whoever wants our certificate and does not get it ends the connection.
    let acceptor = authority.acceptor(true);
    let server = Server::start_with(Some(acceptor), |_| Reply::body(MANIFEST)).await;
    let (ca, certificate) = (authority.file("ca.pem"), authority.file("client.pem"));
    let key = authority.file("client.key");
    let without = hosts(&server, &format!("ca = {ca:?}"));
    let error = ask(&server, options(without.path())).await.unwrap_err();
    assert!(matches!(&error, PullError::Unreachable { .. }), "{error:?}");
    let ours = format!("ca = {ca:?}\nclient = [[{certificate:?}, {key:?}]]");
    let with = hosts(&server, &ours);
    assert_eq!(ask(&server, options(with.path())).await.unwrap(), MANIFEST);

    let location = format!("https://{}/elsewhere", server.address);
    let acceptor = authority.acceptor(true);
    let first = Server::start_with(Some(acceptor), move |_| {
        Reply::status(307).header("location", location.clone())
    })
    .await;
    let before = server.asked().len();
    let with = hosts(&first, &ours);
    let error = ask(&first, options(with.path())).await.unwrap_err();
    assert!(matches!(&error, PullError::Unreachable { .. }), "{error:?}");
    assert_eq!((first.asked().len(), server.asked().len()), (1, before));
}
