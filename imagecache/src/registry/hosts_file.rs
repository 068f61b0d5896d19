//! containerd's `hosts.toml`: which hosts are asked for a registry's content, and how
//! (containerd, docs/hosts.md). Reads text; touches no other file.
//!
//! Unlike containerd, a key or a value that is not understood is an error: a misspelt
//! `skip_verify` would otherwise be found by nobody.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with a file of the hosts directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {key} = {value}: {allowed}", .file.display())]
pub struct HostsError {
    /// The file.
    pub file: PathBuf,
    /// The key, with its table.
    pub key: String,
    /// What it is set to, or what was found; never the value of a header.
    pub value: String,
    /// What would be right.
    pub allowed: String,
}

/// A whole file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostsFile {
    /// Hosts asked first, in the order of the file.
    pub mirrors: Vec<Host>,
    /// Where the file says that the registry itself is; the keys outside of a table are for it.
    pub server: Option<Url>,
    pub upstream: HostSettings,
}

/// One `[host."…"]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Host {
    /// Root of the API, for example `https://mirror.lan/v2`.
    pub api: Url,
    pub settings: HostSettings,
}

/// How a host is used.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostSettings {
    /// It is asked for content by digest.
    pub pull: bool,
    /// It is asked what a tag names.
    pub resolve: bool,
    /// Files with certificates that are trusted.
    pub ca: Vec<PathBuf>,
    /// Our certificates, each with its key unless that is in the same file.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: bool,
    pub header: HeaderMap,
    pub dial_timeout: Option<Duration>,
    pub override_path: bool,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            pull: true,
            resolve: true,
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            header: HeaderMap::new(),
            dial_timeout: None,
            override_path: false,
        }
    }
}

const SETTINGS: &str = "capabilities, ca, client, skip_verify, header, override_path, dial_timeout";

/// Reads the text of `file`; paths in it are relative to its directory.
pub(crate) fn parse(file: &Path, text: &str) -> Result<HostsFile, HostsError> {
    let reader = Reader { file, text };
    let table = DeTable::parse(text).map_err(|error| {
        // The parser's own text quotes the line, which may have a secret header.
        let line = error.span().map_or(0, |span| {
            1 + text[..span.start.min(text.len())].matches('\n').count()
        });
        reader.error("line", &line.to_string(), error.message())
    })?;
    let mut parsed = HostsFile {
        mirrors: Vec::new(),
        server: None,
        upstream: HostSettings::default(),
    };
    for (key, value) in in_order(table.get_ref()) {
        match key {
            "server" => {
                let settings = HostSettings::default();
                let text = reader.text(key, value)?;
                parsed.server = Some(reader.address(key, text, &settings)?);
            }
            "host" => {
                for (name, value) in in_order(reader.table(key, value)?) {
                    let place = format!("host.{name:?}");
                    let mut settings = HostSettings::default();
                    for (key, value) in in_order(reader.table(&place, value)?) {
                        let place = format!("{place}.{key}");
                        reader.setting(&place, key, value, &mut settings, SETTINGS)?;
                    }
                    let api = reader.address(&place, name, &settings)?;
                    parsed.mirrors.push(Host { api, settings });
                }
            }
            key => {
                let allowed = format!("server, host, {SETTINGS}");
                reader.setting(key, key, value, &mut parsed.upstream, &allowed)?;
            }
        }
    }
    if let (Some(server), true) = (&mut parsed.server, parsed.upstream.override_path) {
        // The path as it is written, without the version of the API.
        let path = server.path().trim_end_matches("/v2").to_owned();
        server.set_path(&path);
    }
    Ok(parsed)
}

/// Entries as they stand in the file, which is the order in which hosts are asked.
fn in_order<'t>(
    table: &'t DeTable<'_>,
) -> impl Iterator<Item = (&'t str, &'t Spanned<DeValue<'t>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
        .into_iter()
        .map(|(key, value)| (key.get_ref().as_ref(), value))
}

struct Reader<'f> {
    file: &'f Path,
    text: &'f str,
}

impl Reader<'_> {
    fn error(&self, key: &str, value: &str, allowed: &str) -> HostsError {
        HostsError {
            file: self.file.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
            allowed: allowed.to_owned(),
        }
    }

    fn wrong(&self, key: &str, value: &Spanned<DeValue<'_>>, allowed: &str) -> HostsError {
        let written = self.text.get(value.span()).unwrap_or("?");
        self.error(key, written, &format!("{allowed} is allowed"))
    }

    fn setting(
        &self,
        place: &str,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        settings: &mut HostSettings,
        allowed: &str,
    ) -> Result<(), HostsError> {
        match key {
            "capabilities" => {
                (settings.pull, settings.resolve) = (false, false);
                for capability in self.texts(place, value)? {
                    match capability {
                        "pull" => settings.pull = true,
                        "resolve" => settings.resolve = true,
                        // Nothing here ever pushes.
                        "push" => {}
                        _ => return Err(self.wrong(place, value, "pull, resolve, push")),
                    }
                }
            }
            "ca" => {
                let files = self.texts(place, value)?;
                settings.ca = files.into_iter().map(|file| self.path(file)).collect();
            }
            "client" => settings.client = self.client(place, value)?,
            "skip_verify" => settings.skip_verify = self.boolean(place, value)?,
            "override_path" => settings.override_path = self.boolean(place, value)?,
            "dial_timeout" => {
                let text = self.text(place, value)?;
                let time = duration(text);
                let time = time.ok_or_else(|| self.wrong(place, value, "a time as \"1.5s\""))?;
                settings.dial_timeout = Some(time);
            }
            "header" => settings.header = self.header(place, value)?,
            _ => {
                return Err(self.error(
                    place,
                    "?",
                    &format!("there is no such key; {allowed} are"),
                ));
            }
        }
        Ok(())
    }

    fn header(&self, place: &str, value: &Spanned<DeValue<'_>>) -> Result<HeaderMap, HostsError> {
        let mut headers = HeaderMap::new();
        for (name, value) in in_order(self.table(place, value)?) {
            let place = format!("{place}.{name}");
            let hidden = |allowed: &str| self.error(&place, "(hidden)", allowed);
            let name: HeaderName = name
                .parse()
                .map_err(|_| hidden("a name of a header is allowed"))?;
            let texts = self.texts(&place, value);
            for text in texts.map_err(|_| hidden("a text or a list of texts is allowed"))? {
                let mut value: HeaderValue = text
                    .parse()
                    .map_err(|_| hidden("characters that HTTP allows in headers are allowed"))?;
                value.set_sensitive(true);
                headers.append(name.clone(), value);
            }
        }
        Ok(headers)
    }

    fn client(
        &self,
        place: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<(PathBuf, Option<PathBuf>)>, HostsError> {
        let allowed = "a file, a list of files, or a list of [certificate, key]";
        let Some(list) = value.get_ref().as_array() else {
            return Ok(vec![(self.path(self.text(place, value)?), None)]);
        };
        let mut pairs = Vec::new();
        for entry in list.iter() {
            pairs.push(match entry.get_ref() {
                DeValue::String(file) => (self.path(file), None),
                DeValue::Array(_) => match self.texts(place, entry)?.as_slice() {
                    [file] => (self.path(file), None),
                    [certificate, ""] => (self.path(certificate), None),
                    [certificate, key] => (self.path(certificate), Some(self.path(key))),
                    _ => return Err(self.wrong(place, value, allowed)),
                },
                _ => return Err(self.wrong(place, value, allowed)),
            });
        }
        Ok(pairs)
    }

    /// The root of the API of a host as it is written: `https://` and `/v2` are added where they
    /// are missing.
    fn address(&self, place: &str, text: &str, settings: &HostSettings) -> Result<Url, HostsError> {
        let wrong = || {
            let allowed = "http://host[:port][/path] or https://… is allowed";
            // What stands before an @ would be a password.
            self.error(place, text.rsplit('@').next().unwrap_or_default(), allowed)
        };
        let full = match text.contains("://") {
            true => text.to_owned(),
            false => format!("https://{text}"),
        };
        let mut url: Url = full.parse().map_err(|_| wrong())?;
        let bare = url.username().is_empty() && url.password().is_none();
        let rest = url.query().is_none() && url.fragment().is_none();
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || !bare || !rest {
            return Err(wrong());
        }
        let path = url.path().trim_end_matches('/').to_owned();
        if settings.override_path || path.ends_with("/v2") {
            url.set_path(&path);
        } else {
            url.set_path(&format!("{path}/v2"));
        }
        Ok(url)
    }

    fn path(&self, written: &str) -> PathBuf {
        let directory = self.file.parent().unwrap_or(Path::new(""));
        directory.join(written)
    }

    fn table<'v>(
        &self,
        place: &str,
        value: &'v Spanned<DeValue<'_>>,
    ) -> Result<&'v DeTable<'v>, HostsError> {
        let table = value.get_ref().as_table();
        table.ok_or_else(|| self.wrong(place, value, "a table"))
    }

    fn text<'v>(
        &self,
        place: &str,
        value: &'v Spanned<DeValue<'_>>,
    ) -> Result<&'v str, HostsError> {
        let text = value.get_ref().as_str();
        text.ok_or_else(|| self.wrong(place, value, "a text in quotes"))
    }

    /// One text or a list of texts.
    fn texts<'v>(
        &self,
        place: &str,
        value: &'v Spanned<DeValue<'_>>,
    ) -> Result<Vec<&'v str>, HostsError> {
        let wrong = || self.wrong(place, value, "a text or a list of texts");
        if let Some(text) = value.get_ref().as_str() {
            return Ok(vec![text]);
        }
        let list = value.get_ref().as_array().ok_or_else(wrong)?;
        list.iter()
            .map(|entry| entry.get_ref().as_str().ok_or_else(wrong))
            .collect()
    }

    fn boolean(&self, place: &str, value: &Spanned<DeValue<'_>>) -> Result<bool, HostsError> {
        let boolean = value.get_ref().as_bool();
        boolean.ok_or_else(|| self.wrong(place, value, "true or false"))
    }
}

/// A positive number with its unit, as Go writes durations.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    let seconds = number.parse::<f64>().ok()? * scale;
    let duration = Duration::try_from_secs_f64(seconds).ok()?;
    (!duration.is_zero()).then_some(duration)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<HostsFile, HostsError> {
        parse(Path::new("/etc/certs.d/r.lan/hosts.toml"), text)
    }

    #[test]
    fn a_file_of_containerds_documentation_is_understood() {
        let parsed = read(
            r#"
server = "https://registry-1.docker.io"
ca = "up.crt"

[host."https://mirror.registry"]
  capabilities = ["pull"]
  ca = ["/etc/certs/mirror.pem", "own.crt"]
  skip_verify = false
  [host."https://mirror.registry".header]
    x-custom-2 = ["value1", "value2"]

[host."http://a.registry:5000/proxy"]
  client = [["/etc/certs/client.cert", "/etc/certs/client.key"], ["both.pem", ""]]
  dial_timeout = "1.5s"

[host."non-standard.registry/v2/project"]
  capabilities = ["pull", "resolve", "push"]
  override_path = true
  skip_verify = true
"#,
        )
        .unwrap();
        assert_eq!(
            parsed.server.unwrap().as_str(),
            "https://registry-1.docker.io/v2"
        );
        assert_eq!(parsed.upstream.ca, [Path::new("/etc/certs.d/r.lan/up.crt")]);
        let addresses: Vec<&str> = parsed.mirrors.iter().map(|m| m.api.as_str()).collect();
        assert_eq!(
            addresses,
            [
                "https://mirror.registry/v2",
                "http://a.registry:5000/proxy/v2",
                "https://non-standard.registry/v2/project",
            ]
        );
        let first = &parsed.mirrors[0].settings;
        assert!(first.pull && !first.resolve);
        assert_eq!(first.ca[1], Path::new("/etc/certs.d/r.lan/own.crt"));
        assert_eq!(first.header.get_all("X-Custom-2").iter().count(), 2);
        let second = &parsed.mirrors[1].settings;
        assert_eq!(second.dial_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(
            second.client,
            [
                (
                    "/etc/certs/client.cert".into(),
                    Some("/etc/certs/client.key".into())
                ),
                ("/etc/certs.d/r.lan/both.pem".into(), None),
            ]
        );
        assert!(parsed.mirrors[2].settings.skip_verify);
    }

    #[test]
    fn an_empty_file_says_nothing() {
        let parsed = read("").unwrap();
        assert_eq!((parsed.mirrors.len(), parsed.server), (0, None));
        assert_eq!(parsed.upstream, HostSettings::default());
    }

    #[test]
    fn what_is_wrong_is_told_with_file_key_value_and_what_is_allowed() {
        for (text, told) in [
            (
                "[host.\"https://m\"]\nskip_verfy = true",
                "host.\"https://m\".skip_verfy = ?: there is no such key; capabilities, ca",
            ),
            (
                "skip_verify = 1",
                "skip_verify = 1: true or false is allowed",
            ),
            (
                "capabilities = [\"pul\"]",
                "capabilities = [\"pul\"]: pull, resolve, push is allowed",
            ),
            ("server = 7", "server = 7: a text in quotes is allowed"),
            ("server = \"ftp://r\"", "server = ftp://r: http://host"),
            ("[host]\n\"http://\" = {}", "http://host[:port]"),
            ("host = true", "host = true: a table is allowed"),
            ("dial_timeout = \"soon\"", "a time as \"1.5s\" is allowed"),
            (
                "client = [[\"a\", \"b\", \"c\"]]",
                "a list of [certificate, key]",
            ),
            ("a = 1\nb =", "line = 2: "),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(
                error.starts_with("/etc/certs.d/r.lan/hosts.toml: "),
                "{error}"
            );
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn no_secret_is_told() {
        for text in [
            "[header]\nauthorization = \"s3cret\\n\"",
            "[header]\n\"auth orization\" = \"s3cret\"",
            "[header]\nauthorization = [[\"s3cret\"]]",
            "server = \"https://joe:s3cret@r.lan\"",
            "header = { authorization = \"s3cret }",
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in "\\PC{0,200}") {
            drop(read(&text));
        }
    }
}
