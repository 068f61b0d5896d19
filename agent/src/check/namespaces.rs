//! Namespaces: the kinds that a container is made of, and how many networks there may be.

use std::path::Path;

use super::facts::number_of;
use super::finding::Finding;

/// Kinds of which every container has its own; `cgroup` on version 2 only.
const KINDS: [&str; 5] = ["ipc", "mnt", "net", "pid", "uts"];
/// Instances that a host should have room for.
const INSTANCES: u64 = 1000;

/// What the kernel allows.
#[derive(Debug, Clone)]
pub(super) struct Namespaces {
    /// Kinds that it does not have.
    pub missing: Vec<&'static str>,
    /// Network namespaces at most (`user.max_net_namespaces`).
    pub networks: Result<u64, String>,
}

pub(super) fn read() -> Namespaces {
    let there = |kind: &&str| Path::new("/proc/self/ns").join(kind).exists();
    Namespaces {
        missing: KINDS.into_iter().filter(|kind| !there(kind)).collect(),
        networks: number_of("/proc/sys/user/max_net_namespaces"),
    }
}

pub(super) fn judge(namespaces: &Namespaces) -> Vec<Finding> {
    let kinds = "namespaces.kinds";
    let kinds = if namespaces.missing.is_empty() {
        Finding::full(kinds, KINDS.join(", "))
    } else {
        Finding::not(
            kinds,
            format!("missing: {}", namespaces.missing.join(", ")),
            "containers cannot be kept apart",
            "a kernel with these namespaces",
        )
    };
    let check = "namespaces.networks";
    let networks = match &namespaces.networks {
        Ok(most) if *most >= INSTANCES => Finding::full(check, format!("{most} at most")),
        Ok(most) => Finding::part(
            check,
            format!("{most} at most"),
            format!("no more than {most} instances with a network of their own"),
            "sysctl -w user.max_net_namespaces=16384, and the same in /etc/sysctl.d/",
        ),
        Err(why) => Finding::part(
            check,
            why,
            "how many instances may have a network of their own is not known",
            "mount /proc, and run as root",
        ),
    };
    vec![kinds, networks]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    #[test]
    fn few_network_namespaces_are_said_with_the_number_of_instances() {
        let with = |networks| Namespaces {
            missing: Vec::new(),
            networks,
        };
        assert_eq!(judge(&with(Ok(30_000)))[1].works, Works::Full);
        let few = &judge(&with(Ok(10)))[1];
        assert_eq!(few.works, Works::Part);
        assert!(
            few.means
                .as_ref()
                .is_some_and(|m| m.contains("10 instances"))
        );
        let mut none = with(Ok(10));
        none.missing = vec!["net"];
        assert_eq!(judge(&none)[0].works, Works::Not);
    }
}
