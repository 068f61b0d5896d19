//! Registries that ask who is there: a login, tokens, anonymous ones, and tokens that end in the
//! middle. Real docker-registry, through the real agent.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nodeagent_tests::documents::Problem;
use nodeagent_tests::faults::{self, Fault, FaultyRegistry, Rule};
use nodeagent_tests::image::cached;
use nodeagent_tests::registry::{Access, Login, SecuredRegistry, Tokens, Visitors};
use nodeagent_tests::{Image, Manifest, TestHost};
use serde_json::json;

const PORT: u16 = 5010;

/// A host whose agent has the login `login` for what listens at `port`, and the web image.
fn host(port: u16, login: &str) -> Result<TestHost> {
    host_with(port, login, "")
}

/// The same with this addition to `[images]`.
fn host_with(port: u16, login: &str, images: &str) -> Result<TestHost> {
    let mut host = TestHost::without_agent("")?;
    let address = format!("127.0.0.1:{port}");
    let auths = match login {
        "" => json!({}),
        login => json!({ address: { "auth": STANDARD.encode(login) } }),
    };
    let file = host.file("config.json", &json!({ "auths": auths }).to_string())?;
    fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    host.agent.configure(&format!(
        "[discovery.file]\npropagation_bound = \"100ms\"\n[images]\nauth_file = {file:?}\n{images}"
    ))?;
    host.agent.start(&host.ground)?;
    host.push(&Image::web()?, "web:1")?;
    Ok(host)
}

fn right() -> String {
    format!("{}:{}", Login::USER, Login::PASSWORD)
}

/// The refusal of the web image of that registry.
fn refused(host: &TestHost, registry: &SecuredRegistry) -> Result<Problem> {
    let manifest = Manifest::web("web").with("image", registry.reference("web:1").into());
    let file = host.file("refused.yaml", &manifest.text())?;
    let file = file.to_string_lossy();
    let problem = host
        .cli()
        .json(&["app", "apply", "-f", &file])?
        .problem(3)?;
    let said = format!("{problem:?}");
    ensure!(
        !said.contains(Login::PASSWORD),
        "the password is told: {said}"
    );
    ensure!(
        !said.contains(&STANDARD.encode(right())),
        "the login is told: {said}"
    );
    Ok(problem)
}

/// The web image of that registry is pulled and serves.
fn serves(host: &TestHost, registry: &SecuredRegistry) -> Result<()> {
    host.apply(&Manifest::web("web").with("image", registry.reference("web:1").into()))?;
    let task = host.cli().activate("web", 1, "in")?;
    host.assert_serves(&task.instances[0])?;
    host.remove_app("web")
}

#[test]
fn a_registry_that_wants_a_login_gets_the_one_of_the_file() -> Result<()> {
    let host = host(PORT, &right())?;
    let registry = SecuredRegistry::start(&host.ground, PORT, Access::Basic, None)?;
    serves(&host, &registry)
}

#[test]
fn without_a_login_or_with_a_wrong_one_the_registry_is_named_and_no_secret() -> Result<()> {
    for login in ["", "puller:wrong-secret"] {
        let host = host(PORT, login)?;
        let registry = SecuredRegistry::start(&host.ground, PORT, Access::Basic, None)?;
        let problem = refused(&host, &registry)?;
        let finding = problem.findings.first().context("no finding")?;
        assert_eq!(finding.field, "spec.image", "{problem:?}");
        let said = format!("{problem:?}");
        ensure!(said.contains("127.0.0.1:5010"), "{said}");
        ensure!(!said.contains("wrong-secret"), "{said}");
        assert_eq!(host.cli().status()?.pools, Vec::new());
        host.assert_nothing_left()?;
    }
    Ok(())
}

#[test]
fn a_token_is_had_with_the_login_and_kept_for_the_pull() -> Result<()> {
    let host = host(PORT, &right())?;
    let access = Access::Token(Tokens::lasting(Visitors::Known));
    let registry = SecuredRegistry::start(&host.ground, PORT, access, None)?;
    // The token server is not the registry, and yet gets the login: the registry names it.
    serves(&host, &registry)?;
    let asked = registry.tokens()?.asked();
    ensure!(asked.iter().all(|asked| asked.granted), "{asked:?}");
    ensure!(
        asked
            .iter()
            .all(|asked| asked.scope == "repository:web:pull"),
        "{asked:?}"
    );
    // At most one to resolve the tag and one for the documents and the layer.
    ensure!(asked.len() <= 2, "{asked:?}");
    Ok(())
}

#[test]
fn an_anonymous_token_is_enough_where_anyone_may_pull() -> Result<()> {
    let host = host(PORT, "")?;
    let access = Access::Token(Tokens::lasting(Visitors::Anyone));
    let registry = SecuredRegistry::start(&host.ground, PORT, access, None)?;
    serves(&host, &registry)?;
    let asked = registry.tokens()?.asked();
    ensure!(
        asked.iter().all(|asked| asked.granted && !asked.login),
        "{asked:?}"
    );
    Ok(())
}

#[test]
fn who_gets_no_token_is_told_so() -> Result<()> {
    let host = host(PORT, "puller:wrong-secret")?;
    let access = Access::Token(Tokens::lasting(Visitors::Known));
    let registry = SecuredRegistry::start(&host.ground, PORT, access, None)?;
    let said = format!("{:?}", refused(&host, &registry)?);
    ensure!(said.contains("127.0.0.1:5010"), "{said}");
    ensure!(!said.contains("wrong-secret"), "{said}");
    let asked = registry.tokens()?.asked();
    ensure!(asked.iter().all(|asked| !asked.granted), "{asked:?}");
    ensure!(
        (1..=4).contains(&asked.len()),
        "{} requests for a token",
        asked.len()
    );
    Ok(())
}

#[test]
fn a_token_that_ends_in_the_middle_of_a_pull_is_renewed() -> Result<()> {
    // Nobody is asked twice because the machine is slow.
    let host = host_with(faults::PORT, &right(), "hedge_after = \"60s\"\n")?;
    // The client is told an hour; the registry, which counts whole seconds, refuses it after three
    // or four.
    let tokens = Tokens::dying_early(Visitors::Known, Duration::from_secs(4));
    let registry = SecuredRegistry::start(&host.ground, PORT, Access::Token(tokens), None)?;
    let proxy = FaultyRegistry::start_at(&host.ground, faults::PORT, registry.address())?;
    // More layers than connections, each of which takes longer than that.
    let image = cached::layers(&host.ground.path("image"), 16, 1_600_000)?;
    image.place(&host.registry, "layers:1")?;
    proxy.set([Rule::layers(Fault::Slow(120_000))]);
    let reference = FaultyRegistry::reference("layers:1");
    host.apply(&Manifest::new("layers", "unused:1").with("image", reference.into()))?;
    let asked = registry.tokens()?.asked();
    ensure!(asked.len() >= 2, "no token was renewed: {asked:?}");
    ensure!(
        asked.iter().all(|asked| asked.granted && asked.login),
        "{asked:?}"
    );
    for layer in image.layers() {
        assert_eq!(proxy.sent_twice(&layer.digest), 0, "{}", layer.digest);
    }
    host.remove_app("layers")
}
