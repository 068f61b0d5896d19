//! A certificate authority of a test's own, made by openssl(1).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A fresh key of the kind that every peer understands.
const NEW_KEY: &str = "-nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1";

/// An authority and, in the same directory, what it has signed.
#[derive(Debug, Clone)]
pub struct Authority {
    directory: PathBuf,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate.
    pub file: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority in `directory`, which is made, too.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let authority = Self {
            directory: directory.to_owned(),
        };
        authority.openssl(&format!(
            "req -x509 {NEW_KEY} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"
        ))?;
        Ok(authority)
    }

    /// Its own certificate: what those have to trust who meet what it signed.
    pub fn file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Signs a new certificate for `name`; `extension` is a line of openssl's configuration
    /// (`subjectAltName=IP:127.0.0.1`).
    pub fn sign(&self, name: &str, extension: &str) -> Result<Certificate> {
        fs::write(self.directory.join("extension.cnf"), extension)
            .with_context(|| format!("write the extension of {name}"))?;
        self.openssl(&format!(
            "req {NEW_KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ))?;
        self.openssl(&format!("x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extension.cnf -out {name}.pem"))?;
        Ok(Certificate {
            file: self.directory.join(format!("{name}.pem")),
            key: self.directory.join(format!("{name}.key")),
        })
    }

    fn openssl(&self, words: &str) -> Result<()> {
        let mut command = Command::new("openssl");
        command
            .current_dir(&self.directory)
            .args(words.split_whitespace());
        let output = command.output().context("run openssl(1)")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl {words}: {said}");
        Ok(())
    }
}
