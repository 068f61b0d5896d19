//! `securityContext` and `ulimits` as they are written. The first is Kubernetes', of the pod and of
//! the container in one; the second is Docker's and Compose's, because Kubernetes has none.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(in crate::app) struct SecurityContext {
    pub(in crate::app) run_as_user: Option<u32>,
    pub(in crate::app) run_as_group: Option<u32>,
    pub(in crate::app) run_as_non_root: Option<bool>,
    pub(in crate::app) supplemental_groups: Option<Vec<u32>>,
    pub(in crate::app) fs_group: Option<u32>,
    pub(in crate::app) read_only_root_filesystem: Option<bool>,
    pub(in crate::app) allow_privilege_escalation: Option<bool>,
    pub(in crate::app) capabilities: Option<Capabilities>,
    pub(in crate::app) seccomp_profile: Option<SeccompProfile>,
    pub(in crate::app) sysctls: Option<Vec<Sysctl>>,
    pub(in crate::app) privileged: Option<bool>,
    pub(in crate::app) proc_mount: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(in crate::app) struct Capabilities {
    pub(in crate::app) add: Option<Vec<String>>,
    pub(in crate::app) drop: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(in crate::app) struct SeccompProfile {
    #[serde(rename = "type")]
    pub(in crate::app) kind: Option<SeccompType>,
    pub(in crate::app) localhost_profile: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(in crate::app) enum SeccompType {
    RuntimeDefault,
    Unconfined,
    Localhost,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(in crate::app) struct Sysctl {
    pub(in crate::app) name: Option<String>,
    pub(in crate::app) value: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(in crate::app) struct Ulimits {
    pub(in crate::app) core: Option<Ulimit>,
    pub(in crate::app) cpu: Option<Ulimit>,
    pub(in crate::app) data: Option<Ulimit>,
    pub(in crate::app) fsize: Option<Ulimit>,
    pub(in crate::app) locks: Option<Ulimit>,
    pub(in crate::app) memlock: Option<Ulimit>,
    pub(in crate::app) msgqueue: Option<Ulimit>,
    pub(in crate::app) nice: Option<Ulimit>,
    pub(in crate::app) nofile: Option<Ulimit>,
    pub(in crate::app) nproc: Option<Ulimit>,
    pub(in crate::app) rss: Option<Ulimit>,
    pub(in crate::app) rtprio: Option<Ulimit>,
    pub(in crate::app) rttime: Option<Ulimit>,
    pub(in crate::app) sigpending: Option<Ulimit>,
    pub(in crate::app) stack: Option<Ulimit>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(in crate::app) struct Ulimit {
    pub(in crate::app) soft: Option<Limit>,
    pub(in crate::app) hard: Option<Limit>,
}

/// A number, or -1 for unlimited, which is kept as the highest number as in setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::app) struct Limit(pub(in crate::app) u64);

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Limit;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number from 0 on, or -1 for unlimited")
            }

            fn visit_i128<E: Error>(self, number: i128) -> Result<Limit, E> {
                match number {
                    -1 => Ok(Limit(u64::MAX)),
                    number => u64::try_from(number)
                        .map(Limit)
                        .map_err(|_| E::invalid_value(Unexpected::Other("this number"), &self)),
                }
            }
        }
        deserializer.deserialize_i128(Number)
    }
}

impl JsonSchema for Limit {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": -1 })
    }
}
