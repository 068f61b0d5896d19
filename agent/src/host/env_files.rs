//! Environment files of the host, for the containers whose manifest names them (`envFrom`).
//!
//! Read when a container is made; what a file says later reaches later containers.

use std::io::ErrorKind;

use super::trusted::{self, Place, Readers, TrustedError};
use crate::app::{App, EnvFile, WrongLine, env_variables};
use crate::chain::chain;
use crate::config::Settings;
use crate::document::Finding;

/// Why an environment file does not count.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnvFileError {
    /// It cannot be read, or not be trusted.
    #[error("environment file {0}")]
    File(#[from] TrustedError),
    /// It is not in the format.
    #[error("environment file {path}: {source}")]
    Line {
        /// The file.
        path: String,
        /// Which line, and why.
        #[source]
        source: WrongLine,
    },
}

/// What is wrong with the files of `app` on this host.
pub(super) fn check(app: &App, settings: &Settings) -> Vec<Finding> {
    let findings = app.env_from.iter().enumerate().filter_map(|(index, file)| {
        let error = variables_of(file, settings).err()?;
        let field = format!("spec.envFrom[{index}].envFile.path");
        Some(Finding::new(field, None, chain(&error)))
    });
    findings.collect()
}

/// The variables of all files of `app`, in order: the later wins.
pub(super) fn variables(
    app: &App,
    settings: &Settings,
) -> Result<Vec<(String, String)>, EnvFileError> {
    let mut all = Vec::new();
    for file in &app.env_from {
        all.extend(variables_of(file, settings)?);
    }
    Ok(all)
}

fn variables_of(
    file: &EnvFile,
    settings: &Settings,
) -> Result<Vec<(String, String)>, EnvFileError> {
    let place = Place::Below {
        directories: &settings.security.allowed_env_file_paths,
        key: "security.allowed_env_file_paths",
    };
    match trusted::read(&file.path, place, Readers::Anybody) {
        Ok(text) => env_variables(&text, &file.prefix).map_err(|source| EnvFileError::Line {
            path: file.path.clone(),
            source,
        }),
        Err(TrustedError::Open { source, .. })
            if file.optional && source.kind() == ErrorKind::NotFound =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}
