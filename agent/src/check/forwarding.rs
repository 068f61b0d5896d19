//! Forwarding of packets between instances and the world.

use super::facts::number_of;
use super::finding::Finding;
use crate::chain::chain;
use crate::config;
use crate::network::{self, Dropping, Survey};

/// What the kernel forwards.
#[derive(Debug, Clone)]
pub(super) struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub ipv4: Result<u64, String>,
    /// What the packet filter does with it.
    pub filter: Result<Survey, String>,
    /// `network.link_group`.
    pub group: u32,
}

pub(super) fn read(settings: &config::Network) -> Forwarding {
    Forwarding {
        ipv4: number_of("/proc/sys/net/ipv4/ip_forward"),
        filter: network::survey(settings.link_group).map_err(|error| chain(&error)),
        group: settings.link_group,
    }
}

pub(super) fn judge(forwarding: &Forwarding) -> Vec<Finding> {
    vec![
        kernel(&forwarding.ipv4),
        firewall(&forwarding.filter, forwarding.group),
    ]
}

fn kernel(ipv4: &Result<u64, String>) -> Finding {
    let check = "network.forwarding";
    let means = "instances and this host reach each other, but nobody else reaches them";
    let mend = "sysctl -w net.ipv4.ip_forward=1, and the same in /etc/sysctl.d/";
    match ipv4 {
        Ok(1) => Finding::full(check, "net.ipv4.ip_forward is 1"),
        Ok(value) => Finding::part(
            check,
            format!("net.ipv4.ip_forward is {value}"),
            means,
            mend,
        ),
        Err(why) => Finding::part(check, why, means, mend),
    }
}

fn firewall(filter: &Result<Survey, String>, group: u32) -> Finding {
    let check = "network.firewall";
    let survey = match filter {
        Ok(survey) => survey,
        Err(why) => {
            return Finding::part(
                check,
                why,
                "whether a firewall drops what is forwarded is not known",
                "nodeagent check as root",
            );
        }
    };
    if survey.drops.is_empty() {
        return Finding::full(
            check,
            match survey.legacy {
                true => {
                    "no chain of nf_tables drops what is forwarded; iptables-legacy has a filter table, which is not looked into"
                }
                false => "no chain drops what is forwarded",
            },
        );
    }
    let named: Vec<String> = survey.drops.iter().map(ToString::to_string).collect();
    let mends: Vec<String> = survey
        .drops
        .iter()
        .map(|chain| mend(chain, group))
        .collect();
    Finding::part(
        check,
        format!(
            "{}; no rule before that accepts link group {group} from and to",
            named.join("; ")
        ),
        "unless another rule accepts them, connections between instances and other hosts are dropped, and so are host ports",
        mends.join("; "),
    )
}

/// In the words of whoever manages the chain: iptables does not read rules of nft.
fn mend(chain: &Dropping, group: u32) -> String {
    let Dropping {
        family,
        table,
        chain,
        ..
    } = chain;
    if (*family, table.as_str(), chain.as_str()) == ("ip", "filter", "FORWARD") {
        let accept =
            |side| format!("iptables -I FORWARD -m devgroup --{side}-group {group} -j ACCEPT");
        return format!("{}; {}", accept("src"), accept("dst"));
    }
    let accept =
        |side| format!("nft insert rule {family} {table} {chain} {side}ifgroup {group} accept");
    format!("{}; {}", accept("i"), accept("o"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;
    use crate::network::DropsBy;

    #[test]
    fn without_forwarding_instances_are_the_hosts_own() {
        let works = |ipv4| kernel(&ipv4).works;
        assert_eq!(works(Ok(1)), Works::Full);
        assert_eq!(works(Ok(0)), Works::Part);
        assert_eq!(works(Err("none".to_owned())), Works::Part);
    }

    #[test]
    fn every_chain_that_drops_is_named_with_the_commands_that_mend_it() {
        let chain = |family, table: &str, chain: &str, by| Dropping {
            family,
            table: table.to_owned(),
            chain: chain.to_owned(),
            by,
        };
        let survey = Survey {
            drops: vec![
                chain("inet", "firewalld", "filter_FORWARD", DropsBy::Rule),
                chain("ip", "filter", "FORWARD", DropsBy::Policy),
            ],
            legacy: false,
        };
        let found = firewall(&Ok(survey), 7017);
        assert_eq!(found.works, Works::Part);
        assert_eq!(
            found.found,
            "chain filter_FORWARD of table inet firewalld drops or rejects whatever comes to a rule of it; \
             chain FORWARD of table ip filter has the policy drop; \
             no rule before that accepts link group 7017 from and to"
        );
        assert_eq!(
            found.mend.as_deref(),
            Some(
                "nft insert rule inet firewalld filter_FORWARD iifgroup 7017 accept; \
                 nft insert rule inet firewalld filter_FORWARD oifgroup 7017 accept; \
                 iptables -I FORWARD -m devgroup --src-group 7017 -j ACCEPT; \
                 iptables -I FORWARD -m devgroup --dst-group 7017 -j ACCEPT"
            )
        );
        assert_eq!(firewall(&Ok(Survey::default()), 7017).works, Works::Full);
    }
}
