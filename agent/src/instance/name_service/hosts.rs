//! `/etc/hosts`, in the order and with the entries of the kubelet
//! (`pkg/kubelet/kubelet_pods.go`, `managedHostsFileContent`).

use std::fmt::Write;
use std::net::IpAddr;

use crate::app::HostAlias;

const LOCAL: &str = "127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
";

/// For a container with an address of its own.
pub fn hosts(address: IpAddr, hostname: &str, aliases: &[HostAlias]) -> String {
    let mut text = String::from("# Written by nodeagent when the container was made.\n");
    text.push_str(LOCAL);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{address}\t{hostname}");
    append(&mut text, aliases);
    text
}

/// For a container in the host's network: what the host has.
pub fn hosts_of_the_host(host: &str, aliases: &[HostAlias]) -> String {
    let mut text = String::from("# The host's /etc/hosts when nodeagent made the container.\n");
    text.push_str(host);
    if !host.is_empty() && !host.ends_with('\n') {
        text.push('\n');
    }
    append(&mut text, aliases);
    text
}

fn append(text: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# hostAliases of the manifest\n");
    for HostAlias { ip, hostnames } in aliases {
        let _ = writeln!(text, "{ip}\t{}", hostnames.join("\t"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias() -> HostAlias {
        HostAlias {
            ip: "10.0.0.9".parse().unwrap(),
            hostnames: vec!["db".into(), "db.lan".into()],
        }
    }

    #[test]
    fn a_container_finds_localhost_itself_and_the_aliases() {
        let text = hosts("10.88.0.1".parse().unwrap(), "web-0", &[alias()]);
        let entries: Vec<&str> = text.lines().collect();
        assert_eq!(entries[1], "127.0.0.1\tlocalhost");
        assert_eq!(
            entries[7..],
            [
                "10.88.0.1\tweb-0",
                "",
                "# hostAliases of the manifest",
                "10.0.0.9\tdb\tdb.lan"
            ]
        );
    }

    #[test]
    fn in_the_hosts_network_the_hosts_own_entries_come_first() {
        let text = hosts_of_the_host("127.0.0.1 localhost\n10.1.1.1 me", &[alias()]);
        assert!(
            text.contains("localhost\n10.1.1.1 me\n\n# hostAliases of the manifest\n10.0.0.9\tdb"),
            "{text}"
        );
    }
}
