//! The registries and the fault proxy of the harness, by a client that is not ours: `ctr`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nodeagent_tests::authority::Authority;
use nodeagent_tests::ctr::Ctr;
use nodeagent_tests::faults::{At, Fault, FaultyRegistry, Rule};
use nodeagent_tests::registry::{Access, Asked, Login, SecuredRegistry, Tokens, Visitors};
use nodeagent_tests::{Containerd, Ground, Image, Registry, http};

const ASIDE: u16 = 5010;

/// containerd, the free registry with the web image, and one more at [`ASIDE`].
struct Furniture {
    ground: Ground,
    containerd: Containerd,
    registry: Registry,
}

impl Furniture {
    fn new() -> Result<Self> {
        let ground = Ground::new()?;
        let containerd = Containerd::start(&ground)?;
        let registry = Registry::start(&ground)?;
        Image::web()?.push(&registry, "web:1")?;
        Ok(Self {
            ground,
            containerd,
            registry,
        })
    }

    fn pull(&self, words: &[&str]) -> Result<()> {
        let ctr = Ctr::new(&self.ground, &self.containerd);
        ctr.run(&[&["images", "pull"], words].concat()).map(drop)
    }

    /// Why a pull failed.
    fn refused(&self, words: &[&str]) -> Result<String> {
        match self.pull(words) {
            Ok(()) => anyhow::bail!("ctr images pull {words:?} was not refused"),
            Err(error) => Ok(error.to_string()),
        }
    }
}

fn login() -> String {
    format!("{}:{}", Login::USER, Login::PASSWORD)
}

#[test]
fn basic_authentication_lets_in_who_has_the_login() -> Result<()> {
    let here = Furniture::new()?;
    let basic = SecuredRegistry::start(&here.ground, ASIDE, Access::Basic, None)?;
    let image = basic.reference("web:1");
    let nobody = here.refused(&["--plain-http", &image])?;
    ensure!(nobody.contains("401"), "{nobody}");
    let wrong = format!("{}:wrong", Login::USER);
    let wrong = here.refused(&["--plain-http", "--user", &wrong, &image])?;
    ensure!(wrong.contains("401"), "{wrong}");
    here.pull(&["--plain-http", "--user", &login(), &image])
}

#[test]
fn tokens_are_issued_by_the_scope_to_whom_the_server_knows() -> Result<()> {
    let here = Furniture::new()?;
    let rules = Tokens::lasting(Visitors::Known);
    let guarded = SecuredRegistry::start(&here.ground, ASIDE, Access::Token(rules), None)?;
    let image = guarded.reference("web:1");
    here.refused(&["--plain-http", &image])?;
    here.pull(&["--plain-http", "--user", &login(), &image])?;
    let asked = guarded.tokens()?.asked();
    let granted = Asked {
        scope: "repository:web:pull".to_owned(),
        login: true,
        granted: true,
    };
    ensure!(asked.contains(&granted), "{asked:?}");
    ensure!(asked.iter().any(|asked| !asked.granted), "{asked:?}");
    Ok(())
}

#[test]
fn anonymous_tokens_are_enough_where_anyone_may_pull() -> Result<()> {
    let here = Furniture::new()?;
    let rules = Tokens::lasting(Visitors::Anyone);
    let guarded = SecuredRegistry::start(&here.ground, ASIDE, Access::Token(rules), None)?;
    here.pull(&["--plain-http", &guarded.reference("web:1")])?;
    let asked = guarded.tokens()?.asked();
    ensure!(
        asked.iter().all(|asked| asked.granted && !asked.login),
        "{asked:?}"
    );
    Ok(())
}

#[test]
fn a_token_ends_when_it_should() -> Result<()> {
    let here = Furniture::new()?;
    let rules = Tokens::dying_early(Visitors::Anyone, Duration::from_secs(2));
    let guarded = SecuredRegistry::start(&here.ground, ASIDE, Access::Token(rules), None)?;
    let realm = format!("{}?scope=repository:web:pull", guarded.tokens()?.realm());
    let target = realm.split_once("/token").map_or("", |(_, query)| query);
    let server = ([127, 0, 0, 1], ASIDE + 100).into();
    let start = Instant::now();
    let answer = http::get(here.ground.netns(), server, &format!("/token{target}"))?;
    let answer: serde_json::Value = serde_json::from_str(&answer.text())?;
    let bearer = format!("Bearer {}", answer["token"].as_str().unwrap_or_default());
    let fields = [("Authorization", bearer.as_str())];
    let ask = || {
        let (netns, address) = (here.ground.netns(), guarded.address());
        let answer = http::request(netns, "GET", address, "/v2/web/tags/list", &fields, &[])?;
        Ok::<u16, anyhow::Error>(answer.status)
    };
    ensure!(answer["expires_in"] == 3600, "{answer}");
    let first = ask()?;
    ensure!(
        first == 200 || start.elapsed() > Duration::from_secs(1),
        "the token is refused at once: {first}"
    );
    let within = Duration::from_secs(20);
    nodeagent_tests::wait::until("the token to end", within, || {
        use nodeagent_tests::wait::Look;
        Ok(match ask()? {
            401 => Look::Seen(()),
            other => Look::NotYet(format!("status {other}")),
        })
    })
}

#[test]
fn tls_needs_the_authority_that_signed() -> Result<()> {
    let here = Furniture::new()?;
    let authority = Authority::create(&here.ground.path("authority"))?;
    let certificate = authority.sign("registry", "subjectAltName=IP:127.0.0.1")?;
    let tls = SecuredRegistry::start(&here.ground, ASIDE, Access::Basic, Some(&certificate))?;
    let image = tls.reference("web:1");
    // containerd's own default for loopback is to skip what hosts.toml does not say.
    let hosts = here.ground.path("hosts");
    let own = hosts.join(format!("{}_{}_", tls.address().ip(), tls.address().port()));
    fs::create_dir_all(&own)?;
    let url = format!("https://{}", tls.address());
    let table = |ca: &str| {
        format!("server = {url:?}\n[host.{url:?}]\ncapabilities = [\"pull\", \"resolve\"]\n{ca}")
    };
    let directory = hosts.display().to_string();
    let words = ["--hosts-dir", &directory, "--user", &login(), &image];

    fs::write(own.join("hosts.toml"), table(""))?;
    let stranger = here.refused(&words)?;
    ensure!(stranger.contains("certificate"), "{stranger}");
    let ca = format!("ca = {:?}\n", authority.file());
    fs::write(own.join("hosts.toml"), table(&ca))?;
    here.pull(&words)
}

#[test]
fn the_proxy_records_what_it_passed_and_what_it_passed_twice() -> Result<()> {
    let here = Furniture::new()?;
    let image = Image::web()?.push(&here.registry, "web:1")?;
    let proxy = FaultyRegistry::start(&here.ground)?;
    let target = format!("/v2/web/blobs/{}", image.layer);
    let get = |range: &str| {
        let range = [("Range", range)];
        let (netns, address) = (here.ground.netns(), proxy.listens());
        http::request(netns, "GET", address, &target, &range, &[])
    };
    let first = get("bytes=0-999")?;
    assert_eq!((first.status, first.body.len()), (206, 1000));
    assert_eq!(get("bytes=900-1999")?.body.len(), 1100);
    assert_eq!(proxy.passed(&image.layer), (2, 2100));
    assert_eq!(proxy.sent_twice(&image.layer), 100);
    let log = proxy.log();
    assert_eq!(
        (log[1].offset, log[1].sent, log[1].connection),
        (900, 1100, 2)
    );
    assert_eq!(log[1].range.as_deref(), Some("bytes=900-1999"));

    proxy.set([Rule::blob(&image.layer, Fault::RangeIgnored)]);
    let whole = get("bytes=900-1999")?;
    assert_eq!(whole.status, 200);
    ensure!(whole.body.len() > 100_000, "{}", whole.body.len());
    assert_eq!(&whole.body[..1000], &first.body);
    Ok(())
}

#[test]
fn each_rule_of_the_proxy_does_what_it_says() -> Result<()> {
    let here = Furniture::new()?;
    let image = Image::web()?.push(&here.registry, "web:1")?;
    let proxy = FaultyRegistry::start(&here.ground)?;
    let elsewhere = FaultyRegistry::start_at(&here.ground, 5002, Registry::address())?;
    let target = format!("/v2/web/blobs/{}", image.layer);
    let get = || http::get(here.ground.netns(), proxy.listens(), &target);
    let right = get()?.body;

    proxy.set([Rule::layers(Fault::WrongByte(At::Byte(4711)))]);
    let wrong = get()?.body;
    let other = (0..right.len()).filter(|at| right[*at] != wrong[*at]);
    assert_eq!(other.collect::<Vec<_>>(), [4711]);

    proxy.set([Rule::layers(Fault::CutOff(At::Byte(5000)))]);
    let cut = get().unwrap_err();
    let said = format!("the body has 5000 bytes of {}", right.len());
    ensure!(format!("{cut:#}").contains(&said), "{cut:#}");

    let wait = Some(Duration::from_secs(7));
    proxy.set([Rule::layers(Fault::Status(429, wait)).times(1)]);
    let busy = get()?;
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("7")));
    assert_eq!(get()?.status, 200);

    proxy.set([Rule::layers(Fault::Redirect(elsewhere.listens()))]);
    let moved = get()?;
    let location = format!("http://{}{target}", elsewhere.listens());
    assert_eq!(
        (moved.status, moved.header("location")),
        (307, Some(location.as_str()))
    );

    let (start, time) = (Instant::now(), Duration::from_millis(300));
    proxy.set([Rule::layers(Fault::Pause(At::Middle, time))]);
    ensure!(get()?.body == right, "a pause spoilt the body");
    ensure!(start.elapsed() >= time, "there was no pause");

    let start = Instant::now();
    proxy.set([Rule::layers(Fault::Slow(right.len() as u64 * 4))]);
    ensure!(get()?.body == right, "slowness spoilt the body");
    ensure!(start.elapsed() >= Duration::from_millis(200), "it was fast");

    proxy.set([Rule::manifests(Fault::Status(500, None))]);
    assert_eq!(get()?.status, 200);
    let manifest = http::get(here.ground.netns(), proxy.listens(), "/v2/web/manifests/1")?;
    assert_eq!(manifest.status, 500);
    Ok(())
}

#[test]
fn a_blob_placed_as_a_file_is_served_as_one_that_was_uploaded() -> Result<()> {
    let here = Furniture::new()?;
    let text = "placed, not pushed".repeat(100);
    let digest = nodeagent_tests::image::digest(text.as_bytes());
    let file = here.ground.path("placed");
    fs::write(&file, &text)?;
    here.registry.place_blob("placed", &digest, &file)?;
    let target = format!("/v2/placed/blobs/{digest}");
    let answer = here.registry.request("GET", &target, &[], &[])?;
    assert_eq!((answer.status, answer.text()), (200, text));
    Ok(())
}
