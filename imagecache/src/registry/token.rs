//! The answer of a token service (distribution's token specification, RFC 6749).

use std::time::{Duration, Instant};

use serde_json::Value;

/// What a token is worth that does not say it (the specification's minimum).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Longest life that is believed.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A token is renewed this long before its end, or at four fifths of a short life.
const MARGIN: Duration = Duration::from_secs(15);

/// A bearer token. Never shown.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) secret: String,
    /// From when on it is renewed before it is used.
    pub(crate) renew_at: Instant,
}

/// Reads the answer; `asked` is when the request was sent: a life counted from then never ends
/// later than the service thinks.
pub(crate) fn read(body: &[u8], asked: Instant) -> Result<Token, &'static str> {
    let answer: Value = serde_json::from_slice(body).map_err(|_| "it is not JSON")?;
    let secret = ["token", "access_token"]
        .into_iter()
        .filter_map(|name| answer.get(name).and_then(Value::as_str))
        .find(|token| !token.is_empty())
        .ok_or("it has neither `token` nor `access_token`")?;
    let life = answer
        .get("expires_in")
        .and_then(Value::as_u64)
        .map_or(DEFAULT_LIFE, Duration::from_secs)
        .min(LONGEST_LIFE);
    Ok(Token {
        secret: secret.to_owned(),
        renew_at: asked + (life * 4 / 5).max(life.saturating_sub(MARGIN)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        let asked = Instant::now();
        for (body, after) in [
            (r#"{"token":"t","expires_in":300}"#, 285),
            (r#"{"access_token":"t","expires_in":10}"#, 8),
            (r#"{"token":"t"}"#, 48),
            (r#"{"token":"","access_token":"t","expires_in":0}"#, 0),
        ] {
            let token = read(body.as_bytes(), asked).ok().unwrap();
            assert_eq!(token.secret, "t");
            assert_eq!(token.renew_at, asked + Duration::from_secs(after), "{body}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for body in ["", "{}", r#"{"token":7}"#, r#"{"token":""}"#] {
            assert!(read(body.as_bytes(), Instant::now()).is_err(), "{body}");
        }
    }
}
