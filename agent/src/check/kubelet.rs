//! The kubelet's collection of images, where the agent makes images for it.
//!
//! containerd's CRI plugin tells the kubelet which images are pinned since 1.6.22, 1.7.3 and 2.0
//! (containerd #7944; in the sources of 1.6.21 and 1.7.2 the label does not occur).
//! With an older one the kubelet collects our images as any other, unless its threshold is 100.

use std::path::{Path, PathBuf};

use super::containerd::Containerd;
use super::finding::Finding;
use crate::config;
use crate::document::{Value, from_yaml};
use crate::runtime::KUBERNETES;

/// Where the kubelet collects nothing by how full its disk is (kubelet, `images`,
/// `image_gc_manager.go`).
const NEVER: i128 = 100;
/// The kubelet's own default.
const DEFAULT: i128 = 85;

/// What the kubelet is told.
#[derive(Debug, Clone)]
pub(super) struct Kubelet {
    pub config: PathBuf,
    /// Its `imageGCHighThresholdPercent`; or why that is not known.
    pub threshold: Result<i128, String>,
}

pub(super) fn read(settings: &config::Images) -> Kubelet {
    let config = settings.kubelet_config.clone();
    Kubelet {
        threshold: threshold(&config),
        config,
    }
}

fn threshold(config: &Path) -> Result<i128, String> {
    let text = std::fs::read_to_string(config).map_err(|error| error.to_string())?;
    let document = from_yaml(&text).map_err(|finding| finding.to_string())?;
    let Value::Table(entries) = document.value else {
        return Err("it is no KubeletConfiguration".to_owned());
    };
    let key = "imageGCHighThresholdPercent";
    let found = entries.into_iter().find(|entry| entry.key == key);
    match found.map(|entry| entry.node.value) {
        Some(Value::Integer(percent)) => Ok(percent),
        None | Some(Value::Null) => Ok(DEFAULT),
        Some(_) => Err(format!("{key} is no number")),
    }
}

/// Nothing where no kubelet looks at our images, or containerd does not answer.
pub(super) fn judge(kubelet: &Kubelet, containerd: &Containerd) -> Option<Finding> {
    let version = &containerd.answer.as_ref().ok()?.version;
    if containerd.namespace != KUBERNETES {
        return None;
    }
    let check = "images.kubelet";
    let config = kubelet.config.display();
    if tells_pinned(version) {
        let found = format!("containerd {version} tells the kubelet which images are pinned");
        return Some(Finding::full(check, found));
    }
    let found = format!("containerd {version} does not tell the kubelet which images are pinned");
    let found = match &kubelet.threshold {
        Ok(NEVER) => {
            let found = format!("{found}; its imageGCHighThresholdPercent is {NEVER} ({config})");
            return Some(Finding::full(check, found));
        }
        Ok(percent) => format!("{found}; its imageGCHighThresholdPercent is {percent} ({config})"),
        Err(why) => {
            format!("{found}; its imageGCHighThresholdPercent is not known ({config}: {why})")
        }
    };
    Some(Finding::part(
        check,
        found,
        "the kubelet removes images that the agent made ready",
        format!(
            "imageGCHighThresholdPercent: {NEVER} in the kubelet's configuration, whose path is \
             images.kubelet_config; or containerd 1.6.22, 1.7.3 or 2.x"
        ),
    ))
}

fn tells_pinned(version: &str) -> bool {
    let numbers = version
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit());
    let mut numbers = numbers.map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (1, 6, patch) => patch >= 22,
        (1, 7, patch) => patch >= 3,
        (major, ..) => major >= 2,
    }
}

#[cfg(test)]
mod tests {
    use super::super::containerd::Answer;
    use super::*;
    use crate::check::Works;

    fn judged(version: &str, namespace: &str, threshold: Result<i128, String>) -> Option<Finding> {
        let kubelet = Kubelet {
            config: "/kubelet.yaml".into(),
            threshold,
        };
        let containerd = Containerd {
            socket: "/run/c.sock".into(),
            namespace: namespace.to_owned(),
            snapshotter: "overlayfs".into(),
            shim: "io.containerd.runc.v2".into(),
            answer: Ok(Answer {
                version: version.to_owned(),
                snapshotters: Ok(Vec::new()),
                shim: None,
                same_mounts: Ok(true),
            }),
        };
        judge(&kubelet, &containerd)
    }

    #[test]
    fn a_containerd_too_old_for_pins_wants_a_threshold_of_100() {
        let works = |version, threshold| {
            let finding = judged(version, "k8s.io", threshold).unwrap();
            (finding.works, finding.mend.unwrap_or_default())
        };
        for new in ["1.6.22", "1.7.3", "v2.0.0", "2.2.0", "3.0.0-beta.1"] {
            assert_eq!(works(new, Ok(85)).0, Works::Full, "{new}");
        }
        for old in ["1.6.20~ds1", "1.6.21", "1.7.0", "v1.7.2", "1.5.9", "x"] {
            assert_eq!(works(old, Ok(100)).0, Works::Full, "{old}");
            for other in [Ok(85), Ok(99), Err("No such file".to_owned())] {
                let (works, mend) = works(old, other);
                assert_eq!(works, Works::Part, "{old}");
                assert!(mend.contains("imageGCHighThresholdPercent: 100"), "{mend}");
            }
        }
    }

    #[test]
    fn away_from_kubernetes_the_kubelet_is_nobodys_business() {
        assert_eq!(judged("1.6.20", "nodeagent", Ok(85)), None);
    }

    #[test]
    fn the_threshold_is_what_the_file_says_or_the_kubelets_default() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        let of = |text: &str| {
            std::fs::write(&file, text).unwrap();
            threshold(&file)
        };
        let kind = "kind: KubeletConfiguration\n";
        assert_eq!(of(kind), Ok(85));
        let set =
            format!("{kind}imageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 1\n");
        assert_eq!(of(&set), Ok(100));
        assert_eq!(of(r#"{"imageGCHighThresholdPercent": 70}"#), Ok(70));
        let text = of("imageGCHighThresholdPercent: many\n").unwrap_err();
        assert_eq!(text, "imageGCHighThresholdPercent is no number");
        assert!(of("- 1\n").unwrap_err().contains("no KubeletConfiguration"));
        std::fs::remove_file(&file).unwrap();
        assert!(threshold(&file).unwrap_err().contains("No such file"));
    }
}
