//! `prometheus.json`: targets for Prometheus' `file_sd_configs`.
//!
//! One group for each instance, one line for each group. The format is that of
//! <https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config>.
//! Labels are plain ones, without `__meta_`, so that they arrive without relabelling: `service`,
//! `app`, `instance`, `host`, `fleet`, `generation`, `weight`, and the metadata (`task_id`, lane).
//!
//! For reading by Prometheus only: label rules bend metadata keys, so the truth after a restart is
//! in the Envoy files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::RegistrationRecord;

/// Labels that mean something to us or, as `job`, to Prometheus' own configuration.
const TAKEN: [&str; 8] =
    ["service", "app", "instance", "host", "fleet", "generation", "weight", "job"];

#[derive(Debug, Serialize, Deserialize)]
struct Group {
    targets: Vec<String>,
    labels: BTreeMap<String, String>,
}

/// One instance's group, as a line without its end.
pub(super) fn group(record: &RegistrationRecord) -> Result<String, serde_json::Error> {
    let mut labels: BTreeMap<String, String> =
        record.metadata.iter().map(|(key, value)| (label_name(key), value.clone())).collect();
    let ours = [
        ("service", record.service.clone()),
        ("app", record.instance.app.to_string()),
        ("instance", record.instance.to_string()),
        ("host", record.host_id.clone()),
        ("fleet", record.fleet.clone()),
        ("generation", record.generation.to_string()),
        ("weight", record.weight.to_string()),
    ];
    labels.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    serde_json::to_string(&Group { targets: vec![record.endpoint().to_string()], labels })
}

/// The whole file.
pub(super) fn file<'a>(groups: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut text = String::from("[");
    for (n, group) in groups.enumerate() {
        text.push_str(if n == 0 { "\n" } else { ",\n" });
        text.push_str(group);
    }
    text.push_str("\n]\n");
    text.into_bytes()
}

/// Whether these bytes are a file that we wrote, whole.
pub(super) fn is_ours(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Vec<Group>>(bytes).is_ok_and(|groups| {
        groups.iter().all(|group| {
            ["instance", "generation"].iter().all(|label| group.labels.contains_key(*label))
        })
    })
}

/// A metadata key as a label name: `[a-zA-Z_][a-zA-Z0-9_]*`, not reserved (`__`), not one of ours.
/// Keys that become the same label: the last in order of the keys stands.
fn label_name(key: &str) -> String {
    let plain: String =
        key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let begins_well = plain.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins_well || plain.starts_with("__") || TAKEN.contains(&plain.as_str()) {
        format!("metadata_{plain}")
    } else {
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metadata_key_becomes_a_label_that_prometheus_takes() {
        for (key, label) in [
            ("task_id", "task_id"),
            ("example.com/lane", "example_com_lane"),
            ("9lives", "metadata_9lives"),
            ("__address__", "metadata___address__"),
            ("instance", "metadata_instance"),
            ("job", "metadata_job"),
            ("größe", "gr__e"),
            ("", "metadata_"),
        ] {
            assert_eq!(label_name(key), label);
        }
    }

    #[test]
    fn a_file_of_somebody_else_is_not_taken_for_ours() {
        assert!(is_ours(b"[\n]\n"));
        assert!(!is_ours(br#"[{"targets":["a:1"],"labels":{"env":"prod"}}]"#));
        assert!(!is_ours(b"[\n{\"targets\":"));
    }
}
