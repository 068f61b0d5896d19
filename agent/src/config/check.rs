//! The rules for single values: a given one is checked, a missing one gets its default.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::{Account, AddressRange, UseScope, duration};
use crate::app::{CapabilitySet, is_namespaced, quantity};
use crate::document::{Findings, shown};

/// Longest path of a unix socket, without the NUL (unix(7): `sun_path` has 108 bytes).
const SOCKET_PATH: usize = 107;

/// Checks values and notes what is wrong with them.
pub(super) struct Check<'a>(pub(super) &'a mut Findings);

impl Check<'_> {
    /// An absolute path without `.`, `..` and control characters, not `/` itself.
    pub(super) fn path(
        &mut self,
        field: &str,
        given: Option<String>,
        default: impl Into<PathBuf>,
    ) -> PathBuf {
        let Some(given) = given else {
            return default.into();
        };
        if !is_clean_absolute(&given) {
            self.0.wrong(
                field,
                shown(&given),
                "an absolute path below / without \".\", \"..\" or a trailing slash",
            );
        }
        PathBuf::from(given)
    }

    /// A list of such paths, empty by default.
    pub(super) fn paths(&mut self, field: &str, given: Option<Vec<String>>) -> Vec<PathBuf> {
        let given = given.into_iter().flatten().enumerate();
        let checked =
            given.map(|(index, path)| self.path(&format!("{field}[{index}]"), Some(path), ""));
        checked.collect()
    }

    /// A path that a unix socket fits into.
    pub(super) fn socket(
        &mut self,
        field: &str,
        given: Option<String>,
        default: impl Into<PathBuf>,
    ) -> PathBuf {
        let path = self.path(field, given, default);
        self.socket_length(field, &path);
        path
    }

    /// `path`, which follows from `field`, must be short enough for a socket.
    pub(super) fn socket_length(&mut self, field: &str, path: &Path) {
        let length = path.as_os_str().len();
        if length > SOCKET_PATH {
            self.0.wrong(
                field,
                format!(
                    "a socket path of {length} bytes ({})",
                    shown(&path.to_string_lossy())
                ),
                format!("at most {SOCKET_PATH} bytes (unix(7))"),
            );
        }
    }

    /// A path that may be left out.
    pub(super) fn optional_path(&mut self, field: &str, given: Option<String>) -> Option<PathBuf> {
        given.map(|given| self.path(field, Some(given), ""))
    }

    /// Letters, digits and `inner`, beginning and ending with a letter or digit.
    pub(super) fn word(
        &mut self,
        field: &str,
        given: Option<String>,
        default: &str,
        inner: &str,
        longest: usize,
    ) -> String {
        let value = given.unwrap_or_else(|| default.to_owned());
        let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let ok = value.len() <= longest
            && end(value.chars().next())
            && end(value.chars().next_back())
            && value
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || inner.contains(c));
        if !ok {
            let marks: Vec<String> = inner.chars().map(|c| format!("'{c}'")).collect();
            self.0.wrong(
                field,
                shown(&value),
                format!(
                    "1 to {longest} letters, digits and {}, beginning and ending with a letter or digit",
                    marks.join(", ")
                ),
            );
        }
        value
    }

    /// A duration within `range`.
    pub(super) fn duration(
        &mut self,
        field: &str,
        given: Option<String>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(given) = given else {
            return default;
        };
        match duration::parse(&given) {
            None => {
                self.0.wrong(field, shown(&given), duration::ALLOWED);
                default
            }
            Some(value) if !range.contains(&value) => {
                let allowed = format!(
                    "{} to {}",
                    duration::spell(*range.start()),
                    duration::spell(*range.end())
                );
                self.0.wrong(field, shown(&given), allowed);
                default
            }
            Some(value) => value,
        }
    }

    /// A number within `range`.
    pub(super) fn number(
        &mut self,
        field: &str,
        given: Option<u32>,
        default: u32,
        range: RangeInclusive<u32>,
    ) -> u32 {
        let value = given.unwrap_or(default);
        if !range.contains(&value) {
            self.0.wrong(
                field,
                value.to_string(),
                format!("{} to {}", range.start(), range.end()),
            );
        }
        value
    }

    /// Bytes within `range`, spelled as in manifests.
    pub(super) fn size(
        &mut self,
        field: &str,
        given: Option<String>,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let Some(given) = given else {
            return default;
        };
        let size = quantity::bytes(&given).filter(|size| range.contains(size));
        size.unwrap_or_else(|| {
            let allowed = format!(
                "{} to {} bytes, for example {} or {default}",
                quantity::spell(*range.start()),
                quantity::spell(*range.end()),
                quantity::spell(default)
            );
            self.0.wrong(field, shown(&given), allowed);
            default
        })
    }

    /// A range of ports, `FIRST-LAST`.
    pub(super) fn ports(
        &mut self,
        field: &str,
        given: Option<String>,
        default: RangeInclusive<u16>,
    ) -> RangeInclusive<u16> {
        let Some(given) = given else {
            return default;
        };
        let range = given
            .split_once('-')
            .and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?))
            .filter(|range| *range.start() > 0 && !range.is_empty());
        range.unwrap_or_else(|| {
            let allowed = "FIRST-LAST with 1 <= FIRST <= LAST <= 65535, for example 20000-29999";
            self.0.wrong(field, shown(&given), allowed);
            default
        })
    }

    /// The cgroup below which containers live.
    pub(super) fn cgroup(&mut self, field: &str, given: Option<String>, default: &str) -> String {
        let value = given.unwrap_or_else(|| default.to_owned());
        // A colon would make runc take it for a systemd slice.
        if !is_clean_absolute(&value) || value.contains(':') || value.len() > 1024 {
            self.0.wrong(
                field,
                shown(&value),
                "an absolute cgroup path without \".\", \"..\", ':' or a trailing slash, and not \"/\": the agent removes cgroups below it",
            );
        }
        value
    }

    /// One of [`UseScope::ALL`].
    pub(super) fn scope(
        &mut self,
        field: &str,
        given: Option<String>,
        default: UseScope,
    ) -> UseScope {
        let Some(given) = given else {
            return default;
        };
        let known = UseScope::ALL.iter().find(|(_, name)| *name == given);
        match known {
            Some((scope, _)) => *scope,
            None => {
                let names = UseScope::ALL.map(|(_, name)| name).join(", ");
                self.0.wrong(field, shown(&given), names);
                default
            }
        }
    }

    /// An IPv4 unicast address.
    pub(super) fn address(
        &mut self,
        field: &str,
        given: Option<String>,
        default: Ipv4Addr,
    ) -> Ipv4Addr {
        let Some(given) = given else {
            return default;
        };
        match given.parse() {
            Ok(address) if is_unicast(address) => address,
            _ => {
                self.0.wrong(
                    field,
                    shown(&given),
                    "an IPv4 unicast address, for example 169.254.1.1",
                );
                default
            }
        }
    }

    /// An IPv4 unicast address that may be left out.
    pub(super) fn optional_address(
        &mut self,
        field: &str,
        given: Option<String>,
    ) -> Option<Ipv4Addr> {
        given.map(|given| self.address(field, Some(given), Ipv4Addr::UNSPECIFIED))
    }

    /// Mode of a socket's file.
    pub(super) fn socket_mode(&mut self, field: &str, given: Option<String>, default: u32) -> u32 {
        let Some(given) = given else {
            return default;
        };
        match given.as_str() {
            "0600" => 0o600,
            "0660" => 0o660,
            "0666" => 0o666,
            _ => {
                let allowed = "\"0600\", \"0660\" or \"0666\": who may connect (unix(7)); what they may do there says their role";
                self.0.wrong(field, shown(&given), allowed);
                default
            }
        }
    }

    /// Users or groups.
    pub(super) fn accounts(&mut self, field: &str, given: Option<Vec<String>>) -> Vec<Account> {
        let given = given.unwrap_or_default();
        let account =
            |(index, text): (usize, &String)| self.account(&format!("{field}[{index}]"), text);
        given.iter().enumerate().filter_map(account).collect()
    }

    /// An address and a port to listen on.
    pub(super) fn listen(&mut self, field: &str, given: &str) -> Option<SocketAddr> {
        let address: Option<SocketAddr> = given.parse().ok();
        let address = address.filter(|address| address.port() != 0);
        if address.is_none() {
            self.0.wrong(
                field,
                shown(given),
                "an IP address and a port from 1 to 65535, for example 0.0.0.0:7443 or [::]:7443",
            );
        }
        address
    }

    /// Names in certificates, with what kind of name each is.
    pub(super) fn certificate_names(&mut self, field: &str, given: Vec<String>) -> Vec<String> {
        for (index, name) in given.iter().enumerate() {
            let value = name.split_once(':').filter(|(kind, _)| {
                // Kinds of names: see api/server/certificate.rs.
                ["cn", "dns", "uri"].contains(kind)
            });
            let ok = value.is_some_and(|(_, value)| {
                (1..=255).contains(&value.len()) && !value.contains(char::is_control)
            });
            if !ok {
                self.0.wrong(
                    &format!("{field}[{index}]"),
                    shown(name),
                    "cn:NAME (of the subject), dns:NAME or uri:URI (of the subject's alternative names), for example dns:scheduler.example.com",
                );
            }
        }
        given
    }

    /// A user or a group: a name as useradd(8) allows it, or a number.
    pub(super) fn account(&mut self, field: &str, given: &str) -> Option<Account> {
        let account = parse_account(given);
        if account.is_none() {
            self.0.wrong(
                field,
                shown(given),
                "a name of at most 32 letters, digits, '_', '-' and '.' that begins with a letter or '_', or a number as text; not 65534, which stands for everybody the kernel cannot name",
            );
        }
        account
    }

    /// A capability by its name, or all of them.
    pub(super) fn capability(&mut self, field: &str, given: &str) -> CapabilitySet {
        if given == "ALL" {
            return CapabilitySet::ALL;
        }
        CapabilitySet::named(given).unwrap_or_else(|| {
            let allowed = "a name of capabilities(7) without CAP_, for example NET_ADMIN, or ALL";
            self.0.wrong(field, shown(given), allowed);
            CapabilitySet::NONE
        })
    }

    /// A sysctl of a container's own namespaces, or what several begin with and `*`.
    pub(super) fn sysctl_pattern(&mut self, field: &str, given: &str) {
        let name = given.strip_suffix('*').unwrap_or(given);
        let pattern = name != given;
        let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let own = is_namespaced(name)
            || pattern && (name.starts_with("kernel.msg") || name.starts_with("kernel.shm"));
        if !own || !name.bytes().all(inner) {
            self.0.wrong(
                field,
                shown(given),
                "a sysctl of a container's own namespaces (kernel.msg*, kernel.sem, kernel.shm*, fs.mqueue.*, net.*), or what several begin with and '*'",
            );
        }
    }

    /// A range of addresses in CIDR notation.
    pub(super) fn range(&mut self, field: &str, given: &str) -> Option<AddressRange> {
        let range = parse_range(given);
        if range.is_none() {
            self.0.wrong(
                field,
                shown(given),
                "an IPv4 unicast range NETWORK/PREFIX with a prefix of 8 to 32 and no host bits set, for example 10.88.0.0/16",
            );
        }
        range
    }
}

fn parse_account(text: &str) -> Option<Account> {
    if let Ok(id) = text.parse() {
        // -1 is no id (setuid(2)); 65534 is whoever is not mapped (user_namespaces(7)).
        return (id != 65_534 && id != u32::MAX).then_some(Account::Id(id));
    }
    let first = text.bytes().next()?;
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let ok = text.len() <= 32
        && (first.is_ascii_alphabetic() || first == b'_')
        && text.bytes().all(inner)
        && text != "nobody"
        && text != "nogroup";
    ok.then(|| Account::Name(text.to_owned()))
}

fn is_clean_absolute(text: &str) -> bool {
    let path = Path::new(text);
    let mut parts = path.components();
    let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
    parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(normal)
        // `components` drops `.`, doubled and trailing slashes without a word.
        && !text.split('/').skip(1).any(|part| part.is_empty() || part == ".")
        && !text.chars().any(char::is_control)
}

fn is_unicast(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    (1..224).contains(&first) && first != 127
}

fn parse_range(text: &str) -> Option<AddressRange> {
    let (base, prefix) = text.split_once('/')?;
    let base: Ipv4Addr = base.parse().ok()?;
    let number: u8 = prefix.parse().ok()?;
    let range = AddressRange {
        base,
        prefix: number,
    };
    let ok = (8..=32).contains(&number)
        && prefix == number.to_string()
        && u32::from(base) & !mask(number) == 0
        && is_unicast(base)
        && is_unicast(last(&range));
    ok.then_some(range)
}

fn mask(prefix: u8) -> u32 {
    u32::MAX << (32 - u32::from(prefix))
}

fn last(range: &AddressRange) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.base) | !mask(range.prefix))
}

/// Whether `address` lies in `range`.
pub(super) fn contains(range: &AddressRange, address: Ipv4Addr) -> bool {
    (range.base..=last(range)).contains(&address)
}

/// Whether two ranges have an address in common.
pub(super) fn overlap(a: &AddressRange, b: &AddressRange) -> bool {
    contains(a, b.base) || contains(b, a.base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_absolute_paths_pass() {
        for good in ["/a", "/var/lib/nodeagent", "/a..b", "/.hidden"] {
            assert!(is_clean_absolute(good), "{good}");
        }
        for bad in [
            "", "/", "a", "./a", "/a/../b", "/a/./b", "/a//b", "/a/", "/..", "/a\nb", "/a\0b",
        ] {
            assert!(!is_clean_absolute(bad), "{bad:?}");
        }
    }

    #[test]
    fn an_account_is_a_name_or_a_number_and_never_everybody() {
        assert_eq!(parse_account("901"), Some(Account::Id(901)));
        let name = Account::Name("nodeagent-view".to_owned());
        assert_eq!(parse_account("nodeagent-view"), Some(name));
        for bad in [
            "",
            "65534",
            "4294967295",
            "nogroup",
            "a b",
            "9a",
            "-1",
            "ä",
            "a:b",
        ] {
            assert_eq!(parse_account(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_range_has_no_host_bits_and_only_unicast_addresses() {
        assert!(parse_range("10.88.0.0/16").is_some() && parse_range("10.0.0.1/32").is_some());
        for bad in [
            "10.88.0.1/16",
            "10.88.0.0",
            "10.88.0.0/7",
            "10.88.0.0/33",
            "10.0.0.0/016",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "0.0.0.0/8",
            "::/64",
        ] {
            assert_eq!(parse_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        let range = |text| parse_range(text).unwrap();
        assert!(overlap(&range("10.0.0.0/8"), &range("10.88.0.0/16")));
        assert!(overlap(&range("10.88.0.0/16"), &range("10.0.0.0/8")));
        assert!(!overlap(&range("10.88.0.0/16"), &range("10.89.0.0/16")));
        assert!(contains(
            &range("10.88.0.0/16"),
            Ipv4Addr::new(10, 88, 255, 255)
        ));
    }
}
