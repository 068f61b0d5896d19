//! Errors of the parts, as failures of an effect: a stable code and the whole chain as one sentence.

use std::error::Error;

use super::env_files::EnvFileError;
use super::etc::EtcError;
use super::volumes::VolumeError;
use crate::chain::chain;
use crate::discovery::Unacknowledged;
use crate::gate::{DirectoryError, GateError};
use crate::instance::Failure;
use crate::journal::JournalError;
use crate::network::NetworkError;
use crate::pool::HOST_PORT_TAKEN;
use crate::runtime::RuntimeError;

/// A failure with this code and the error's chain.
pub(super) fn failure(code: &'static str, error: &(dyn Error + 'static)) -> Failure {
    Failure::new(code, chain(error))
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        let code = match &error {
            RuntimeError::Unavailable { .. } => "runtime_unavailable",
            RuntimeError::Image { .. } => "image",
            _ => "runtime",
        };
        let failure = failure(code, &error);
        match error {
            RuntimeError::Unavailable { .. } => failure.passing(),
            RuntimeError::Image { .. } if error.is_retryable() => failure.passing(),
            _ => failure,
        }
    }
}

impl From<GateError> for Failure {
    fn from(error: GateError) -> Self {
        let code = match &error {
            GateError::Deadline { .. } => "deadline",
            GateError::Refused { .. } => "gate_refused",
            _ => "gate",
        };
        failure(code, &error)
    }
}

impl From<Unacknowledged> for Failure {
    fn from(missing: Unacknowledged) -> Self {
        let code = match missing.is_fenced() {
            true => "fenced",
            false => "discovery",
        };
        failure(code, &missing)
    }
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Self {
        let code = match &error {
            NetworkError::HostPortTaken { .. } => HOST_PORT_TAKEN,
            _ => "network",
        };
        failure(code, &error)
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        failure("instance_directory", &error)
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        failure("volume", &error)
    }
}

impl From<EnvFileError> for Failure {
    fn from(error: EnvFileError) -> Self {
        failure("env_file", &error)
    }
}

impl From<EtcError> for Failure {
    fn from(error: EtcError) -> Self {
        failure("etc", &error)
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let code = match &error {
            JournalError::Full => "journal_full",
            _ => "journal",
        };
        failure(code, &error)
    }
}
