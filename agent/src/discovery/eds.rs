//! `eds/<service>.json`: endpoints for Envoy's file-based EDS, and our own truth after a restart.
//!
//! One file for each service, because Envoy is given one path for each cluster
//! (`eds_config.path_config_source.path`) and reads it again when a file is **moved** there, and
//! because a change of one service then costs that service's file only. The format is a
//! `DiscoveryResponse` with one `ClusterLoadAssignment`
//! (<https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/endpoint/v3/endpoint.proto>).
//!
//! A registration's metadata is in `filter_metadata` under `envoy.lb`, where Envoy's subset load
//! balancing looks; what only we need is under `nodeagent`. Both are protobuf Structs, whose numbers
//! are doubles, so the generation is text. Envoy wants weights of at least 1: weight 0 is written as
//! `DRAINING` without a weight.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::record::RegistrationRecord;

const TYPE: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// Why a file is not one of ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotOurs {
    #[error("it is not a discovery response of ours")]
    Shape(#[source] serde_json::Error),
    #[error("it has {0} resources instead of one")]
    Resources(usize),
    #[error("it speaks of cluster {found:?} instead of {expected:?}")]
    Cluster { found: String, expected: String },
    #[error("its endpoint {instance:?} has {field} {value:?}")]
    Endpoint { instance: String, field: &'static str, value: String },
}

/// A file of ours.
#[derive(Debug)]
pub(super) struct ServiceFile {
    pub(super) version: u64,
    pub(super) records: Vec<RegistrationRecord>,
}

#[derive(Debug, Deserialize)]
struct Response {
    version_info: String,
    resources: Vec<Assignment>,
}

#[derive(Debug, Deserialize)]
struct Assignment {
    cluster_name: String,
    endpoints: Vec<Locality>,
}

#[derive(Debug, Deserialize)]
struct Locality {
    lb_endpoints: Vec<LbEndpoint>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LbEndpoint {
    endpoint: Endpoint,
    health_status: Health,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancing_weight: Option<u32>,
    metadata: Metadata,
}

#[derive(Debug, Serialize, Deserialize)]
struct Endpoint {
    address: Address,
    hostname: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Address {
    socket_address: SocketAddress,
}

#[derive(Debug, Serialize, Deserialize)]
struct SocketAddress {
    address: IpAddr,
    port_value: u16,
}

#[derive(Debug, Serialize, Deserialize)]
enum Health {
    #[serde(rename = "HEALTHY")]
    Healthy,
    #[serde(rename = "DRAINING")]
    Draining,
}

#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    filter_metadata: FilterMetadata,
}

#[derive(Debug, Serialize, Deserialize)]
struct FilterMetadata {
    #[serde(rename = "envoy.lb")]
    subset: BTreeMap<String, String>,
    nodeagent: Identity,
}

#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    instance: String,
    generation: String,
    host: String,
    fleet: String,
}

/// One instance's endpoint, as a line without its end.
pub(super) fn endpoint(record: &RegistrationRecord) -> Result<String, serde_json::Error> {
    serde_json::to_string(&LbEndpoint {
        endpoint: Endpoint {
            address: Address {
                socket_address: SocketAddress { address: record.address, port_value: record.port },
            },
            hostname: record.hostname.clone(),
        },
        health_status: if record.weight == 0 { Health::Draining } else { Health::Healthy },
        load_balancing_weight: (record.weight > 0).then_some(record.weight),
        metadata: Metadata {
            filter_metadata: FilterMetadata {
                subset: record.metadata.clone(),
                nodeagent: Identity {
                    instance: record.instance.to_string(),
                    generation: record.generation.to_string(),
                    host: record.host_id.clone(),
                    fleet: record.fleet.clone(),
                },
            },
        },
    })
}

/// The whole file. Service names need no escaping (`record::is_service_name`).
pub(super) fn file<'a>(
    service: &str,
    version: u64,
    endpoints: impl Iterator<Item = &'a str>,
) -> Vec<u8> {
    let mut text = format!(
        r#"{{"version_info":"{version}","resources":[{{"@type":"{TYPE}","cluster_name":"{service}","endpoints":["#
    );
    let mut any = false;
    for endpoint in endpoints {
        text.push_str(if any { ",\n" } else { "{\"lb_endpoints\":[\n" });
        text.push_str(endpoint);
        any = true;
    }
    text.push_str(if any { "\n]}]}]}\n" } else { "]}]}\n" });
    text.into_bytes()
}

/// Reads a file of ours back.
pub(super) fn read(service: &str, bytes: &[u8]) -> Result<ServiceFile, NotOurs> {
    let mut response: Response = serde_json::from_slice(bytes).map_err(NotOurs::Shape)?;
    let (Some(assignment), true) = (response.resources.pop(), response.resources.is_empty()) else {
        return Err(NotOurs::Resources(response.resources.len()));
    };
    if assignment.cluster_name != service {
        return Err(NotOurs::Cluster {
            found: assignment.cluster_name,
            expected: service.to_owned(),
        });
    }
    let endpoints = assignment.endpoints.into_iter().flat_map(|locality| locality.lb_endpoints);
    let records = endpoints.map(|endpoint| record(service, endpoint)).collect::<Result<_, _>>()?;
    // Only Envoy's eyes compare versions, and only for difference: an odd one starts again.
    let version = response.version_info.parse().unwrap_or(0);
    Ok(ServiceFile { version, records })
}

fn record(service: &str, found: LbEndpoint) -> Result<RegistrationRecord, NotOurs> {
    let identity = found.metadata.filter_metadata.nodeagent;
    let odd = |field, value: &str| NotOurs::Endpoint {
        instance: identity.instance.clone(),
        field,
        value: value.to_owned(),
    };
    let record = RegistrationRecord {
        service: service.to_owned(),
        instance: identity.instance.parse().map_err(|_| odd("instance", &identity.instance))?,
        generation: identity.generation.parse().map_err(|_| odd("generation", &identity.generation))?,
        weight: match (found.health_status, found.load_balancing_weight) {
            (Health::Draining, None) => 0,
            (Health::Healthy, Some(weight)) if weight > 0 => weight,
            (health, weight) => return Err(odd("weight", &format!("{weight:?}, {health:?}"))),
        },
        host_id: identity.host.clone(),
        fleet: identity.fleet.clone(),
        hostname: found.endpoint.hostname,
        address: found.endpoint.address.socket_address.address,
        port: found.endpoint.address.socket_address.port_value,
        metadata: found.metadata.filter_metadata.subset,
    };
    record.check().map_err(|invalid| odd(invalid.field, &invalid.value))?;
    Ok(record)
}
