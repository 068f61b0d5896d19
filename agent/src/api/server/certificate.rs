//! The names in a client's certificate: what roles are given to.
//!
//! `cn:NAME` is a common name of the subject, `dns:NAME` and `uri:URI` are alternative names of it
//! (RFC 5280, 4.1.2.6 and 4.2.1.6). Whether the certificate is to be believed was decided before.

use rustls::pki_types::CertificateDer;

use crate::api::Role;
use crate::config;

/// The names of a certificate, each with what kind of name it is; none when it cannot be read.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else {
        return Vec::new();
    };
    let common = common_names(certificate.subject());
    let common = common.into_iter().map(|name| format!("cn:{name}"));
    let dns = certificate.valid_dns_names();
    let dns = dns.map(|name| format!("dns:{}", name.to_ascii_lowercase()));
    let uris = certificate
        .valid_uri_names()
        .map(|uri| format!("uri:{uri}"));
    common.chain(dns).chain(uris).collect()
}

/// The greatest role that one of the names has; none when none of them has one.
pub(super) fn role(names: &[String], tls: &config::ApiTls) -> Option<Role> {
    let has = |given: &[String]| names.iter().any(|name| given.contains(name));
    if has(&tls.admin) {
        Some(Role::Admin)
    } else if has(&tls.operate) {
        Some(Role::Operate)
    } else {
        has(&tls.view).then_some(Role::View)
    }
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `UTF8String`, `PrintableString` and `IA5String`: all are UTF-8.
const STRINGS: [u8; 3] = [0x0c, 0x13, 0x16];
/// `OBJECT IDENTIFIER` 2.5.4.3 (X.520, commonName) with tag and length.
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];

/// The common names in a `Name` (RFC 5280, 4.1.2.4), with or without its own tag.
fn common_names(subject: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut sets = match element(subject) {
        Some((SEQUENCE, inner, [])) => inner,
        _ => subject,
    };
    while let Some((SET, mut attributes, rest)) = element(sets) {
        sets = rest;
        while let Some((SEQUENCE, attribute, rest)) = element(attributes) {
            attributes = rest;
            let value = attribute.strip_prefix(&COMMON_NAME).and_then(element);
            if let Some((tag, text, [])) = value
                && STRINGS.contains(&tag)
                && let Ok(text) = std::str::from_utf8(text)
            {
                found.push(text.to_owned());
            }
        }
    }
    found
}

/// Tag, content and what follows of the first element (X.690, 8.1); names are shorter than 64 KiB.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (length, rest) = match rest {
        [short @ 0..=0x7f, rest @ ..] => (usize::from(*short), rest),
        [0x81, length, rest @ ..] => (usize::from(*length), rest),
        [0x82, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SET { SEQUENCE { oid, string } }
    fn attribute(oid: [u8; 5], tag: u8, text: &[u8]) -> Vec<u8> {
        let size = |n: usize| u8::try_from(n).unwrap();
        let mut der = vec![SET, size(text.len() + 9), SEQUENCE, size(text.len() + 7)];
        der.extend(oid);
        der.extend([tag, size(text.len())]);
        der.extend(text);
        der
    }

    #[test]
    fn common_names_are_found_among_the_others() {
        let mut subject = attribute([0x06, 0x03, 0x55, 0x04, 0x0a], 0x0c, b"Example");
        subject.extend(attribute(COMMON_NAME, 0x0c, "plané".as_bytes()));
        subject.extend(attribute(COMMON_NAME, 0x13, b"second"));
        subject.extend(attribute(COMMON_NAME, 0x04, b"octets"));
        assert_eq!(common_names(&subject), ["plané", "second"]);
        let mut whole = vec![SEQUENCE, u8::try_from(subject.len()).unwrap()];
        whole.extend(&subject);
        assert_eq!(common_names(&whole), ["plané", "second"]);
    }

    #[test]
    fn a_name_that_is_cut_off_anywhere_is_no_name() {
        let subject = attribute(COMMON_NAME, 0x0c, b"web");
        for end in 0..subject.len() {
            assert_eq!(common_names(&subject[..end]), Vec::<String>::new(), "{end}");
        }
        assert_eq!(
            common_names(&[SET, 0x84, 255, 255, 255, 255]),
            Vec::<String>::new()
        );
    }
}
