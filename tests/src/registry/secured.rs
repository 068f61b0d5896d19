//! A second door to the registry's content: a docker-registry of its own on the same files, at
//! another port, with a login, tokens or TLS.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::authority::Certificate;
use crate::ground::Ground;
use crate::process::Process;
use crate::registry::tokens::{ISSUER, SERVICE, TokenServer, Tokens};
use crate::registry::{serve, storage};

/// A token server listens so many ports above its registry.
const TOKENS_ABOVE: u16 = 100;

/// The only user that any registry of the tests knows.
#[derive(Debug, Clone, Copy)]
pub struct Login;

impl Login {
    /// Its name.
    pub const USER: &str = "puller";
    /// Its password.
    pub const PASSWORD: &str = "correct:horse";
    /// Both for htpasswd(1): bcrypt of cost 5, which docker-registry wants.
    const HTPASSWD: &str = "puller:$2y$05$abcdefghijklmnopqrstuuto9TfiXPqFaPFSnWZR02c4ScFTB3OSG\n";
}

/// Who may pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visitors {
    /// Everybody.
    Anyone,
    /// Those with the [`Login`].
    Known,
}

/// What the registry asks of those who pull.
#[derive(Debug, Clone, Copy)]
pub enum Access {
    /// Nothing.
    Free,
    /// Basic authentication with the [`Login`].
    Basic,
    /// A token of a token server.
    Token(Tokens),
}

/// A registry beside [`Registry`](crate::Registry), with the same content.
#[derive(Debug)]
pub struct SecuredRegistry {
    address: SocketAddr,
    tokens: Option<TokenServer>,
    // Killed when it is dropped.
    _process: Process,
}

impl SecuredRegistry {
    /// Starts one at `port` of loopback; with TLS when there is a certificate.
    pub fn start(
        ground: &Ground,
        port: u16,
        access: Access,
        certificate: Option<&Certificate>,
    ) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut tokens = None;
        let auth = match access {
            Access::Free => String::new(),
            Access::Basic => {
                let file = ground.path(&format!("registry-{port}.htpasswd"));
                fs::write(&file, Login::HTPASSWD)
                    .with_context(|| format!("write {}", file.display()))?;
                format!(
                    "auth:\n  htpasswd:\n    realm: tests\n    path: {}\n",
                    file.display()
                )
            }
            Access::Token(rules) => {
                let server = TokenServer::start(ground, port + TOKENS_ABOVE, rules)?;
                let text = format!(
                    "auth:\n  token:\n    realm: {}\n    service: {SERVICE}\n    issuer: {ISSUER}\n    rootcertbundle: {}\n",
                    server.realm(),
                    server.certificate().display(),
                );
                tokens = Some(server);
                text
            }
        };
        let tls = certificate.map_or_else(String::new, |certificate| {
            format!(
                "  tls:\n    certificate: {}\n    key: {}\n",
                certificate.file.display(),
                certificate.key.display()
            )
        });
        let name = format!("registry-{port}");
        let config: PathBuf = ground.path(&format!("{name}.yml"));
        let text = format!(
            "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n{auth}http:\n  addr: {address}\n{tls}",
            storage::root(ground).display(),
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        Ok(Self {
            address,
            tokens,
            _process: serve(ground, &name, &config, address)?,
        })
    }

    /// Where it listens, inside the host's network.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The reference of `name` (`web:1`) in this registry.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Its token server; only one with [`Access::Token`] has one.
    pub fn tokens(&self) -> Result<&TokenServer> {
        let tokens = self.tokens.as_ref();
        tokens.with_context(|| format!("the registry at {} asks for no token", self.address))
    }
}
