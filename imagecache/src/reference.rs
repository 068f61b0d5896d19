//! Image references: `registry/repository:tag@digest`, normalised as every client does.
//!
//! `busybox` is `docker.io/library/busybox:latest`. Only sha256 digests are accepted.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::Digest;

/// A text that is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} is not an image reference ({why}): [registry[:port]/]repository[:tag][@sha256:digest] is allowed, for example 127.0.0.1:5000/web:1"
)]
pub struct InvalidReference {
    /// The text as given, shortened when very long.
    pub value: String,
    /// What is wrong with it.
    pub why: String,
}

/// Longest reference that is looked at; repository (255), tag (128) and digest (71) fit easily.
const LONGEST: usize = 1024;

/// A parsed and normalised reference. `Display` gives the full name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    parsed: oci_spec::distribution::Reference,
    digest: Option<Digest>,
}

impl Reference {
    /// `host[:port]` as written, `docker.io` when absent.
    pub fn registry(&self) -> &str {
        self.parsed.registry()
    }

    /// Repository, for example `library/busybox`.
    pub fn repository(&self) -> &str {
        self.parsed.repository()
    }

    /// Tag, `latest` when neither tag nor digest was written.
    pub fn tag(&self) -> Option<&str> {
        self.parsed.tag()
    }

    /// Digest, when written: it alone decides what is fetched, a tag beside it is a comment.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository, by digest.
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self {
            parsed: self.parsed.clone_with_digest(digest.to_string()),
            digest: Some(digest.clone()),
        }
    }

    /// The same repository, by tag; none when it is no tag.
    pub fn with_tag(&self, tag: &str) -> Option<Self> {
        let name = format!("{}/{}:{tag}", self.registry(), self.repository());
        let named: Self = name.parse().ok()?;
        (named.tag() == Some(tag) && named.digest.is_none()).then_some(named)
    }

    /// Whether the registry is spoken to by plain HTTP: loopback always, others when listed in
    /// `insecure` as `host[:port]`.
    pub fn is_plain_http(&self, insecure: &[String]) -> bool {
        let registry = self.registry();
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        host == "localhost"
            || host
                .parse::<Ipv4Addr>()
                .is_ok_and(|address| address.is_loopback())
            || insecure.iter().any(|listed| listed == registry)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parsed.fmt(f)
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(value: &str) -> Result<Self, InvalidReference> {
        let refuse = |why: String| InvalidReference {
            value: value.chars().take(LONGEST).collect(),
            why,
        };
        if value.len() > LONGEST {
            return Err(refuse(format!("more than {LONGEST} bytes")));
        }
        let parsed: oci_spec::distribution::Reference = value
            .parse()
            .map_err(|error: oci_spec::distribution::ParseError| refuse(error.to_string()))?;
        // Without a dot or a colon the first name is no registry, whatever the parser took it for.
        if parsed.repository().bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refuse(
                "the names of a repository have no upper-case letters".to_owned(),
            ));
        }
        let digest = match parsed.digest() {
            None => None,
            Some(digest) => Some(digest.parse().map_err(|_| {
                refuse("digest is not sha256 with 64 lower-case hex digits".to_owned())
            })?),
        };
        Ok(Self { parsed, digest })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::string::string_regex;

    use super::*;

    fn read(value: &str) -> Reference {
        value.parse().unwrap()
    }

    #[test]
    fn short_names_become_full_ones() {
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("team/web:2", "docker.io/team/web:2"),
            ("127.0.0.1:5000/web:1", "127.0.0.1:5000/web:1"),
            ("localhost/web", "localhost/web:latest"),
        ] {
            assert_eq!(read(short).to_string(), full);
        }
    }

    #[test]
    fn a_digest_is_kept_beside_the_tag() {
        let digest = Digest::of(b"x");
        let reference = read(&format!("r.example/web:1@{digest}"));
        assert_eq!(reference.digest(), Some(&digest));
        assert_eq!(reference.tag(), Some("1"));
        assert_eq!(reference.to_string(), format!("r.example/web:1@{digest}"));
        let by_digest = read("r.example/web:1").with_digest(&digest);
        assert_eq!(by_digest.to_string(), format!("r.example/web@{digest}"));
    }

    #[test]
    fn a_tag_takes_the_place_of_tag_and_digest() {
        let reference = read("r.example/web:1").with_digest(&Digest::of(b"x"));
        let tagged = reference.with_tag("sha256-0.sig").unwrap();
        assert_eq!(tagged.to_string(), "r.example/web:sha256-0.sig");
        for bad in ["", ".", "a b", "1@sha256:0", "1/2"] {
            assert_eq!(reference.with_tag(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_a_reason() {
        let long = "w".repeat(LONGEST + 1);
        let upper = format!("web@sha256:{}", "A".repeat(64));
        let sha512 = format!("web@sha512:{}", "a".repeat(128));
        for (bad, why) in [
            ("", "at least one component"),
            ("Web", "invalid reference format"),
            ("Team/web:1", "no upper-case letters"),
            ("web:", "invalid reference format"),
            ("http://127.0.0.1/web", "invalid reference format"),
            ("web@sha256:abc", "invalid reference format"),
            (&upper, "lower-case"),
            (&sha512, "not sha256"),
            (&long, "more than 1024 bytes"),
        ] {
            let refused = bad.parse::<Reference>().unwrap_err();
            assert!(refused.why.contains(why), "{bad}: {refused}");
            assert!(refused.to_string().contains("is allowed"), "{refused}");
        }
    }

    #[test]
    fn only_loopback_and_listed_registries_are_plain_http() {
        let listed = ["registry.lan:5000".to_owned()];
        for plain in [
            "127.0.0.1:5000/web",
            "127.9.9.9/web",
            "localhost:5000/web",
            "registry.lan:5000/web",
        ] {
            assert!(read(plain).is_plain_http(&listed), "{plain}");
        }
        for secure in [
            "web",
            "registry.lan/web",
            "127.evil.example/web",
            "10.0.0.1:5000/web",
        ] {
            assert!(!read(secure).is_plain_http(&listed), "{secure}");
        }
    }

    /// Names as the reference grammar has them (distribution, reference/regexp.go).
    fn written() -> impl Strategy<Value = String> {
        let domain = "([a-z0-9]{1,8}(\\.[a-z0-9]{1,8}){1,2}(:[0-9]{1,5})?/)?";
        let repository = "[a-z0-9]{1,8}([._-][a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}){0,3}";
        let tag = "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?";
        let digest = "(@sha256:[0-9a-f]{64})?";
        string_regex(&[domain, repository, tag, digest].concat()).unwrap()
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "\\PC{0,80}|[a-zA-Z0-9:/@._-]{0,80}") {
            drop(text.parse::<Reference>());
        }

        #[test]
        fn a_full_name_is_read_as_it_was_written(text in written()) {
            let reference = read(&text);
            let full = reference.to_string();
            prop_assert_eq!(&read(&full), &reference);
            prop_assert_eq!(read(&full).to_string(), full);
            prop_assert!(reference.tag().is_some() || reference.digest().is_some());
        }
    }
}
