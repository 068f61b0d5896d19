//! The spelling rules of the names in a manifest, each with its sentence for messages.

pub(super) const LABEL_KEY: &str = "Kubernetes' label syntax: up to 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit, after an optional DNS prefix and '/'";
pub(super) const LABEL_VALUE: &str =
    "up to 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit";
pub(super) const PORT_NAME: &str =
    "1 to 15 characters a-z, 0-9 and '-' with at least one letter (RFC 6335 service name)";
pub(super) const SERVICE: &str =
    "1 to 128 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit";
pub(in crate::app) const ENV_NAME: &str =
    "letters, digits, '_', '-' and '.', not beginning with a digit";
pub(super) const USER: &str = "uid, uid:gid, name or name:group, for example \"1000:1000\" or web";
pub(super) const IMAGE: &str =
    "[registry[:port]/]name[:tag][@sha256:digest] in lower case, for example 127.0.0.1:5000/web:1";
pub(super) const DNS_LABEL: &str = "1 to 63 characters a-z, 0-9 and '-', beginning and ending with a letter or digit (RFC 1123 label)";
pub(super) const DNS_NAME: &str =
    "a host name in lower case: RFC 1123 labels with '.' between them, at most 253 characters";
pub(super) const SEARCH_DOMAIN: &str =
    "a domain in lower case, at most 253 characters; labels may have '_'; or \".\"";
pub(super) const AGENT_NAME: &str = "1 to 63 characters a-z, 0-9 and '-', beginning with a letter and ending with a letter or digit; not \"app\"";

/// Letters, digits and `inner`, at most `max` bytes, a letter or digit at both ends.
fn is_word(text: &str, max: usize, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    (1..=max).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || inner.contains(b))
}

pub(super) fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let dns = |prefix: &str| {
        prefix.len() <= 253 && prefix.split('.').all(|label| is_word(label, 63, b"-"))
    };
    prefix.is_none_or(dns) && is_word(name, 63, b"-_.")
}

pub(super) fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_word(value, 63, b"-_.")
}

pub(super) fn is_port_name(name: &str) -> bool {
    is_word(name, 15, b"-")
        && !name.contains("--")
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.bytes().any(|b| b.is_ascii_uppercase())
}

pub(super) fn is_service(name: &str) -> bool {
    is_word(name, 128, b"-_.")
}

pub(super) fn is_agent_name(name: &str) -> bool {
    is_word(name, 63, b"-")
        && name.as_bytes()[0].is_ascii_lowercase()
        && !name.bytes().any(|b| b.is_ascii_uppercase())
        && name != "app"
}

pub(super) fn is_volume_name(name: &str) -> bool {
    is_word(name, 63, b"-") && !name.bytes().any(|b| b.is_ascii_uppercase())
}

pub(super) fn is_dns_label(text: &str) -> bool {
    is_word(text, 63, b"-") && !text.bytes().any(|b| b.is_ascii_uppercase())
}

pub(super) fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// As a name, but with the underscores of service records (RFC 2782).
pub(super) fn is_search_domain(text: &str) -> bool {
    let label = |label: &str| is_dns_label(&label.replace('_', "x"));
    text.len() <= 253 && text.split('.').all(label)
}

/// A file name without a directory, not hidden.
pub(super) fn is_file_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let first = name.bytes().next();
    name.len() <= 255
        && first.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().all(allowed)
}

/// What the agent or container-init sets.
pub(in crate::app) fn is_reserved(name: &str) -> bool {
    name == "NOTIFY_SOCKET" || name == "TRACEPARENT" || name.starts_with("NODEAGENT_")
}

pub(in crate::app) fn is_env_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    !name.is_empty() && !name.as_bytes()[0].is_ascii_digit() && name.bytes().all(allowed)
}

/// A uid or gid (below the kernel's "no id", 2^32-1) or a name of useradd(8).
pub(super) fn is_user(text: &str) -> bool {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse::<u32>().is_ok_and(|id| id < u32::MAX);
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    let first = text.as_bytes()[0];
    text.len() <= 32 && (first.is_ascii_alphabetic() || first == b'_') && text.bytes().all(allowed)
}

/// The grammar of github.com/distribution/reference, without resolving anything.
pub(super) fn is_image(text: &str) -> bool {
    if text.len() > 512 {
        return false;
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let is_registry = |part: &str| part.contains(['.', ':']) || part == "localhost";
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (Some(first), path),
        _ => (None, name),
    };
    let registry_ok = |registry: &str| {
        let (host, port) = registry.rsplit_once(':').unwrap_or((registry, "1"));
        host.split('.').all(|label| is_word(label, 63, b"-"))
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    let component =
        |part: &str| is_word(part, 255, b"-_.") && !part.bytes().any(|b| b.is_ascii_uppercase());
    let tag_ok = |tag: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
        (1..=128).contains(&tag.len())
            && !b"-.".contains(&tag.as_bytes()[0])
            && tag.bytes().all(allowed)
    };
    let digest_ok = |digest: &str| {
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        digest
            .strip_prefix("sha256:")
            .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(lower_hex))
    };
    registry.is_none_or(registry_ok)
        && path.split('/').all(component)
        && tag.is_none_or(tag_ok)
        && digest.is_none_or(digest_ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references_follow_the_registries_grammar() {
        let digest = format!("web@sha256:{}", "a".repeat(64));
        for good in [
            "web",
            "web:1",
            "127.0.0.1:5000/web:1",
            "localhost/a/b",
            "ghcr.io/Org/x".to_lowercase().as_str(),
            &digest,
            "library/web_1.x:v1.0-rc",
        ] {
            assert!(is_image(good), "{good}");
        }
        for bad in [
            "",
            "Web",
            "web:",
            "web: 1",
            "web@sha256:abc",
            "http://x/web",
            "127.0.0.1:99999/web",
            "a//b",
            "-web",
            "web:1\n",
        ] {
            assert!(!is_image(bad), "{bad}");
        }
    }

    #[test]
    fn names_follow_their_rules() {
        assert!(
            is_label_key("example.com/tier") && !is_label_key("/tier") && !is_label_key("a/b/c")
        );
        assert!(
            is_port_name("http-2")
                && !is_port_name("80")
                && !is_port_name("a--b")
                && !is_port_name("HTTP")
        );
        assert!(is_user("0") && is_user("web") && !is_user("4294967295") && !is_user("-1"));
        assert!(is_env_name("A_B") && !is_env_name("1A") && !is_env_name("A=B"));
        assert!(is_agent_name("log-shipper") && !is_agent_name("app"));
        assert!(is_dns_name("db.lan") && !is_dns_name("db..lan") && !is_dns_name("Db"));
        assert!(
            is_search_domain("_tcp.lan")
                && !is_search_domain("_tcp..lan")
                && !is_search_domain("a b")
        );
        assert!(!is_service("../etc") && is_service("Web_1.eu"));
    }
}
