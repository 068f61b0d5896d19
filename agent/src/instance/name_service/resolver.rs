//! `/etc/resolv.conf`: reading the host's, laying the manifest's over it (resolv.conf(5), and
//! `pkg/kubelet/network/dns` of Kubernetes).

use std::fmt::Write;
use std::net::IpAddr;

use crate::app::{Dns, DnsOption, DnsPolicy};

/// A resolver configuration: what is asked, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolver {
    /// Addresses as written, with the zone of a link-local one.
    nameservers: Vec<String>,
    searches: Vec<String>,
    /// `name` or `name:value`.
    options: Vec<String>,
}

impl Resolver {
    /// Reads a file. Of `search` and `domain` the last line counts; what is not known is left out.
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.nameservers.extend(words.next()),
                Some("search") => resolver.searches = words.collect(),
                Some("domain") => resolver.searches = words.take(1).collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    /// Whether it names name servers, and all of them are on loopback: a stub of the host, which a
    /// container with a network of its own does not reach.
    pub fn is_stub(&self) -> bool {
        !self.nameservers.is_empty() && self.nameservers.iter().all(|text| is_loopback(text))
    }

    /// The same without name servers on loopback.
    pub fn without_loopback(mut self) -> Self {
        self.nameservers.retain(|text| !is_loopback(text));
        self
    }

    /// Whether it says where to ask; without, a resolver asks 127.0.0.1 (resolv.conf(5)).
    pub fn has_nameservers(&self) -> bool {
        !self.nameservers.is_empty()
    }

    /// What a container with `dns` has on a host with this configuration. The host's entries come
    /// first; name servers and search domains beyond what a resolver takes are left out.
    pub fn for_container(&self, dns: &Dns) -> Self {
        let mut merged = match dns.policy {
            DnsPolicy::Host => self.clone(),
            DnsPolicy::None => Self::default(),
        };
        let given = dns.nameservers.iter().map(IpAddr::to_string);
        merged.nameservers.extend(given);
        merged.searches.extend(dns.searches.iter().cloned());
        without_repeats(&mut merged.nameservers);
        without_repeats(&mut merged.searches);
        merged.nameservers.truncate(Dns::MAX_NAMESERVERS);
        merged.searches.truncate(Dns::MAX_SEARCHES);
        while merged.searches.join(" ").len() > Dns::MAX_SEARCH_CHARACTERS {
            merged.searches.pop();
        }
        let named = |option: &str| option.split(':').next().map(str::to_owned);
        for DnsOption { name, value } in &dns.options {
            let text = match value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            };
            merged.options.retain(|known| named(known) != named(&text));
            merged.options.push(text);
        }
        merged
    }

    /// The file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "search {}", self.searches.join(" "));
        }
        for address in &self.nameservers {
            let _ = writeln!(text, "nameserver {address}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

fn is_loopback(text: &str) -> bool {
    let address = text.split('%').next().unwrap_or(text);
    address
        .parse()
        .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn without_repeats(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|entry| seen.insert(entry.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# by dhcp\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\n\
        search old.lan\nsearch shop.lan lan\noptions ndots:1 edns0\nsortlist 10.0.0.0\n";

    fn dns() -> Dns {
        Dns {
            policy: DnsPolicy::Host,
            nameservers: ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            searches: vec!["lan".into(), "more.lan".into()],
            options: vec![
                DnsOption {
                    name: "ndots".into(),
                    value: Some("3".into()),
                },
                DnsOption {
                    name: "rotate".into(),
                    value: None,
                },
            ],
        }
    }

    #[test]
    fn the_manifests_entries_follow_the_hosts_and_its_options_win() {
        let text = Resolver::parse(HOST).for_container(&dns()).text();
        assert_eq!(
            text,
            "search shop.lan lan more.lan\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\n\
             nameserver 10.0.0.3\noptions edns0 ndots:3 rotate\n"
        );
    }

    #[test]
    fn without_the_host_there_is_only_what_the_manifest_says() {
        let dns = Dns {
            policy: DnsPolicy::None,
            ..dns()
        };
        let text = Resolver::parse(HOST).for_container(&dns).text();
        assert_eq!(
            text,
            "search lan more.lan\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n\
             options ndots:3 rotate\n"
        );
    }

    #[test]
    fn a_stub_is_told_from_a_name_server() {
        for (text, stub) in [
            ("nameserver 127.0.0.53\n", true),
            ("nameserver ::1\nnameserver 127.0.0.1\n", true),
            ("nameserver 127.0.0.1\nnameserver 10.0.0.2\n", false),
            ("nameserver fe80::1%lo\n", false),
            ("", false),
        ] {
            assert_eq!(Resolver::parse(text).is_stub(), stub, "{text}");
        }
        let both = Resolver::parse("nameserver 127.0.0.1\nnameserver 10.0.0.2\n");
        assert_eq!(both.without_loopback().text(), "nameserver 10.0.0.2\n");
    }

    #[test]
    fn search_domains_are_cut_to_what_kubernetes_takes() {
        let long: Vec<String> = (0..40).map(|n| format!("{n:0>100}.lan")).collect();
        let host = Resolver::parse(&format!("search {}\n", long.join(" ")));
        let text = host.for_container(&Dns::default()).text();
        let line = text.strip_prefix("search ").unwrap().trim_end();
        assert!(line.len() <= Dns::MAX_SEARCH_CHARACTERS);
        assert_eq!(line.split(' ').count(), 19);
    }
}
