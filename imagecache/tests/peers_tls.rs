//! Peers with certificates on both sides. Needs `openssl` (tests/peers/install).

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod fleet;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use fleet::{Host, Registry, content, descriptor, listener, peer};
use imagecache::fetch::SourceKind;
use imagecache::peers::{Access, Peer, PeersOptions, ServeOptions, Trouble};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn openssl(arguments: &str, directory: &Path) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output()
        .expect("openssl, which tests/peers/install installs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "openssl {arguments}: {said}");
}

/// An authority with one certificate for hosts on loopback.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(
            &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=peers -days 2"),
            at,
        );
        openssl(
            &format!("req {key} -keyout host.key -out host.csr -subj /CN=host"),
            at,
        );
        std::fs::write(at.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        openssl(
            "x509 -req -in host.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -days 2 -out host.pem",
            at,
        );
        Self(directory)
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let file = self.0.path().join("ca.pem");
        roots
            .add(CertificateDer::from_pem_file(file).unwrap())
            .unwrap();
        roots
    }

    fn identity(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let certificate = CertificateDer::from_pem_file(self.0.path().join("host.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.0.path().join("host.key")).unwrap();
        (vec![certificate], key)
    }

    fn server(&self) -> Arc<ServerConfig> {
        let roots = Arc::new(self.roots());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let (certificates, key) = self.identity();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(certificates, key)
            .unwrap();
        Arc::new(config)
    }

    /// Trusts `self`, and shows a certificate of `other`, where there is one.
    fn client(&self, other: Option<&Self>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        match other {
            None => builder.with_no_client_auth(),
            Some(other) => {
                let (certificates, key) = other.identity();
                builder.with_client_auth_cert(certificates, key).unwrap()
            }
        }
    }
}

fn options(own: &Peer, peers: &[Peer], tls: ClientConfig) -> PeersOptions {
    PeersOptions {
        own: own.clone(),
        peers: peers.to_vec(),
        token: None,
        tls: Some(tls),
        slowest: 0,
    }
}

#[tokio::test]
async fn with_certificates_peers_share_and_without_one_nobody_gets_in() {
    let (ours, others) = (Authority::new(), Authority::new());
    let listeners = [
        listener().await,
        listener().await,
        listener().await,
        listener().await,
    ];
    let list: Vec<Peer> = listeners
        .iter()
        .map(|listener| peer(&listener.local_addr().unwrap().to_string()))
        .collect();
    let clients = [
        ours.client(Some(&ours)),
        ours.client(Some(&ours)),
        ours.client(None),
        ours.client(Some(&others)),
    ];
    let serve = ServeOptions {
        access: Access::Certificate(ours.server()),
        uploads: 4,
        bandwidth: 0,
    };
    let mut hosts = Vec::new();
    for ((listener, own), tls) in listeners.into_iter().zip(&list).zip(clients) {
        // Only the first two are in the list, so that it is one of them that is asked.
        hosts.push(Host::with(listener, &options(own, &list[..2], tls), &serve));
    }
    let bytes = content(1 << 20, 1);
    let blob = descriptor(&bytes);
    let registry = Registry::with(&[bytes]);
    let first = hosts[0].bring(&registry, &blob).await.unwrap();
    assert_eq!(first.shares[0].kind, SourceKind::Registry);
    let second = hosts[1].bring(&registry, &blob).await.unwrap();
    assert_eq!(second.shares[0].kind, SourceKind::Peer);
    for stranger in &hosts[2..] {
        let fetched = stranger.bring(&registry, &blob).await.unwrap();
        assert_eq!(fetched.shares[0].kind, SourceKind::Registry);
        let status = stranger.peers.status();
        assert!(
            status
                .iter()
                .all(|peer| matches!(peer.rests, Some((Trouble::Away, _)))),
            "{status:?}"
        );
    }
}
