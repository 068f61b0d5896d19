//! A token server as docker-registry wants one (distribution: "Token Authentication Specification"):
//! signed JSON web tokens that live as long as a test says.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::Utc;
use serde_json::{Value, json};

use crate::ground::Ground;
use crate::registry::secured::{Login, Visitors};
use crate::server::{Head, Server, answer};

/// Who issues the tokens, as the registry's configuration says.
pub const ISSUER: &str = "tokens of the tests";
/// Whom the tokens are for.
pub const SERVICE: &str = "registry of the tests";

/// docker-registry accepts a token for so long after its end (registry/auth/token/token.go, `Leeway`).
const LEEWAY: Duration = Duration::from_secs(60);

/// How tokens are issued.
#[derive(Debug, Clone, Copy)]
pub struct Tokens {
    /// Who gets one.
    pub visitors: Visitors,
    /// After this time the registry refuses a token.
    pub lifetime: Duration,
    /// What a client is told of it (`expires_in`).
    pub announced: Duration,
}

impl Tokens {
    /// Tokens that outlive every test.
    pub fn lasting(visitors: Visitors) -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            visitors,
            lifetime: hour,
            announced: hour,
        }
    }

    /// Tokens that end after `lifetime`, earlier than a client is told.
    pub fn dying_early(visitors: Visitors, lifetime: Duration) -> Self {
        Self {
            lifetime,
            ..Self::lasting(visitors)
        }
    }
}

/// One request for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `repository:web:pull`, as asked for; several are separated by a space.
    pub scope: String,
    /// Whether a login came with it.
    pub login: bool,
    /// Whether a token was issued.
    pub granted: bool,
}

/// A token server; it counts what it is asked.
#[derive(Debug)]
pub struct TokenServer {
    server: Server,
    certificate: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[derive(Debug)]
struct Issuer {
    tokens: Tokens,
    key: PathBuf,
    /// The certificate as the header `x5c` has it (RFC 7515, 4.1.6).
    certificate: String,
}

impl TokenServer {
    /// Makes a key, and listens at `port`.
    pub fn start(ground: &Ground, port: u16, tokens: Tokens) -> Result<Self> {
        let key = ground.path(&format!("tokens-{port}.key"));
        let certificate = ground.path(&format!("tokens-{port}.pem"));
        let mut command = Command::new("openssl");
        // RS256 has no other form of a signature than openssl's.
        command
            .args("req -x509 -nodes -newkey rsa:2048 -days 2 -subj /CN=tokens".split(' '))
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate);
        let made = command.output().context("run openssl(1)")?;
        ensure!(made.status.success(), "make a key for tokens: {made:?}");
        let pem = std::fs::read_to_string(&certificate)
            .with_context(|| format!("read {}", certificate.display()))?;
        let issuer = Issuer {
            tokens,
            key,
            certificate: pem
                .lines()
                .filter(|line| !line.starts_with("---"))
                .collect(),
        };
        let asked = Arc::default();
        let log: Arc<Mutex<Vec<Asked>>> = Arc::clone(&asked);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let server = Server::start(ground.netns(), address, move |client, _| {
            issuer.serve(client, &log)
        })?;
        Ok(Self {
            server,
            certificate,
            asked,
        })
    }

    /// Where tokens are had, for the challenge of the registry.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.server.address())
    }

    /// The certificate that the registry has to trust.
    pub fn certificate(&self) -> &PathBuf {
        &self.certificate
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }
}

impl Issuer {
    fn serve(&self, mut client: TcpStream, log: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
        let head = Head::read(&mut client)?;
        let (method, target) = head.request();
        // The OAuth2 variant is optional; clients go on with GET.
        if method != "GET" {
            return answer(
                &mut client,
                "405 Method Not Allowed",
                &[("Allow", "GET")],
                "",
            );
        }
        let scopes = scopes(target);
        let login = head.field("authorization").map(Login::is_in);
        let granted = match (self.tokens.visitors, login) {
            (_, Some(right)) => right,
            (Visitors::Anyone, None) => true,
            (Visitors::Known, None) => false,
        };
        log.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Asked {
                scope: scopes.join(" "),
                login: login.is_some(),
                granted,
            });
        if !granted {
            let challenge = [("WWW-Authenticate", "Basic realm=\"tokens\"")];
            return answer(&mut client, "401 Unauthorized", &challenge, "");
        }
        match self.token(&scopes) {
            Ok(token) => {
                let body = json!({
                    "token": token,
                    "access_token": token,
                    "expires_in": self.tokens.announced.as_secs(),
                    "issued_at": Utc::now().to_rfc3339(),
                });
                let kind = [("Content-Type", "application/json")];
                answer(&mut client, "200 OK", &kind, &body.to_string())
            }
            Err(error) => {
                let said = format!("{error:#}");
                answer(&mut client, "500 Internal Server Error", &[], &said)
            }
        }
    }

    fn token(&self, scopes: &[String]) -> Result<String> {
        let access: Vec<Value> = scopes
            .iter()
            .filter_map(|scope| {
                let (rest, actions) = scope.rsplit_once(':')?;
                let (kind, name) = rest.split_once(':')?;
                let actions: Vec<&str> = actions.split(',').filter(|a| *a == "pull").collect();
                Some(json!({ "type": kind, "name": name, "actions": actions }))
            })
            .collect();
        let now = Utc::now().timestamp();
        let life = i64::try_from(self.tokens.lifetime.as_secs()).unwrap_or(i64::MAX / 2);
        let leeway = i64::try_from(LEEWAY.as_secs()).unwrap_or_default();
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": ISSUER,
            "sub": Login::USER,
            "aud": SERVICE,
            "exp": now + life - leeway,
            "nbf": now - 2 * leeway,
            "iat": now,
            "access": access,
        });
        let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encoded(&header), encoded(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(&signed)?);
        Ok(format!("{signed}.{signature}"))
    }

    fn sign(&self, text: &str) -> Result<Vec<u8>> {
        let mut openssl = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(&self.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("run openssl(1)")?;
        let mut input = openssl.stdin.take().context("openssl's input")?;
        std::io::Write::write_all(&mut input, text.as_bytes()).context("write to openssl")?;
        drop(input);
        let done = openssl.wait_with_output().context("wait for openssl")?;
        ensure!(
            done.status.success(),
            "openssl dgst ended with {}",
            done.status
        );
        Ok(done.stdout)
    }
}

/// The values of `scope` in the query of `target`, each of which may be a list.
fn scopes(target: &str) -> Vec<String> {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="))
        .flat_map(|value| {
            let list = decoded(value);
            let scopes: Vec<String> = list.split_whitespace().map(str::to_owned).collect();
            scopes
        })
        .collect()
}

/// Percent-decoding of a query (`application/x-www-form-urlencoded`).
fn decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = code.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (other, _) => bytes.push(*other),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Login {
    /// Whether the value of an `Authorization` header is this login.
    fn is_in(header: &str) -> bool {
        header
            .strip_prefix("Basic ")
            .and_then(|text| STANDARD.decode(text).ok())
            .is_some_and(|text| text == format!("{}:{}", Self::USER, Self::PASSWORD).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_however_they_are_written() {
        let one = scopes("/token?service=x&scope=repository%3Aa%2Fb%3Apull%2Cpush");
        assert_eq!(one, ["repository:a/b:pull,push"]);
        let two =
            scopes("/token?scope=repository:a:pull&scope=repository:b:pull+repository:c:pull");
        assert_eq!(
            two,
            [
                "repository:a:pull",
                "repository:b:pull",
                "repository:c:pull"
            ]
        );
        assert_eq!(scopes("/token"), Vec::<String>::new());
    }
}
