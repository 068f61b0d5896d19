//! Forwarding of packets between instances and the world.

use super::facts::number_of;
use super::finding::Finding;

/// What the kernel forwards.
#[derive(Debug, Clone)]
pub(super) struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub ipv4: Result<u64, String>,
}

pub(super) fn read() -> Forwarding {
    Forwarding {
        ipv4: number_of("/proc/sys/net/ipv4/ip_forward"),
    }
}

pub(super) fn judge(forwarding: &Forwarding) -> Vec<Finding> {
    let check = "network.forwarding";
    let means = "instances and this host reach each other, but nobody else reaches them";
    let mend = "sysctl -w net.ipv4.ip_forward=1, and the same in /etc/sysctl.d/";
    vec![match &forwarding.ipv4 {
        Ok(1) => Finding::full(check, "net.ipv4.ip_forward is 1"),
        Ok(value) => Finding::part(
            check,
            format!("net.ipv4.ip_forward is {value}"),
            means,
            mend,
        ),
        Err(why) => Finding::part(check, why, means, mend),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    #[test]
    fn without_forwarding_instances_are_the_hosts_own() {
        let works = |ipv4| judge(&Forwarding { ipv4 })[0].works;
        assert_eq!(works(Ok(1)), Works::Full);
        assert_eq!(works(Ok(0)), Works::Part);
        assert_eq!(works(Err("none".to_owned())), Works::Part);
    }
}
