//! How a registration is spelt in etcd. Pure.
//!
//! ```text
//! <prefix>/<fleet>/<app>/<host-id>/<ordinal>   a registration, JSON
//! <prefix>/<fleet>/_hosts/<host-id>            which agent is this host, JSON
//! ```
//! No app is called `_hosts`, so whoever watches an app's prefix sees its instances alone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::EtcdError;
use crate::discovery::RegistrationRecord;
use crate::instance::InstanceName;

/// The keys of one host.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
    fleet: String,
    host_id: String,
}

/// A registration as clients read it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Value {
    instance: String,
    service: String,
    fleet: String,
    host: String,
    hostname: String,
    address: IpAddr,
    port: u16,
    weight: u32,
    generation: u64,
    metadata: BTreeMap<String, String>,
}

/// Who owns a host's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// The agent's own id: made with its journal, the same after every start.
    pub(super) agent: String,
    /// Version of the agent, for people.
    pub(super) version: String,
}

impl Keys {
    pub(super) fn new(prefix: &str, fleet: &str, host_id: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            fleet: fleet.to_owned(),
            host_id: host_id.to_owned(),
        }
    }

    pub(super) fn fleet(&self) -> &str {
        &self.fleet
    }

    pub(super) fn host_id(&self) -> &str {
        &self.host_id
    }

    /// The key that says which agent is this host.
    pub(super) fn owner(&self) -> String {
        format!("{}/{}/_hosts/{}", self.prefix, self.fleet, self.host_id)
    }

    pub(super) fn instance(&self, name: &InstanceName) -> String {
        let Self {
            prefix,
            fleet,
            host_id,
        } = self;
        format!("{prefix}/{fleet}/{}/{host_id}/{}", name.app, name.ordinal)
    }

    /// The instance whose key this is; `None` for every other key.
    pub(super) fn parse(&self, key: &str) -> Option<InstanceName> {
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let rest = rest.strip_prefix(&self.fleet)?.strip_prefix('/')?;
        let (app, rest) = rest.split_once('/')?;
        let ordinal = rest.strip_prefix(&self.host_id)?.strip_prefix('/')?;
        format!("{app}-{ordinal}").parse().ok()
    }
}

impl Owner {
    pub(super) fn ours(agent_id: &str) -> Self {
        Self {
            agent: agent_id.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The JSON of a registration.
pub(super) fn encode(record: &RegistrationRecord) -> Result<Vec<u8>, EtcdError> {
    json(&Value {
        instance: record.instance.to_string(),
        service: record.service.clone(),
        fleet: record.fleet.clone(),
        host: record.host_id.clone(),
        hostname: record.hostname.clone(),
        address: record.address,
        port: record.port,
        weight: record.weight,
        generation: record.generation,
        metadata: record.metadata.clone(),
    })
}

/// The JSON of an owner key.
pub(super) fn encode_owner(owner: &Owner) -> Result<Vec<u8>, EtcdError> {
    json(owner)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, EtcdError> {
    serde_json::to_vec(value).map_err(|source| EtcdError::Encode(Arc::new(source)))
}

/// Reads a registration of `name` back; `None` when it is not one of ours.
pub(super) fn decode(name: &InstanceName, json: &[u8]) -> Option<RegistrationRecord> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let record = RegistrationRecord {
        service: value.service,
        instance: value.instance.parse().ok()?,
        host_id: value.host,
        fleet: value.fleet,
        hostname: value.hostname,
        address: value.address,
        port: value.port,
        weight: value.weight,
        generation: value.generation,
        metadata: value.metadata,
    };
    (record.instance == *name && record.check().is_ok()).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new("/nodeagent", "shop", "rack7-03")
    }

    fn record() -> RegistrationRecord {
        RegistrationRecord {
            service: "web".into(),
            instance: "web-3".parse().unwrap(),
            host_id: "rack7-03".into(),
            fleet: "shop".into(),
            hostname: "web-3".into(),
            address: "2001:db8::7".parse().unwrap(),
            port: 8080,
            weight: 0,
            generation: u64::MAX,
            metadata: BTreeMap::from([("größe".into(), "ü \"quoted\" \u{1}".into())]),
        }
    }

    #[test]
    fn a_key_names_fleet_app_host_and_ordinal() {
        let name: InstanceName = "web-3".parse().unwrap();
        assert_eq!(keys().instance(&name), "/nodeagent/shop/web/rack7-03/3");
        assert_eq!(keys().owner(), "/nodeagent/shop/_hosts/rack7-03");
        assert_eq!(keys().parse("/nodeagent/shop/web/rack7-03/3"), Some(name));
    }

    #[test]
    fn keys_of_others_are_not_ours() {
        for other in [
            "/nodeagent/shop/_hosts/rack7-03",
            "/nodeagent/shop/web/rack7-04/3",
            "/nodeagent/shop/web/rack7-03/03",
            "/nodeagent/shop/web/rack7-03/3/x",
            "/nodeagent/shopping/web/rack7-03/3",
            "/other/shop/web/rack7-03/3",
            "",
        ] {
            assert_eq!(keys().parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_registration_comes_back_as_it_went() {
        let json = encode(&record()).unwrap();
        assert_eq!(decode(&record().instance, &json), Some(record()));
        assert_eq!(decode(&"web-4".parse().unwrap(), &json), None);
        assert_eq!(decode(&record().instance, b"\"mine\""), None);
    }
}
