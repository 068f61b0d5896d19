//! The API by TCP: certificates on both sides, made by openssl(1) as an operator makes them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nodeagent::api::v1::*;
use nodeagent::api::{Client, ClientError, Credentials, Limits, Server};
use nodeagent::config::{Api, ApiTls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::twin::Twin;

const WAIT: Duration = Duration::from_secs(20);

/// A directory of certificates, with `ca` as their authority unless another is named.
struct Ground {
    directory: tempfile::TempDir,
}

const CA: &str = "\
[ca]
default_ca = d
[d]
database = index.txt
new_certs_dir = .
default_md = sha256
policy = p
unique_subject = no
rand_serial = yes
[p]
commonName = supplied
";

impl Ground {
    fn new() -> Self {
        let ground = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        std::fs::write(ground.file("ca.cnf"), CA).unwrap();
        ground.authority("ca");
        ground.leaf(
            "server",
            "ca",
            "agent",
            "subjectAltName=IP:127.0.0.1",
            Age::Fresh,
        );
        ground
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn openssl(&self, words: &str) {
        let mut command = Command::new("openssl");
        command.current_dir(self.directory.path());
        let output = command.args(words.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "openssl {words}: {output:?}");
    }

    fn authority(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
        ));
    }

    fn leaf(&self, name: &str, authority: &str, cn: &str, extension: &str, age: Age) {
        std::fs::write(self.file("index.txt"), "").unwrap();
        // An extension makes it version 3, without which nobody takes it.
        let extensions = format!("extendedKeyUsage=serverAuth,clientAuth\n{extension}\n");
        std::fs::write(self.file("ext.cnf"), extensions).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={cn} -keyout {name}.key -out {name}.csr"
        ));
        let age = match age {
            Age::Fresh => "-startdate 20200101000000Z -enddate 20480101000000Z",
            Age::Expired => "-startdate 20200101000000Z -enddate 20200102000000Z",
        };
        self.openssl(&format!(
            "ca -batch -notext -config ca.cnf -cert {authority}.pem -keyfile {authority}.key {age} -extfile ext.cnf -in {name}.csr -out {name}.pem"
        ));
    }

    /// A fresh client's certificate of the usual authority.
    fn client(&self, name: &str, extension: &str) {
        self.leaf(name, "ca", name, extension, Age::Fresh);
    }

    fn credentials(&self, name: &str) -> Credentials {
        Credentials {
            certificate: Some(self.file(&format!("{name}.pem"))),
            key: Some(self.file(&format!("{name}.key"))),
            authorities: Some(self.file("ca.pem")),
        }
    }

    fn config(&self) -> ApiTls {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        ApiTls {
            listen: "127.0.0.1:0".parse().unwrap(),
            certificate: self.file("server.pem"),
            key: self.file("server.key"),
            client_ca: self.file("ca.pem"),
            view: names(&["cn:dashboard"]),
            operate: names(&["dns:scheduler.example.com"]),
            admin: names(&["uri:spiffe://example.com/deployer"]),
        }
    }
}

enum Age {
    Fresh,
    Expired,
}

/// An agent with a port; it ends with it.
struct Remote {
    address: SocketAddr,
    socket: PathBuf,
    stop: CancellationToken,
}

impl Remote {
    fn start(ground: &Ground, limits: Limits) -> Self {
        let socket = ground.file("api.sock");
        let server = Server::bind(&socket, limits).unwrap();
        let server = server.open_to(&socket, &Api::default()).unwrap();
        let server = server.with_tls(&ground.config()).unwrap();
        let address = server.tls_address().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(server.serve(Twin::with_apps(&["web"]), stop.clone()));
        Self {
            address,
            socket,
            stop,
        }
    }

    fn client(&self, credentials: Credentials) -> Client {
        let url = format!("https://{}", self.address);
        Client::remote(url.parse().unwrap(), credentials).with_deadline(WAIT)
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn forbidden(result: Result<impl std::fmt::Debug, ClientError>) -> String {
    match result.unwrap_err() {
        ClientError::Problem(problem) if problem.code == ProblemCode::Forbidden => problem.detail,
        other => panic!("not forbidden: {other}"),
    }
}

fn unshaken(result: Result<impl std::fmt::Debug, ClientError>) -> String {
    match result.unwrap_err() {
        error @ ClientError::Handshake { .. } => error.to_string(),
        other => panic!("no failed handshake: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificates_name_has_its_role_and_not_the_next() {
    let ground = Ground::new();
    ground.client("dashboard", "");
    ground.client("s", "subjectAltName=DNS:Scheduler.example.com");
    ground.client("d", "subjectAltName=URI:spiffe://example.com/deployer");
    ground.client("stranger", "subjectAltName=DNS:dashboard");
    let remote = Remote::start(&ground, Limits::default());
    let client = |name: &str| remote.client(ground.credentials(name));
    let request = TaskRequest::to(1);
    let submit = async |name: &str| {
        let client = client(name);
        client
            .submit("web", Verb::Activate, &request, WAIT, None)
            .await
    };

    client("dashboard").status().await.unwrap();
    let said = forbidden(submit("dashboard").await);
    assert!(
        said.contains("the certificate of cn:dashboard has the role view"),
        "{said}"
    );
    assert!(said.contains("api.tls.view, .operate and .admin"), "{said}");

    assert_eq!(submit("s").await.unwrap().state, TaskState::Done);
    let said = forbidden(client("s").apply("name: shop").await);
    assert!(
        said.contains("cn:s, dns:scheduler.example.com has the role operate"),
        "{said}"
    );

    client("d").apply("  name: shop\n").await.unwrap();

    let said = forbidden(client("stranger").status().await);
    assert!(
        said.contains("cn:stranger, dns:dashboard has no role"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_good_certificate_is_turned_away_before_any_request() {
    let ground = Ground::new();
    ground.authority("other");
    ground.leaf("foreign", "other", "dashboard", "", Age::Fresh);
    ground.leaf("old", "ca", "dashboard", "", Age::Expired);
    let remote = Remote::start(&ground, Limits::default());
    let said = unshaken(remote.client(ground.credentials("foreign")).status().await);
    assert!(said.contains("its authority is not known there"), "{said}");
    let said = unshaken(remote.client(ground.credentials("old")).status().await);
    assert!(said.contains("it has expired"), "{said}");

    ground.client("dashboard", "");
    let shown = ["-cert", "dashboard.pem", "-key", "dashboard.key"];
    for (shown, answer) in [(&[][..], ""), (&shown[..], "HTTP/1.1 200 OK\r\n")] {
        let said = s_client(&remote, &ground, shown).await;
        assert_eq!(said.is_empty(), answer.is_empty(), "{said}");
        assert!(said.starts_with(answer), "{said}");
    }
}

/// What another program than ours is answered.
async fn s_client(remote: &Remote, ground: &Ground, words: &[&str]) -> String {
    let mut command = tokio::process::Command::new("openssl");
    command.current_dir(ground.directory.path());
    command.args([
        "s_client",
        "-quiet",
        "-CAfile",
        "ca.pem",
        "-verify_return_error",
    ]);
    command
        .arg("-connect")
        .arg(remote.address.to_string())
        .args(words);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut client = command.kill_on_drop(true).spawn().unwrap();
    let request = b"GET /v1/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    // One that is turned away may be gone already.
    client.stdin.as_mut().unwrap().write_all(request).await.ok();
    let output = tokio::time::timeout(WAIT, client.wait_with_output()).await;
    let output = output.expect("still running after 20 s").unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_an_unknown_authority_is_told_nothing() {
    let ground = Ground::new();
    ground.client("dashboard", "");
    ground.authority("other");
    let remote = Remote::start(&ground, Limits::default());
    let mut credentials = ground.credentials("dashboard");
    credentials.authorities = Some(ground.file("other.pem"));
    let said = unshaken(remote.client(credentials).status().await);
    assert!(
        said.contains("its certificate is not accepted (--ca)"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_told_what_the_port_speaks_and_gets_nothing_else() {
    let ground = Ground::new();
    let remote = Remote::start(&ground, Limits::default());
    let mut stream = remote.dial().await;
    let request = b"GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = Vec::new();
    let read = tokio::time::timeout(WAIT, stream.read_to_end(&mut text)).await;
    read.expect("still open after 20 s").unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 400 ") && text.contains("speaks TLS"),
        "{text:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_takes_too_long_is_ended_and_its_place_is_free_again() {
    let ground = Ground::new();
    ground.client("dashboard", "");
    let limits = Limits {
        handshakes: 1,
        handshake: Duration::from_millis(300),
        ..Limits::default()
    };
    let remote = Remote::start(&ground, limits);
    let mut slow = remote.dial().await;
    // The head of a record, and then nothing.
    slow.write_all(&[22, 3, 1]).await.unwrap();
    let ended = tokio::time::timeout(WAIT, slow.read_to_end(&mut Vec::new())).await;
    ended.expect("still open after 20 s").ok();
    let client = remote.client(ground.credentials("dashboard"));
    client.status().await.unwrap();
    // Those on this host do not notice.
    Client::new(&remote.socket).status().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_are_used_at_once_and_broken_ones_never() {
    let ground = Ground::new();
    ground.client("dashboard", "");
    let remote = Remote::start(&ground, Limits::default());
    let client = remote.client(ground.credentials("dashboard"));
    client.status().await.unwrap();
    std::fs::write(ground.file("server.pem"), "not a certificate").unwrap();
    client.status().await.unwrap();
    // Another authority on both sides: who has the former one is turned away from now on.
    ground.authority("ca");
    ground.leaf(
        "server",
        "ca",
        "agent",
        "subjectAltName=IP:127.0.0.1",
        Age::Fresh,
    );
    let said = unshaken(client.status().await);
    assert!(said.contains("its authority is not known there"), "{said}");
    ground.client("dashboard", "");
    client.status().await.unwrap();
}

#[test]
fn files_that_cannot_be_used_prevent_the_start_and_are_named() {
    let ground = Ground::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let socket = ground.file("api.sock");
    let refused = |config: &ApiTls| {
        let server = Server::bind(&socket, Limits::default()).unwrap();
        server.with_tls(config).unwrap_err().to_string()
    };
    let mut config = ground.config();
    config.client_ca = ground.file("nothing.pem");
    let said = refused(&config);
    assert!(said.contains("nothing.pem (api.tls.client_ca)"), "{said}");
    config.client_ca = ground.file("ca.key");
    let said = refused(&config);
    assert!(
        said.contains("ca.key holds no certificate (api.tls.client_ca)"),
        "{said}"
    );
    let mut config = ground.config();
    config.key = ground.file("ca.key");
    let said = refused(&config);
    assert!(
        said.contains("(api.tls.certificate, api.tls.key)"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_calls_an_agent_of_another_host() {
    let ground = Ground::new();
    ground.client("dashboard", "");
    let remote = Arc::new(Remote::start(&ground, Limits::default()));
    let run = async |words: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_nodeagent"));
        command.env_clear().current_dir(ground.directory.path());
        command.env("NODEAGENT_SERVER", format!("https://{}", remote.address));
        let output = tokio::time::timeout(WAIT, command.args(words).output()).await;
        let output = output.expect("still running after 20 s").unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let whole = [
        "--cert",
        "dashboard.pem",
        "--key",
        "dashboard.key",
        "--ca",
        "ca.pem",
    ];
    assert_eq!(
        run(&[&["status"], &whole[..]].concat()).await,
        (0, String::new())
    );
    let (exit, said) = run(&[&["app", "delete", "web"], &whole[..]].concat()).await;
    assert_eq!(exit, 3, "{said}");
    let (exit, said) = run(&["status", "--cert", "dashboard.pem"]).await;
    assert_eq!(
        (exit, said.as_str()),
        (
            2,
            "nodeagent: the key (--key): needed with --server: a PEM file\n"
        )
    );
    let missing = [
        "--cert",
        "none.pem",
        "--key",
        "dashboard.key",
        "--ca",
        "ca.pem",
    ];
    let (exit, said) = run(&[&["status"], &missing[..]].concat()).await;
    assert_eq!(exit, 2);
    assert!(
        said.contains("none.pem: No such file or directory"),
        "{said}"
    );
    let (exit, said) = run(&["status", "--server", "http://127.0.0.1:1"]).await;
    assert_eq!(exit, 2);
    assert!(said.contains("https://HOST:PORT is expected"), "{said}");
    let gone = ["--server", "https://127.0.0.1:1"];
    let (exit, said) = run(&[&["status"], &whole[..], &gone[..]].concat()).await;
    assert_eq!(exit, 7);
    assert!(
        said.contains("no agent answers on https://127.0.0.1:1: Connection refused"),
        "{said}"
    );
}
