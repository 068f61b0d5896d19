//! Who may ask: a token that all agents share, certificates on both sides, or both.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// A secret that all agents share (RFC 6750). Never shown.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// A token has at least 16 characters of those that a header may have; nothing otherwise.
    pub fn new(text: &str) -> Option<Self> {
        let fits = text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(Arc::from(text)))
    }

    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Takes the same time whatever `header` is.
    pub(super) fn is_in(&self, header: Option<&str>) -> bool {
        let given = Sha256::digest(header.unwrap_or_default().as_bytes());
        let right = Sha256::digest(self.header().as_bytes());
        given.ct_eq(&right).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Who may ask the server. There is no way to let everybody.
#[derive(Debug, Clone)]
pub enum Access {
    /// Whoever has the token; what is sent can be read on the way.
    Token(Token),
    /// Whoever has a certificate that this configuration, which has to demand one, accepts.
    Certificate(Arc<rustls::ServerConfig>),
    /// Whoever has the token, by TLS, with a certificate when the configuration demands one.
    TokenByTls(Token, Arc<rustls::ServerConfig>),
}

impl Access {
    pub(super) fn token(&self) -> Option<&Token> {
        match self {
            Self::Token(token) | Self::TokenByTls(token, _) => Some(token),
            Self::Certificate(_) => None,
        }
    }

    pub(super) fn tls(&self) -> Option<&Arc<rustls::ServerConfig>> {
        match self {
            Self::Certificate(tls) | Self::TokenByTls(_, tls) => Some(tls),
            Self::Token(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_the_token_and_it_is_never_shown() {
        let token = Token::new("0123456789abcdef").unwrap();
        assert!(token.is_in(Some("Bearer 0123456789abcdef")));
        for wrong in [
            None,
            Some(""),
            Some("Bearer "),
            Some("0123456789abcdef"),
            Some("Bearer 0123456789abcdeg"),
        ] {
            assert!(!token.is_in(wrong), "{wrong:?}");
        }
        assert_eq!(format!("{token:?}"), "Token(…)");
        for bad in [
            "",
            "short",
            "with space in the middle",
            "new\nline0123456789",
        ] {
            assert!(Token::new(bad).is_none(), "{bad:?}");
        }
    }
}
