//! The manifest as it is written. Field names are Kubernetes' wherever Kubernetes has the thing.
//!
//! Everything is optional here: what is missing or wrong is for `validate` to say.

pub(super) mod security;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroU16;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

use security::{SecurityContext, Ulimits};

/// The whole document.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["apiVersion", "kind", "metadata", "spec"]))]
pub(super) struct Manifest {
    #[schemars(extend("const" = "nodeagent/v1"))]
    pub(super) api_version: Option<String>,
    #[schemars(extend("const" = "App"))]
    pub(super) kind: Option<String>,
    pub(super) metadata: Option<Metadata>,
    pub(super) spec: Option<Spec>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["name"]))]
pub(super) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(extend("required" = ["image"]))]
pub(super) struct Spec {
    pub(super) image: Option<String>,
    pub(super) command: Option<Vec<String>>,
    pub(super) args: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
    pub(super) user: Option<Scalar>,
    pub(super) env_from: Option<Vec<EnvFrom>>,
    pub(super) env: Option<Vec<NameValue>>,
    pub(super) hostname: Option<String>,
    pub(super) host_aliases: Option<Vec<HostAlias>>,
    pub(super) dns_policy: Option<String>,
    pub(super) dns_config: Option<DnsConfig>,
    pub(super) ports: Option<Vec<Port>>,
    pub(super) resources: Option<Resources>,
    pub(super) security_context: Option<SecurityContext>,
    pub(super) ulimits: Option<Ulimits>,
    pub(super) nice: Option<i8>,
    pub(super) oom_score_adj: Option<i16>,
    pub(super) stop_signal: Option<Scalar>,
    pub(super) signal_delivery: Option<String>,
    pub(super) signals: Option<Vec<SignalRewrite>>,
    pub(super) exit_codes: Option<Vec<ExitCodeRewrite>>,
    pub(super) startup: Option<VitalProbe>,
    pub(super) readiness: Option<Readiness>,
    pub(super) liveness: Option<VitalProbe>,
    pub(super) agents: Option<Vec<Agent>>,
    pub(super) volumes: Option<Vec<Volume>>,
    pub(super) volume_mounts: Option<Vec<VolumeMount>>,
    pub(super) secret_files: Option<Vec<SecretFile>>,
    pub(super) restart_policy: Option<String>,
    pub(super) reuse: Option<Reuse>,
    pub(super) warm: Option<Warm>,
    pub(super) registration: Option<Registration>,
    pub(super) network: Option<Network>,
    pub(super) termination_grace_period_seconds: Option<u32>,
    pub(super) drain_seconds: Option<u32>,
}

/// `{name, value}` of environment and headers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NameValue {
    pub(super) name: Option<String>,
    pub(super) value: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct EnvFrom {
    pub(super) prefix: Option<String>,
    pub(super) env_file: Option<EnvFile>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct EnvFile {
    pub(super) path: Option<String>,
    pub(super) optional: Option<bool>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct HostAlias {
    pub(super) ip: Option<String>,
    pub(super) hostnames: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DnsConfig {
    pub(super) nameservers: Option<Vec<String>>,
    pub(super) searches: Option<Vec<String>>,
    pub(super) options: Option<Vec<DnsOption>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DnsOption {
    pub(super) name: Option<String>,
    pub(super) value: Option<Scalar>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) container_port: Option<PortNumber>,
    pub(super) protocol: Option<Protocol>,
    pub(super) host_port: Option<Scalar>,
    #[serde(rename = "hostIP")]
    pub(super) host_ip: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Resources {
    pub(super) limits: Option<Limits>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Limits {
    pub(super) cpu: Option<Scalar>,
    pub(super) memory: Option<Scalar>,
    pub(super) pids: Option<u64>,
}

/// Exactly one of the first six, and how to time it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Readiness {
    pub(super) http_get: Option<HttpGet>,
    pub(super) tcp_socket: Option<TcpSocket>,
    pub(super) exec: Option<Exec>,
    pub(super) notify: Option<Empty>,
    pub(super) notification_fd: Option<u32>,
    pub(super) none: Option<Empty>,
    pub(super) initial_delay_seconds: Option<u32>,
    pub(super) period_seconds: Option<u32>,
    pub(super) timeout_seconds: Option<u32>,
    pub(super) success_threshold: Option<u32>,
    pub(super) failure_threshold: Option<u32>,
}

/// `startup` and `liveness`: exactly one of the first three, and how to time it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct VitalProbe {
    pub(super) http_get: Option<HttpGet>,
    pub(super) tcp_socket: Option<TcpSocket>,
    pub(super) exec: Option<Exec>,
    pub(super) initial_delay_seconds: Option<u32>,
    pub(super) period_seconds: Option<u32>,
    pub(super) timeout_seconds: Option<u32>,
    pub(super) success_threshold: Option<u32>,
    pub(super) failure_threshold: Option<u32>,
    pub(super) termination_grace_period_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct HttpGet {
    pub(super) path: Option<String>,
    pub(super) port: Option<Scalar>,
    pub(super) scheme: Option<Scheme>,
    pub(super) host: Option<String>,
    pub(super) http_headers: Option<Vec<NameValue>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Scheme {
    Http,
    Https,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct TcpSocket {
    pub(super) port: Option<Scalar>,
    pub(super) host: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Exec {
    pub(super) command: Option<Vec<String>>,
}

/// `{}`: chosen by being there.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Empty {}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Agent {
    pub(super) name: Option<String>,
    pub(super) command: Option<Vec<String>>,
    pub(super) env: Option<Vec<NameValue>>,
    pub(super) user: Option<Scalar>,
    pub(super) working_dir: Option<String>,
    pub(super) ulimits: Option<Ulimits>,
    pub(super) nice: Option<i8>,
    pub(super) oom_score_adj: Option<i16>,
    pub(super) stop_signal: Option<Scalar>,
    pub(super) signal_delivery: Option<String>,
    pub(super) termination_grace_period_seconds: Option<u32>,
    pub(super) depends_on: Option<Vec<String>>,
    pub(super) readiness: Option<Readiness>,
    pub(super) essential: Option<bool>,
    pub(super) restart_policy: Option<String>,
    pub(super) max_restarts: Option<u32>,
    pub(super) resources: Option<Resources>,
    pub(super) exit_code: Option<u8>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SignalRewrite {
    pub(super) from: Option<Scalar>,
    pub(super) to: Option<Scalar>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ExitCodeRewrite {
    pub(super) from: Option<u8>,
    pub(super) to: Option<u8>,
}

/// Exactly one of the last three.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Volume {
    pub(super) name: Option<String>,
    pub(super) host_path: Option<HostPath>,
    pub(super) empty_dir: Option<EmptyDir>,
    pub(super) instance_directory: Option<Empty>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct HostPath {
    pub(super) path: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<HostPathType>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) enum HostPathType {
    Directory,
    File,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct EmptyDir {
    pub(super) medium: Option<Medium>,
    pub(super) size_limit: Option<Scalar>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) enum Medium {
    Memory,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct VolumeMount {
    pub(super) name: Option<String>,
    pub(super) mount_path: Option<String>,
    pub(super) read_only: Option<bool>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SecretFile {
    pub(super) name: Option<String>,
    pub(super) source: Option<String>,
    pub(super) mode: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Reuse {
    pub(super) clean: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Warm {
    pub(super) armed: Option<u32>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Registration {
    pub(super) enabled: Option<bool>,
    pub(super) service: Option<String>,
    pub(super) address: Option<RegisteredAddress>,
    pub(super) port: Option<Scalar>,
    pub(super) weight: Option<u32>,
    pub(super) metadata: Option<BTreeMap<String, String>>,
}

/// As Kubernetes spells them; SCTP is not forwarded.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub(super) enum Protocol {
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum RegisteredAddress {
    Instance,
    Host,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Network {
    Routed,
    Host,
}

/// A port: 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortNumber(pub(super) NonZeroU16);

impl<'de> Deserialize<'de> for PortNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Port;
        impl Visitor<'_> for Port {
            type Value = PortNumber;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a port number, 1 to 65535")
            }

            fn visit_i128<E: Error>(self, number: i128) -> Result<PortNumber, E> {
                let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
                port.map(PortNumber)
                    .ok_or_else(|| E::invalid_value(Unexpected::Other("this number"), &self))
            }
        }
        deserializer.deserialize_i128(Port)
    }
}

impl JsonSchema for PortNumber {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "PortNumber".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": 65_535 })
    }
}

/// A text or a number, as Kubernetes has it for ports, quantities and users.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Text(String),
    Number(String),
}

impl Scalar {
    /// As written.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Number(text) => text,
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Scalar;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text or a number")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }

            fn visit_i128<E>(self, number: i128) -> Result<Scalar, E> {
                Ok(Scalar::Number(number.to_string()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Scalar, E> {
                Ok(Scalar::Number(number.to_string()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Scalar {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number"] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::names::{documented_fields, field_names};
    use std::collections::BTreeSet;

    /// What agents share with the app, and probes with each other, is documented once.
    fn documented_as(field: &str) -> String {
        for probe in ["spec.startup", "spec.liveness"] {
            let own = format!("{probe}.terminationGracePeriodSeconds");
            if field.starts_with(probe) && field != own {
                return probe.to_owned();
            }
        }
        for shared in [
            "spec.agents[].readiness",
            "spec.agents[].env",
            "spec.agents[].ulimits",
            "spec.agents[].resources",
        ] {
            if field.starts_with(shared) {
                return shared.to_owned();
            }
        }
        let limit = field.strip_prefix("spec.ulimits.");
        if let Some((_, bound)) = limit.and_then(|limit| limit.split_once('.')) {
            return format!("spec.ulimits.nofile.{bound}");
        }
        field.trim_end_matches("[]").to_owned()
    }

    /// Every field is in the example that shows them all; of what excludes each other, one stands
    /// in a comment.
    #[test]
    fn the_complete_example_has_every_field() {
        let text = include_str!("../../../docs/examples/complete.yaml");
        crate::app::parse(text).unwrap();
        let root = crate::document::from_yaml(text).unwrap();
        let as_documented = |field: &str| {
            let field = field.replace("spec.agents[].readiness", "spec.readiness");
            documented_as(&field.replace("spec.startup.tcpSocket", "spec.readiness.tcpSocket"))
        };
        let shown: BTreeSet<String> = root
            .places()
            .keys()
            .map(|path| {
                // `ports[0].name` is `ports[].name`.
                let digits = |c: char| c.is_ascii_digit();
                let parts = path.split('[').map(|part| part.trim_start_matches(digits));
                as_documented(&parts.collect::<Vec<_>>().join("["))
            })
            .collect();
        let all: BTreeSet<String> = field_names::<Manifest>()
            .iter()
            .map(|field| as_documented(field))
            .collect();
        let missing: Vec<&String> = all
            .difference(&shown)
            .filter(|field| *field != "spec.user")
            .collect();
        assert_eq!(missing, Vec::<&String>::new());
    }

    #[test]
    fn every_field_is_documented_and_every_documented_field_exists() {
        let page = include_str!("../../../docs/operations/manifest.md");
        let mut fields: BTreeSet<String> = field_names::<Manifest>()
            .iter()
            .map(|field| documented_as(field))
            .collect();
        // Not a leaf, but its absence has a meaning.
        fields.insert("spec.readiness".to_owned());
        assert_eq!(documented_fields(page), fields);
    }
}
