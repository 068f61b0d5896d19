//! One configuration file as it is written: every key optional, none unknown.

use schemars::JsonSchema;
use serde::Deserialize;

/// The version of this shape, required in every file.
pub(super) const VERSION: u32 = 1;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["version"]))]
pub(super) struct Fragment {
    #[schemars(extend("const" = VERSION))]
    pub(super) version: Option<u32>,
    pub(super) host: Option<Host>,
    pub(super) paths: Option<Paths>,
    pub(super) api: Option<Api>,
    pub(super) containerd: Option<Containerd>,
    pub(super) runtime: Option<Runtime>,
    pub(super) network: Option<Network>,
    pub(super) images: Option<Images>,
    pub(super) volumes: Option<Volumes>,
    pub(super) logs: Option<Logs>,
    pub(super) security: Option<Security>,
    pub(super) discovery: Option<Discovery>,
    pub(super) tasks: Option<Tasks>,
    pub(super) refill: Option<Refill>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Host {
    pub(super) id: Option<String>,
    pub(super) fleet: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Paths {
    pub(super) state: Option<String>,
    pub(super) runtime: Option<String>,
    pub(super) api_socket: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Api {
    pub(super) socket_mode: Option<String>,
    pub(super) socket_group: Option<String>,
    pub(super) view_groups: Option<Vec<String>>,
    pub(super) view_users: Option<Vec<String>>,
    pub(super) operate_groups: Option<Vec<String>>,
    pub(super) operate_users: Option<Vec<String>>,
    pub(super) admin_groups: Option<Vec<String>>,
    pub(super) admin_users: Option<Vec<String>>,
    pub(super) tls: Option<ApiTls>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ApiTls {
    pub(super) listen: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
    pub(super) client_ca: Option<String>,
    pub(super) view: Option<Vec<String>>,
    pub(super) operate: Option<Vec<String>>,
    pub(super) admin: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Containerd {
    pub(super) socket: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) snapshotter: Option<String>,
    pub(super) timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Runtime {
    pub(super) shim: Option<String>,
    pub(super) binary: Option<String>,
    pub(super) cgroup_parent: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) container_init: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Network {
    pub(super) mode: Option<String>,
    pub(super) bridge_ports: Option<u32>,
    pub(super) pools: Option<Vec<String>>,
    pub(super) gateway: Option<String>,
    pub(super) link_group: Option<u32>,
    pub(super) mtu: Option<u32>,
    pub(super) quarantine: Option<String>,
    pub(super) reachable: Option<bool>,
    pub(super) host_address: Option<String>,
    pub(super) host_ports: Option<String>,
    pub(super) masquerade: Option<bool>,
    pub(super) masquerade_except: Option<Vec<String>>,
    pub(super) forwarding: Option<String>,
    pub(super) table: Option<String>,
    pub(super) resolv_conf: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Images {
    pub(super) insecure_registries: Option<Vec<String>>,
    pub(super) pull_timeout: Option<String>,
    pub(super) stall_timeout: Option<String>,
    pub(super) auth_file: Option<String>,
    pub(super) root: Option<String>,
    pub(super) hosts_dir: Option<String>,
    pub(super) ca_file: Option<String>,
    pub(super) bandwidth: Option<String>,
    pub(super) keep_blobs: Option<bool>,
    pub(super) stable_file: Option<String>,
    pub(super) check_interval: Option<String>,
    pub(super) max_size: Option<String>,
    pub(super) max_files: Option<u32>,
    pub(super) kubelet_config: Option<String>,
    pub(super) connections: Option<u32>,
    pub(super) connections_per_blob: Option<u32>,
    pub(super) chunk: Option<String>,
    pub(super) retries: Option<u32>,
    pub(super) hedge_after: Option<String>,
    pub(super) proxy: Option<String>,
    pub(super) no_proxy: Option<Vec<String>>,
    pub(super) credential_helpers: Option<String>,
    pub(super) policy: Option<ImagePolicy>,
    pub(super) peers: Option<ImagePeers>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ImagePeers {
    pub(super) listen: Option<String>,
    pub(super) address: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) rack: Option<String>,
    pub(super) hosts: Option<Vec<ImagePeer>>,
    pub(super) token_file: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
    pub(super) ca: Option<String>,
    pub(super) uploads: Option<u32>,
    pub(super) bandwidth: Option<String>,
    pub(super) slowest: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ImagePeer {
    pub(super) address: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) rack: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ImagePolicy {
    pub(super) default: Option<String>,
    pub(super) rules: Option<Vec<ImageRule>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ImageRule {
    pub(super) scope: Option<String>,
    pub(super) verdict: Option<String>,
    pub(super) require_digest: Option<bool>,
    pub(super) require_signature: Option<Vec<String>>,
    pub(super) signed_as: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Volumes {
    pub(super) allowed_host_paths: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Logs {
    pub(super) max_size: Option<String>,
    pub(super) max_files: Option<u32>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Security {
    pub(super) allowed_capabilities: Option<Vec<String>>,
    pub(super) allowed_sysctls: Option<Vec<String>>,
    pub(super) seccomp_profiles: Option<String>,
    pub(super) allowed_env_file_paths: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Discovery {
    pub(super) file: Option<FileDiscovery>,
    pub(super) etcd: Option<EtcdDiscovery>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileDiscovery {
    pub(super) enabled: Option<bool>,
    pub(super) required: Option<bool>,
    pub(super) directory: Option<String>,
    pub(super) propagation_bound: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EtcdDiscovery {
    pub(super) enabled: Option<bool>,
    pub(super) required: Option<bool>,
    pub(super) endpoints: Option<Vec<String>>,
    pub(super) prefix: Option<String>,
    pub(super) ttl: Option<String>,
    pub(super) dial_timeout: Option<String>,
    pub(super) request_timeout: Option<String>,
    pub(super) propagation_bound: Option<String>,
    pub(super) username: Option<String>,
    pub(super) password_file: Option<String>,
    pub(super) ca_file: Option<String>,
    pub(super) cert_file: Option<String>,
    pub(super) key_file: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tasks {
    pub(super) activation_deadline: Option<String>,
    pub(super) keep_results: Option<String>,
    pub(super) give_up_after: Option<u32>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Refill {
    pub(super) concurrency: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::names::{documented_fields, field_names};
    use std::collections::BTreeSet;

    #[test]
    fn every_key_is_documented_and_every_documented_key_exists() {
        let page = include_str!("../../../docs/operations/configuration.md");
        let keys: BTreeSet<String> = field_names::<Fragment>()
            .into_iter()
            .map(|key| key.trim_end_matches("[]").to_owned())
            .collect();
        assert_eq!(documented_fields(page), keys);
    }
}
