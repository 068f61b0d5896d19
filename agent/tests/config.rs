//! What configuration files mean and what is said about bad ones.
// A panic is the report of a test; clippy knows that only of functions marked as tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nodeagent::config::{AddressRange, LoadError, Loaded, Requirement, Source, load, show};
use proptest::prelude::*;
use tempfile::TempDir;

struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, directories: &[&str]) -> Result<Loaded, LoadError> {
        load(&Source::Directories(
            directories.iter().map(|name| self.path(name)).collect(),
        ))
    }

    /// The findings with the temporary directory cut off.
    fn findings(&self, directories: &[&str]) -> Vec<String> {
        match self.load(directories) {
            Err(LoadError::Refused { findings }) => findings
                .iter()
                .map(|finding| {
                    finding
                        .to_string()
                        .replace(&format!("{}/", self.0.path().display()), "")
                })
                .collect(),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
}

const ID: &str = "version = 1\n[host]\nid = \"h1\"\n";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/config")
        .join(name)
}

#[test]
fn defaults_are_complete() {
    let files = Files::new(&[("etc/a.toml", ID)]);
    let s = files.load(&["etc"]).unwrap().settings;
    assert_eq!(
        (s.host.id.as_str(), s.host.fleet.as_str()),
        ("h1", "default")
    );
    assert_eq!(s.paths.state, Path::new("/var/lib/nodeagent"));
    assert_eq!(s.paths.api_socket, Path::new("/run/nodeagent/api.sock"));
    assert_eq!(
        s.containerd.socket,
        Path::new("/run/containerd/containerd.sock")
    );
    assert_eq!(s.runtime.cgroup_parent, "/nodeagent");
    let pool = AddressRange {
        base: Ipv4Addr::new(10, 88, 0, 0),
        prefix: 16,
    };
    assert_eq!(
        (s.network.pools, s.network.quarantine.as_secs()),
        (vec![pool], 120)
    );
    assert_eq!(s.images.pull_timeout.as_secs(), 600);
    let file = s.discovery.file.unwrap();
    assert_eq!(file.directory, Path::new("/run/nodeagent/discovery"));
    assert_eq!(file.propagation_bound, Duration::from_secs(5));
    assert_eq!(s.tasks.keep_results.as_secs(), 30 * 86_400);
    assert_eq!((s.tasks.give_up_after, s.refill.concurrency), (3, 2));
}

#[test]
fn paths_follow_the_runtime_directory() {
    let files = Files::new(&[(
        "etc/a.toml",
        &format!("{ID}[paths]\nruntime = \"/run/other\"\n"),
    )]);
    let s = files.load(&["etc"]).unwrap().settings;
    assert_eq!(s.paths.api_socket, Path::new("/run/other/api.sock"));
    assert_eq!(
        s.discovery.file.unwrap().directory,
        Path::new("/run/other/discovery")
    );
}

#[test]
fn files_are_merged_key_by_key_in_the_order_of_their_names() {
    let files = Files::new(&[
        (
            "etc/10-first.toml",
            "version = 1\n[host]\nid = \"h1\"\nfleet = \"one\"\n[network]\npools = [\"10.1.0.0/16\", \"10.2.0.0/16\"]\n",
        ),
        (
            "usr/20-second.toml",
            "version = 1\n[host]\nfleet = \"two\"\n[network]\npools = [\"10.3.0.0/16\"]\n",
        ),
        ("etc/ignored.txt", "not read"),
    ]);
    let loaded = files.load(&["usr", "etc"]).unwrap();
    assert_eq!(loaded.settings.host.id, "h1");
    assert_eq!(loaded.settings.host.fleet, "two");
    assert_eq!(loaded.settings.network.pools.len(), 1);
    assert_eq!(
        loaded.files,
        [
            files.path("etc/10-first.toml"),
            files.path("usr/20-second.toml")
        ]
    );
}

#[test]
fn a_file_masks_its_namesake_in_an_earlier_directory() {
    let files = Files::new(&[
        (
            "usr/10-a.toml",
            "version = 1\n[host]\nfleet = \"usr\"\n[tasks]\ngive_up_after = 9\n",
        ),
        ("etc/10-a.toml", ID),
        ("usr/20-b.toml", "version = 1\nthis is broken\n"),
        ("etc/20-b.toml", ""),
    ]);
    let loaded = files.load(&["usr", "etc"]).unwrap();
    assert_eq!(loaded.settings.host.fleet, "default");
    assert_eq!(loaded.settings.tasks.give_up_after, 3);
    assert_eq!(loaded.files, [files.path("etc/10-a.toml")]);
}

#[test]
fn one_file_replaces_the_set() {
    let files = Files::new(&[("only.conf", ID)]);
    let loaded = load(&Source::File(files.path("only.conf"))).unwrap();
    assert_eq!(loaded.settings.host.id, "h1");
}

#[test]
fn what_was_asked_for_must_exist() {
    let files = Files::new(&[]);
    let missing = files.path("missing");
    let error = load(&Source::Directories(vec![missing.clone()])).unwrap_err();
    assert!(matches!(&error, LoadError::ListDirectory { path, .. } if *path == missing));
    let error = load(&Source::File(missing.clone())).unwrap_err();
    assert!(matches!(&error, LoadError::ReadFile { path, .. } if *path == missing));
    assert_eq!(
        error.to_string(),
        format!("cannot read the configuration file {}", missing.display())
    );
}

#[test]
fn unknown_keys_are_refused_with_file_line_and_a_suggestion() {
    let files = Files::new(&[
        (
            "etc/10-a.toml",
            "version = 1\n[host]\nid = \"h1\"\n[contanerd]\nsocket = \"/x\"\n",
        ),
        (
            "etc/20-b.toml",
            "version = 1\n[paths]\nstates = \"/x\"\n[discovery.file]\nbound = \"5s\"\n",
        ),
    ]);
    assert_eq!(
        files.findings(&["etc"]),
        [
            "etc/10-a.toml:4: contanerd: unknown field, did you mean containerd?",
            "etc/20-b.toml:3: paths.states: unknown field, did you mean state?",
            "etc/20-b.toml:5: discovery.file.bound: unknown field, known here: enabled, required, directory, propagation_bound",
        ]
    );
}

#[test]
fn a_broken_file_does_not_hide_the_mistakes_of_another() {
    let files = Files::new(&[
        ("etc/10-a.toml", "version = 1\n[host\n"),
        ("etc/20-b.toml", "version = 1\n[host]\nid = 7\n"),
    ]);
    let findings = files.findings(&["etc"]);
    assert!(
        findings[0].starts_with("etc/10-a.toml:2: cannot be read as TOML: "),
        "{findings:?}"
    );
    assert_eq!(
        findings[1],
        "etc/20-b.toml:3: host.id: 7 is not allowed; allowed: text (put the value in quotes)"
    );
    assert_eq!(findings.len(), 2);
}

#[test]
fn every_file_says_its_version() {
    let files = Files::new(&[
        ("etc/a.toml", "[host]\nid = \"h1\"\n"),
        ("etc/b.toml", "# a comment\nversion = 2\n"),
        ("etc/c.toml", "version = \"1\"\n"),
    ]);
    assert_eq!(
        files.findings(&["etc"]),
        [
            "etc/a.toml:1: version: required: 1, written as `version = 1` at the top of every file",
            "etc/b.toml:2: version: 2 is not allowed; allowed: 1, written as `version = 1` at the top of every file",
            "etc/c.toml:1: version: \"1\" is not allowed; allowed: a whole number, 0 to 4294967295",
        ]
    );
}

#[test]
fn a_file_that_is_no_text_is_refused() {
    let files = Files::new(&[]);
    fs::write(files.path("a.toml"), b"version = 1\nx = \xff\n").unwrap();
    assert_eq!(
        files.findings(&[""]),
        ["a.toml:2: cannot be read: not UTF-8"]
    );
    fs::write(files.path("a.toml"), "#".repeat(2 << 20)).unwrap();
    assert_eq!(
        files.findings(&[""]),
        ["a.toml:1: a file of 1048577 bytes is not allowed; allowed: at most 1048576 bytes"]
    );
}

/// `bad.toml` gets `bad.txt`; `UPDATE_GOLDEN=1` writes the text anew.
#[test]
fn every_bad_value_gets_its_finding() {
    let text = fs::read_to_string(golden("bad.toml")).unwrap();
    let files = Files::new(&[("bad.toml", &text)]);
    let got = files.findings(&[""]).join("\n") + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(golden("bad.txt"), &got).unwrap();
    }
    assert_eq!(got, fs::read_to_string(golden("bad.txt")).unwrap());
}

#[test]
fn a_value_from_a_masking_file_names_that_file() {
    let files = Files::new(&[
        ("etc/10-a.toml", ID),
        ("etc/20-b.toml", "version = 1\n\n[network]\nmtu = 1\n"),
    ]);
    assert_eq!(
        files.findings(&["etc"]),
        ["etc/20-b.toml:4: network.mtu: 1 is not allowed; allowed: 576 to 65535"]
    );
}

#[test]
fn a_quarantine_shorter_than_the_propagation_bound_is_refused() {
    let with = |enabled: bool| {
        Files::new(&[(
            "a.toml",
            &format!("{ID}[network]\nquarantine = \"2s\"\n[discovery.file]\nenabled = {enabled}\n"),
        )])
    };
    assert_eq!(
        with(true).findings(&[""]),
        [
            "a.toml:5: network.quarantine: \"2s\" is not allowed; allowed: at least the longest propagation_bound of discovery, 5s: until then clients may still use a freed address"
        ]
    );
    assert_eq!(
        with(false).load(&[""]).unwrap().settings.discovery.file,
        None
    );
}

#[test]
fn show_prints_what_is_in_effect_and_from_where() {
    let images = "version = 1\n[images]\ninsecure_registries = [\"r.lan:5000\"]\nauth_file = \"/root/.docker/config \\\"x\\\".json\"\n";
    let files = Files::new(&[("etc/10-a.toml", ID), ("etc/20-b.toml", images)]);
    let loaded = files.load(&["etc"]).unwrap();
    let page = show(&loaded).replace(&format!("{}/", files.0.path().display()), "");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(golden("show.toml"), &page).unwrap();
    }
    assert_eq!(page, fs::read_to_string(golden("show.toml")).unwrap());

    let again = Files::new(&[("a.toml", &page)]);
    assert_eq!(again.load(&[""]).unwrap().settings, loaded.settings);
}

#[test]
fn etcd_is_shown_as_it_is_set_and_raises_the_quarantine() {
    let etcd = "[discovery.etcd]\nenabled = true\nrequired = false\nendpoints = [\"https://a:2379\", \"https://[::1]:2379\"]\nttl = \"10m\"\nusername = \"agent\"\npassword_file = \"/etc/p\"\nca_file = \"/etc/ca\"\ncert_file = \"/etc/c\"\nkey_file = \"/etc/k\"\n";
    let files = Files::new(&[("a.toml", &format!("{ID}{etcd}"))]);
    let loaded = files.load(&[""]).unwrap();
    let settings = loaded.settings.discovery.etcd.clone().unwrap();
    assert_eq!(settings.requirement, Requirement::Optional);
    assert_eq!(settings.request_timeout, Duration::from_secs(5));
    assert_eq!(loaded.settings.network.quarantine.as_secs(), 605);
    let again = Files::new(&[("a.toml", &show(&loaded))]);
    assert_eq!(again.load(&[""]).unwrap().settings, loaded.settings);
}

#[test]
fn a_log_has_at_least_two_files_of_a_size_that_can_be_read() {
    let findings = |text: &str| {
        let files = Files::new(&[("etc/a.toml", &format!("{ID}[logs]\n{text}\n"))]);
        files.findings(&["etc"])
    };
    for (text, wrong) in [
        (
            "max_files = 1",
            "logs.max_files: 1 is not allowed; allowed: 2 to 100",
        ),
        (
            "max_files = 101",
            "logs.max_files: 101 is not allowed; allowed: 2 to 100",
        ),
        (
            "max_size = \"63Ki\"",
            "logs.max_size: \"63Ki\" is not allowed; allowed: 64Ki to 1Ti bytes, for example 10Mi or 10485760",
        ),
    ] {
        assert_eq!(findings(text), [format!("etc/a.toml:5: {wrong}")]);
    }
}

#[test]
fn a_port_of_the_api_needs_its_files_and_names_say_of_what_kind_they_are() {
    let tls = "[api.tls]\nlisten = \"0.0.0.0\"\nkey = \"k.pem\"\nadmin = [\"cn:a\", \"boss\", \"dns:\"]\n";
    let files = Files::new(&[("a.toml", &format!("{ID}{tls}"))]);
    let found = files.findings(&[""]);
    assert_eq!(found.len(), 6, "{found:#?}");
    for (field, said) in [
        ("api.tls.listen", "for example 0.0.0.0:7443"),
        ("api.tls.certificate", "required with api.tls.listen"),
        ("api.tls.key", "an absolute path"),
        ("api.tls.client_ca", "required with api.tls.listen"),
        ("api.tls.admin[1]", "cn:NAME (of the subject)"),
        ("api.tls.admin[2]", "cn:NAME (of the subject)"),
    ] {
        let named = |text: &&String| text.contains(field) && text.contains(said);
        assert!(found.iter().any(|text| named(&text)), "{field}: {found:#?}");
    }
    let files = Files::new(&[("a.toml", &format!("{ID}[api.tls]\nview = [\"cn:a\"]\n"))]);
    let found = files.findings(&[""]);
    assert!(found[0].contains("api.tls.listen"), "{found:#?}");

    let whole = "[api.tls]\nlisten = \"[::]:7443\"\ncertificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/a\"\nview = [\"uri:x:y\"]\n";
    let files = Files::new(&[("a.toml", &format!("{ID}{whole}"))]);
    let loaded = files.load(&[""]).unwrap();
    let tls = loaded.settings.api.tls.clone().unwrap();
    assert_eq!(tls.view, ["uri:x:y"]);
    let again = Files::new(&[("a.toml", &show(&loaded))]);
    assert_eq!(again.load(&[""]).unwrap().settings, loaded.settings);
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let files = Files::new(&[("a.toml", &text)]);
        let _ = files.load(&[""]);
    }

    #[test]
    fn a_damaged_file_never_panics(
        at in 0usize..1500,
        cut in 0usize..40,
        splice in "[-=\\[\\]{}\", \n0-9a-z.#]{0,10}",
    ) {
        let mut bytes = fs::read(golden("show.toml")).unwrap();
        let at = at.min(bytes.len());
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, splice.bytes());
        let files = Files::new(&[]);
        fs::write(files.path("a.toml"), bytes).unwrap();
        let _ = files.load(&[""]);
    }
}

#[test]
fn the_policy_of_images_is_read_shown_and_refused_with_its_field() {
    let rules = "[images.policy]\ndefault = \"deny\"\n[[images.policy.rules]]\nscope = \"r.lan:5000/team\"\nrequire_signature = [\"/etc/k.pub\"]\nsigned_as = \"*\"\n[[images.policy.rules]]\nscope = \"*\"\nverdict = \"deny\"\n";
    let files = Files::new(&[("a.toml", &format!("{ID}{rules}"))]);
    let loaded = files.load(&[""]).unwrap();
    assert_eq!(loaded.settings.images.policy.rules.len(), 2);
    let again = Files::new(&[("a.toml", &show(&loaded))]);
    assert_eq!(again.load(&[""]).unwrap().settings, loaded.settings);

    let rule = |members: &str| {
        let text = format!("{ID}[[images.policy.rules]]\n{members}\n");
        Files::new(&[("etc/a.toml", &text)]).findings(&["etc"])
    };
    for (members, wrong) in [
        (
            "verdict = \"deny\"",
            "images.policy.rules[0].scope: required: *, REGISTRY",
        ),
        (
            "scope = \"team/web\"",
            "images.policy.rules[0].scope: \"team/web\" is no scope",
        ),
        (
            "scope = \"*\"\nverdict = \"no\"",
            "images.policy.rules[0].verdict: \"no\" is not allowed; allowed: allow, deny",
        ),
        (
            "scope = \"*\"\nrequire_signature = [\"k.pub\"]",
            "images.policy.rules[0].require_signature[0]: \"k.pub\" is not allowed; allowed: an absolute path",
        ),
        (
            "scope = \"*\"\nrequire_signature = []",
            "images.policy.rules[0].require_signature: an empty list is not allowed",
        ),
        (
            "scope = \"*\"\nrequire_digests = true",
            "images.policy.rules[0].require_digests: ",
        ),
        (
            "scope = \"*\"\n[[images.policy.rules]]\nscope = \"r.lan\"",
            "images.policy.rules[1].scope: r.lan is never reached: rule 1 for * comes first",
        ),
    ] {
        let findings = rule(members);
        assert!(
            findings.len() == 1 && findings[0].contains(wrong),
            "{members}: {findings:?}"
        );
    }
}

#[test]
fn a_proxy_is_a_url_without_secrets() {
    let findings = |text: &str| {
        let files = Files::new(&[("etc/a.toml", &format!("{ID}[images]\n{text}\n"))]);
        files.findings(&["etc"])
    };
    for (text, wrong) in [
        (
            "proxy = \"p.lan\"",
            "images.proxy: \"p.lan\" is not allowed",
        ),
        ("proxy = \"socks5://p.lan:1\"", "images.proxy: \"socks5:"),
        ("no_proxy = [\"a.lan\"]", "images.no_proxy: means nothing"),
        (
            "proxy = \"http://p.lan:3128\"\nno_proxy = [\"a b\"]",
            "images.no_proxy[0]: \"a b\" is not allowed",
        ),
        (
            "connections = 2\nconnections_per_blob = 3",
            "images.connections_per_blob: 3 is not allowed; allowed: 1 to 2",
        ),
    ] {
        let findings = findings(text);
        assert!(
            findings.len() == 1 && findings[0].contains(wrong),
            "{text}: {findings:?}"
        );
    }
    let secret = findings("proxy = \"http://me:hunter2@p.lan:3128\"");
    assert!(
        secret.len() == 1 && !secret[0].contains("hunter2"),
        "{secret:?}"
    );
    let text = "[images]\nproxy = \"http://p.lan:3128\"\nno_proxy = [\".lan\", \"10.0.0.0/8\"]\n";
    let files = Files::new(&[("a.toml", &format!("{ID}{text}"))]);
    let loaded = files.load(&[""]).unwrap();
    let again = Files::new(&[("a.toml", &show(&loaded))]);
    assert_eq!(again.load(&[""]).unwrap().settings, loaded.settings);
}

#[test]
fn peers_are_read_shown_and_refused_with_their_field() {
    let peers = "[images.peers]\nlisten = \"0.0.0.0:7070\"\naddress = \"a.lan:7070\"\nzone = \"z1\"\nrack = \"r1\"\ntoken_file = \"/etc/t\"\nhosts = [{ address = \"a.lan:7070\", zone = \"z1\" }, { address = \"10.0.0.8:7070\", rack = \"r2\" }]\n";
    let files = Files::new(&[("a.toml", &format!("{ID}{peers}"))]);
    let loaded = files.load(&[""]).unwrap();
    let settings = loaded.settings.images.peers.clone().unwrap();
    assert_eq!((settings.hosts.len(), settings.uploads), (2, 8));
    let again = Files::new(&[("a.toml", &show(&loaded))]);
    assert_eq!(again.load(&[""]).unwrap().settings, loaded.settings);
    let off = Files::new(&[("a.toml", &format!("{ID}[images.peers]\nzone = \"z1\"\n"))]);
    assert_eq!(off.load(&[""]).unwrap().settings.images.peers, None);

    let findings = |text: &str| {
        let text = format!("{ID}[images.peers]\n{text}\n");
        Files::new(&[("etc/a.toml", &text)]).findings(&["etc"])
    };
    let on = "listen = \"10.0.0.7:7070\"\ntoken_file = \"/etc/t\"\n";
    for (text, wrong) in [
        (
            "listen = \"10.0.0.7:7070\"".to_owned(),
            "images.peers.token_file: required with images.peers.listen",
        ),
        (
            "listen = \"10.0.0.7:7070\"\ncertificate = \"/c\"\nkey = \"/k\"".to_owned(),
            "images.peers.ca: required with TLS between peers",
        ),
        (
            "listen = \"0.0.0.0:7070\"\ntoken_file = \"/etc/t\"".to_owned(),
            "images.peers.address: required, because images.peers.listen is every address",
        ),
        (
            format!("{on}hosts = [{{ address = \"10.0.0.8\" }}]"),
            "images.peers.hosts[0].address: \"10.0.0.8\" is not allowed; allowed: host:port, each once (no port)",
        ),
        (
            format!("{on}hosts = [{{ address = \"b:1\" }}, {{ address = \"b:1\" }}]"),
            "images.peers.hosts[1].address: \"b:1\" is not allowed",
        ),
        (
            format!("{on}hosts = [{{ zone = \"z\" }}]"),
            "images.peers.hosts[0].address: required",
        ),
        (
            format!("{on}uploads = 0"),
            "images.peers.uploads: 0 is not allowed; allowed: 1 to 256",
        ),
        (
            format!("{on}zone = \"a b\""),
            "images.peers.zone: \"a b\" is not allowed",
        ),
    ] {
        let findings = findings(&text);
        assert!(
            findings.len() == 1 && findings[0].contains(wrong),
            "{text}: {findings:?}"
        );
    }
}
