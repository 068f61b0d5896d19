//! `WWW-Authenticate`: how a registry says which credentials it wants.
//!
//! RFC 9110 section 11.6.1 for the grammar, the distribution project's token specification for the
//! parameters of `Bearer`. What cannot be understood is passed over: another challenge may fit.

/// One way in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password with each request (RFC 7617).
    Basic,
    /// A token of another service.
    Bearer {
        /// Where tokens are.
        realm: String,
        /// Who the token is for.
        service: Option<String>,
        /// What it has to allow.
        scope: Option<String>,
    },
}

/// Longest header that is looked at.
const LONGEST: usize = 8 << 10;

/// All challenges of one header value, in its order.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut rest = header.get(..LONGEST).unwrap_or(header);
    let mut found = Vec::new();
    while let Some((scheme, after)) = token(rest) {
        let (parameters, after) = parameters(after);
        rest = after;
        let get = |name: &str| {
            let is = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
            let value = parameters.iter().find(is).map(|(_, value)| value.clone());
            value.filter(|value| !value.is_empty())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            found.push(Challenge::Bearer {
                realm,
                service: get("service"),
                scope: get("scope"),
            });
        }
    }
    found
}

/// `name=value` pairs up to the next scheme, and what is left.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut pairs = Vec::new();
    loop {
        let Some((name, after)) = token(rest) else {
            return (pairs, skip_token68(rest));
        };
        let Some(after) = after.trim_start().strip_prefix('=') else {
            // A name without a value is the next scheme, or a token68 that nobody here uses.
            return (pairs, rest);
        };
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted),
            None => match token(after) {
                Some((value, after)) => (value.to_owned(), after),
                None => return (pairs, skip_token68(after)),
            },
        };
        pairs.push((name.to_owned(), value));
        rest = after;
    }
}

/// Passes over what is no token, so that reading goes on behind it.
fn skip_token68(rest: &str) -> &str {
    rest.find(',').map_or("", |comma| &rest[comma..])
}

/// The next token and what follows it; separators before it are passed over.
fn token(rest: &str) -> Option<(&str, &str)> {
    let rest = rest.trim_start_matches([' ', '\t', ',']);
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
    (end > 0).then(|| rest.split_at(end))
}

/// The text up to the closing quote, unescaped, and what follows it.
fn quoted_string(rest: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = rest.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &rest[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            plain => value.push(plain),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn what_registries_send_is_understood() {
        for (header, challenges) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/busybox:pull"),
                )],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Basic realm="a, b=\"c\"", Bearer realm=https, error="insufficient_scope" , scope = "x y""#,
                vec![Challenge::Basic, bearer("https", None, Some("x y"))],
            ),
            (
                r#"Negotiate abc==, Basic realm="r""#,
                vec![Challenge::Basic],
            ),
            (r#"Bearer service="without a realm""#, vec![]),
            ("", vec![]),
        ] {
            assert_eq!(parse(header), challenges, "{header}");
        }
    }

    proptest! {
        #[test]
        fn no_header_breaks_it(header in "\\PC{0,200}") {
            parse(&header);
        }

        #[test]
        fn a_quoted_realm_comes_back_as_it_was(realm in "[ -~]{1,40}") {
            let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Bearer realm=\"{quoted}\"");
            prop_assert_eq!(parse(&header), vec![bearer(&realm, None, None)]);
        }
    }
}
