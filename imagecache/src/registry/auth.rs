//! Being let in by one host for one repository: which scheme it wants, and the token that is
//! cached, fetched once however many ask, and renewed before it ends and when it is refused.

use std::time::Instant;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Response, Url};
use tokio::sync::Mutex;

use super::challenge::{self, Challenge};
use super::credentials::{Credentials, Login};
use super::http::{Ask, Http};
use super::token::{self, Token};
use crate::fetch::Failure;

/// Longest answer of a token service, bytes.
const LONGEST_TOKEN: u64 = 256 << 10;
/// Who asks for tokens (RFC 6749 section 2.2).
const CLIENT_ID: &str = "nodeagent";

/// What is sent as `Authorization`, and which one it was.
#[derive(Clone, Default)]
pub(crate) struct Pass {
    value: Option<HeaderValue>,
    number: u64,
}

impl Pass {
    /// Adds it to the headers of a request.
    pub(crate) fn show(&self, headers: &mut HeaderMap) {
        if let Some(value) = &self.value {
            headers.insert(AUTHORIZATION, value.clone());
        }
    }
}

/// How one host lets us read one repository.
pub(crate) struct Auth {
    login: Login,
    /// `repository:<name>:pull`, where the host asks for no other.
    scope: String,
    /// Held while a token is fetched: whoever else needs it waits for that one.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    credentials: Option<Credentials>,
    scheme: Option<Scheme>,
    token: Option<Token>,
    pass: Pass,
}

#[derive(Clone, PartialEq)]
enum Scheme {
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
        scope: String,
    },
}

impl Auth {
    pub(crate) fn new(login: Login, repository: &str) -> Self {
        Self {
            login,
            scope: format!("repository:{repository}:pull"),
            state: Mutex::default(),
        }
    }

    /// What to send with a request, by what is known of the host so far.
    pub(crate) async fn pass(&self, http: &Http) -> Result<Pass, Failure> {
        let mut state = self.state.lock().await;
        let ending = |token: &Token| token.renew_at <= Instant::now();
        if state.token.as_ref().is_some_and(ending) {
            self.renew(&mut state, http).await?;
        }
        Ok(state.pass.clone())
    }

    /// Answers a 401 to a request that was sent with `shown`.
    pub(crate) async fn answer(
        &self,
        response: &Response,
        shown: &Pass,
        http: &Http,
    ) -> Result<Pass, Failure> {
        let mut state = self.state.lock().await;
        if state.pass.number != shown.number {
            // Somebody else was refused before us, and has a new one.
            return Ok(state.pass.clone());
        }
        let credentials = match &state.credentials {
            Some(credentials) => credentials.clone(),
            None => self.login.credentials().await?,
        };
        state.credentials = Some(credentials.clone());
        let offered = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let offered = offered
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse);
        let Some(scheme) = self.choose(offered.collect(), &credentials, http)? else {
            return Err(refused(&credentials));
        };
        if scheme == Scheme::Basic && state.scheme == Some(Scheme::Basic) {
            // They were sent, and it did not help.
            return Err(refused(&credentials));
        }
        state.scheme = Some(scheme);
        self.renew(&mut state, http).await?;
        Ok(state.pass.clone())
    }

    /// The way in to take: a token when there is one, else user and password.
    fn choose(
        &self,
        offered: Vec<Challenge>,
        credentials: &Credentials,
        http: &Http,
    ) -> Result<Option<Scheme>, Failure> {
        let mut basic = false;
        for challenge in offered {
            match challenge {
                Challenge::Basic => basic = true,
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                } => {
                    return Ok(Some(Scheme::Bearer {
                        realm: self.realm(&realm, http)?,
                        service,
                        scope: scope.unwrap_or_else(|| self.scope.clone()),
                    }));
                }
            }
        }
        Ok((basic && credentials.basic().is_some()).then_some(Scheme::Basic))
    }

    /// A registry that is spoken to by HTTPS does not get our password sent elsewhere in the clear.
    fn realm(&self, realm: &str, http: &Http) -> Result<Url, Failure> {
        let wrong = |why: &str| Failure::Unauthorised {
            message: format!("its token service {realm:?} {why}"),
        };
        let url: Url = realm.parse().map_err(|_| wrong("is no URL"))?;
        match (http.home.scheme(), url.scheme()) {
            (_, "https") | ("http", "http") => Ok(url),
            _ => Err(wrong("is not https, as the registry is")),
        }
    }

    /// Makes a new pass by the scheme.
    async fn renew(&self, state: &mut State, http: &Http) -> Result<(), Failure> {
        let credentials = state.credentials.clone().unwrap_or(Credentials::Anonymous);
        let value = match &state.scheme {
            None => return Ok(()),
            Some(Scheme::Basic) => credentials.basic().unwrap_or_default(),
            Some(Scheme::Bearer {
                realm,
                service,
                scope,
            }) => match &credentials {
                // It was sent, and did not help.
                Credentials::Token(_) if state.pass.value.is_some() => {
                    return Err(refused(&credentials));
                }
                Credentials::Token(token) => format!("Bearer {token}"),
                _ => {
                    let request = token_request(realm, service.as_deref(), scope, &credentials);
                    let token = fetch(http, &request, &credentials).await?;
                    let value = format!("Bearer {}", token.secret);
                    state.token = Some(token);
                    value
                }
            },
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| Failure::Unauthorised {
            message: "the credentials for it have characters that HTTP does not allow".to_owned(),
        })?;
        value.set_sensitive(true);
        state.pass = Pass {
            value: Some(value),
            number: state.pass.number + 1,
        };
        Ok(())
    }
}

/// The refusal in the words of whoever has to mend it.
pub(crate) fn refused(credentials: &Credentials) -> Failure {
    let message = if credentials.are_there() {
        "it refuses our credentials"
    } else {
        "it wants credentials and there are none for it"
    };
    Failure::Unauthorised {
        message: message.to_owned(),
    }
}

impl Auth {
    /// The refusal of a request that was sent with the newest pass.
    pub(crate) async fn refusal(&self) -> Failure {
        let state = self.state.lock().await;
        refused(
            state
                .credentials
                .as_ref()
                .unwrap_or(&Credentials::Anonymous),
        )
    }
}

async fn fetch(http: &Http, request: &Ask, credentials: &Credentials) -> Result<Token, Failure> {
    let asked = Instant::now();
    let response = http.send(request).await?;
    if !response.status().is_success() {
        return Err(match http.failure(response).await {
            Failure::Unauthorised { .. } => refused(credentials),
            // Of a token service this is no word about what was asked for.
            Failure::NotFound => Failure::Unauthorised {
                message: "its token service does not exist".to_owned(),
            },
            other => other,
        });
    }
    let body = http.body(response, LONGEST_TOKEN).await?;
    token::read(&body, asked).map_err(|why| Failure::Unauthorised {
        message: format!("its token service sent no token: {why}"),
    })
}

/// GET with user and password, or none; POST where a token is exchanged for another
/// (distribution's specifications "token" and "oauth").
fn token_request(
    realm: &Url,
    service: Option<&str>,
    scope: &str,
    credentials: &Credentials,
) -> Ask {
    let mut url = realm.clone();
    let mut private = HeaderMap::new();
    if let Credentials::Identity(token) = credentials {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token")
            .append_pair("client_id", CLIENT_ID)
            .append_pair("refresh_token", token)
            .append_pair("scope", scope);
        if let Some(service) = service {
            form.append_pair("service", service);
        }
        return Ask {
            method: Method::POST,
            url,
            shared: HeaderMap::new(),
            private,
            form: Some(form.finish()),
        };
    }
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        // Several scopes are parameters of their own.
        for scope in scope.split(' ') {
            query.append_pair("scope", scope);
        }
    }
    if let Some(Ok(mut value)) = credentials.basic().map(HeaderValue::try_from) {
        value.set_sensitive(true);
        private.insert(AUTHORIZATION, value);
    }
    Ask {
        method: Method::GET,
        url,
        shared: HeaderMap::new(),
        private,
        form: None,
    }
}
