//! One registration, and which of them every backend can express.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::instance::InstanceName;

/// What clients learn of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationRecord {
    /// The service that the instance serves: letters, digits, `.`, `_` and `-`, at most 200.
    pub service: String,
    /// Who it is on this host.
    pub instance: InstanceName,
    /// Stable id of the host.
    pub host_id: String,
    /// Fleet of the host.
    pub fleet: String,
    /// Name of the instance as clients may show it.
    pub hostname: String,
    /// Where it is reached.
    pub address: IpAddr,
    /// Where it is reached.
    pub port: u16,
    /// Share of the load against others of the service; 0 means draining: no new work.
    pub weight: u32,
    /// The instance's generation that this record speaks of.
    pub generation: u64,
    /// Free metadata: `task_id`, set, lane, labels.
    pub metadata: BTreeMap<String, String>,
}

/// A record that cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the registration of {instance} has {field} {value:?}; allowed is {allowed}")]
pub struct InvalidRecord {
    /// Whose record it is.
    pub instance: InstanceName,
    /// Field of the record.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What would be accepted.
    pub allowed: &'static str,
}

impl RegistrationRecord {
    /// Address and port together.
    pub fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Checks what becomes part of file names and addresses.
    ///
    /// # Errors
    /// [`InvalidRecord`] names the field, its value and what is allowed.
    pub fn check(&self) -> Result<(), InvalidRecord> {
        let refuse = |field, value: &dyn ToString, allowed| {
            let value = value.to_string();
            Err(InvalidRecord { instance: self.instance.clone(), field, value, allowed })
        };
        if !is_service_name(&self.service) {
            let allowed = "1 to 200 characters a-z, A-Z, 0-9, '.', '_' and '-', not beginning with '.'";
            return refuse("service", &self.service, allowed);
        }
        if self.port == 0 {
            return refuse("port", &self.port, "1 to 65535");
        }
        if self.address.is_unspecified() {
            return refuse("address", &self.address, "an address that clients can connect to");
        }
        Ok(())
    }
}

/// A service name is a file name too.
pub(super) fn is_service_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=200).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}
