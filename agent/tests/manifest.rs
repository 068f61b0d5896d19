//! What a manifest means and what is said about a bad one.
// A panic is the report of a test; clippy knows that only of functions marked as tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nodeagent::app::{
    App, Essential, HostTerms, Look, NetworkMode, Probe, ProbeTiming, Readiness, Revision, Scheme,
    check_against, manifest_hash, parse, revision,
};
use proptest::prelude::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/manifest")
        .join(name)
}

fn full() -> String {
    fs::read_to_string(golden("full.yaml")).unwrap()
}

const MINIMAL: &str = "{apiVersion: nodeagent/v1, kind: App, metadata: {name: web}, \
    spec: {image: 'web:1', ports: [{containerPort: 80}]}}";

#[test]
fn every_field_of_a_full_manifest_arrives() {
    let app = parse(&full()).unwrap();
    let timing = ProbeTiming {
        initial_delay: Duration::from_secs(1),
        period: Duration::from_secs(2),
        timeout: Duration::from_secs(3),
        success_threshold: 1,
        failure_threshold: 4,
    };
    assert_eq!(app.name.as_str(), "web");
    assert_eq!(app.labels["example.com/team"], "shop");
    assert_eq!(app.command, ["/bin/httpd"]);
    assert_eq!(app.args, ["-f", "-p", "8080"]);
    assert_eq!(app.working_dir.as_deref(), Some("/srv"));
    let user = app.user.as_ref().unwrap();
    assert_eq!(
        (user.user.as_str(), user.group.as_deref()),
        ("1000", Some("1000"))
    );
    assert_eq!(
        app.env,
        [("A".into(), "b".into()), ("EMPTY".into(), String::new())]
    );
    assert_eq!(app.resources.cpu_millis, Some(500));
    assert_eq!(
        (app.resources.memory_bytes, app.resources.pids),
        (128 << 20, 256)
    );
    assert_eq!(
        app.readiness,
        Readiness::Probe(Probe {
            look: Look::Http {
                port: 8080,
                host: None,
                scheme: Scheme::Http,
                path: "/healthz".into(),
                headers: vec![("X-Probe".into(), "nodeagent".into())],
            },
            timing,
        })
    );
    let [shipper, cache] = app.agents.as_slice() else {
        panic!("two agents were written")
    };
    assert_eq!(
        shipper.readiness,
        Readiness::Notify {
            timeout: Duration::from_secs(5)
        }
    );
    assert_eq!(
        (shipper.essential, cache.essential),
        (Essential::No, Essential::Yes)
    );
    assert!(matches!(
        cache.readiness,
        Readiness::Probe(Probe {
            look: Look::Tcp { port: 11211, .. },
            ..
        })
    ));
    assert_eq!(app.warm.armed, 3);
    assert_eq!((app.registration.port, app.registration.weight), (8080, 50));
    assert_eq!(app.registration.service, "shop-web");
    assert_eq!(app.network, NetworkMode::Host);
    assert_eq!(
        (app.termination_grace.as_secs(), app.drain.as_secs()),
        (20, 40)
    );
}

#[test]
fn defaults_are_those_of_kubernetes_or_documented() {
    let app = parse(MINIMAL).unwrap();
    assert_eq!(app.readiness, Readiness::None);
    assert_eq!(
        (app.resources.memory_bytes, app.resources.pids),
        (512 << 20, 1024)
    );
    assert_eq!(
        (app.termination_grace.as_secs(), app.drain.as_secs()),
        (30, 30)
    );
    assert!(app.registration.enabled);
    assert_eq!(
        (app.registration.service.as_str(), app.registration.port),
        ("web", 80)
    );
    assert_eq!((app.registration.weight, app.warm.armed), (100, 0));
    assert_eq!(app.network, NetworkMode::Routed);
}

#[test]
fn a_user_may_be_a_number() {
    let app = parse(&MINIMAL.replace("image:", "user: 1000, image:")).unwrap();
    assert_eq!(app.user.unwrap().user, "1000");
}

#[test]
fn json_is_accepted_as_well() {
    let json = r#"{"apiVersion":"nodeagent/v1","kind":"App","metadata":{"name":"web"},
        "spec":{"image":"web:1","ports":[{"containerPort":80}]}}"#;
    assert_eq!(parse(json), parse(MINIMAL));
}

/// Each `NAME.yaml` with a `NAME.txt` beside it is refused with that text.
/// `UPDATE_GOLDEN=1` writes the texts anew.
#[test]
fn a_bad_manifest_gets_all_its_findings() {
    let mut seen = 0;
    for entry in fs::read_dir(golden("")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "yaml") || path.ends_with("full.yaml") {
            continue;
        }
        let refused = parse(&fs::read_to_string(&path).unwrap()).unwrap_err();
        let expected = path.with_extension("txt");
        let got = format!("{refused}\n");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &got).unwrap();
        }
        let wanted = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(got, wanted, "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 9, "only {seen} golden manifests were found");
}

#[test]
fn a_drain_shorter_than_the_propagation_bound_is_refused_at_apply() {
    let app = parse(&MINIMAL.replace("image:", "drainSeconds: 3, image:")).unwrap();
    let findings = check_against(&app, &terms(5));
    assert_eq!(
        findings[0].to_string(),
        "spec.drainSeconds: 3 is not allowed; allowed: at least the propagation bound of discovery on this host, 5 s: until then clients may still come"
    );
    assert_eq!(check_against(&app, &terms(3)), []);
    let unregistered = App {
        registration: nodeagent::app::Registration {
            enabled: false,
            ..app.registration.clone()
        },
        ..app
    };
    assert_eq!(check_against(&unregistered, &terms(5)), []);
}

fn terms(propagation_bound: u64) -> HostTerms {
    HostTerms {
        propagation_bound: Duration::from_secs(propagation_bound),
        reachable: true,
        host_address: None,
    }
}

#[test]
fn an_address_that_clients_may_not_reach_is_not_registered_by_default() {
    let address =
        |spec: &str| parse(&MINIMAL.replace("image:", &format!("{spec}, image:"))).unwrap();
    let unreachable = HostTerms {
        reachable: false,
        ..terms(5)
    };
    let silent = parse(MINIMAL).unwrap();
    assert_eq!(check_against(&silent, &terms(5)), []);
    let findings = check_against(&silent, &unreachable);
    assert_eq!(
        findings[0].to_string(),
        "spec.registration.address: required on this host: instance (only clients that are routed to the instance's address reach it, at least those on this host) or host (the host's address and a host port); instance is the default where the configuration says network.reachable = true"
    );
    let said = address("registration: {address: instance}");
    assert_eq!(check_against(&said, &unreachable), []);
}

#[test]
fn the_hosts_address_is_registered_only_where_it_is_known() {
    let unknown = terms(5);
    let known = HostTerms {
        host_address: Some("192.0.2.1".parse().unwrap()),
        ..unknown
    };
    let app = parse(&MINIMAL.replace("image:", "network: host, image:")).unwrap();
    assert_eq!(check_against(&app, &known), []);
    assert_eq!(
        check_against(&app, &unknown)[0].to_string(),
        "spec.registration.address: host is not allowed; allowed: only on a host whose address is known: there is no default route to take it from, set network.host_address in the agent's configuration"
    );
}

#[test]
fn a_revision_is_twelve_digits_that_can_be_stored() {
    let revision = revision(&parse(MINIMAL).unwrap(), "sha256:0");
    assert_eq!(revision.as_str().len(), 12);
    assert_eq!(Revision::from_stored(revision.as_str()), Some(revision));
    assert_eq!(Revision::from_stored("../../../etc"), None);
}

#[test]
fn the_revision_of_a_manifest_never_changes_between_versions_of_the_agent() {
    let app = parse(&full()).unwrap();
    assert_eq!(revision(&app, "sha256:0").as_str(), "3522f3e439fa");
    assert_eq!(manifest_hash(&app), "35af3765357b");
}

#[test]
fn the_revision_changes_with_every_field_that_makes_an_instance() {
    let text = full();
    let before = revision(&parse(&text).unwrap(), "sha256:0");
    for (from, to) in [
        ("name: web", "name: wob"),
        ("tier: front", "tier: back"),
        ("web:1", "web:2"),
        ("[/bin/httpd]", "[/bin/httpx]"),
        ("[-f, -p, \"8080\"]", "[-f, \"-p8080\"]"),
        ("workingDir: /srv", "workingDir: /"),
        ("\"1000:1000\"", "\"1000\""),
        ("value: b}", "value: c}"),
        ("- {name: EMPTY}", "- {name: FULL}"),
        ("containerPort: 9090", "containerPort: 9091"),
        ("cpu: 500m", "cpu: 501m"),
        ("memory: 128Mi", "memory: 129Mi"),
        ("pids: 256", "pids: 257"),
        ("path: /healthz", "path: /ready"),
        (
            "port: http\n      httpHeaders",
            "port: 9090\n      httpHeaders",
        ),
        ("X-Probe", "X-Prove"),
        ("initialDelaySeconds: 1", "initialDelaySeconds: 2"),
        ("periodSeconds: 2", "periodSeconds: 3"),
        ("timeoutSeconds: 3", "timeoutSeconds: 4"),
        ("failureThreshold: 4", "failureThreshold: 5"),
        ("log-shipper", "log-mover"),
        ("--quiet", "--loud"),
        ("value: info", "value: warn"),
        ("user: nobody", "user: daemon"),
        ("essential: false", "essential: true"),
        ("timeoutSeconds: 5", "timeoutSeconds: 6"),
        ("port: 11211", "port: 11212"),
        ("enabled: true", "enabled: false"),
        ("service: shop-web", "service: shop-web\n    address: host"),
        ("service: shop-web", "service: shop"),
        ("port: http\n    weight", "port: 9090\n    weight"),
        ("weight: 50", "weight: 51"),
        ("set: a", "set: b"),
        ("network: host", "reuse: {clean: [/tmp]}\n  network: host"),
        ("network: host", "network: routed"),
        (
            "terminationGracePeriodSeconds: 20",
            "terminationGracePeriodSeconds: 21",
        ),
    ] {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        let changed = parse(&text.replace(from, to)).unwrap();
        assert_ne!(revision(&changed, "sha256:0"), before, "{from} -> {to}");
    }
    assert_ne!(revision(&parse(&text).unwrap(), "sha256:1"), before);
}

#[test]
fn the_revision_changes_with_what_is_said_of_agents_and_signals_and_stays_with_their_defaults() {
    let manifest = |agent: &str, spec: &str| {
        let agents = format!(
            "agents: [{{name: a, command: [a]}}, {{name: b, command: [b]{agent}}}], {spec} image:"
        );
        revision(
            &parse(&MINIMAL.replace("image:", &agents)).unwrap(),
            "sha256:0",
        )
    };
    let before = manifest("", "");
    for agent in [
        ", dependsOn: [a]",
        ", restartPolicy: Never",
        ", signalDelivery: Process",
    ] {
        assert_eq!(manifest(agent, ""), before, "{agent}");
    }
    for agent in [
        ", dependsOn: []",
        ", restartPolicy: Always",
        ", restartPolicy: Always, maxRestarts: 2",
        ", exitCode: 3",
        ", workingDir: /srv",
        ", ulimits: {nofile: {soft: 5}}",
        ", nice: 5",
        ", oomScoreAdj: 5",
        ", stopSignal: INT",
        ", signalDelivery: Group",
        ", terminationGracePeriodSeconds: 5",
        ", readiness: {notificationFd: 3}",
        ", resources: {limits: {memory: 16Mi}}",
        ", resources: {}",
    ] {
        assert_ne!(manifest(agent, ""), before, "{agent}");
    }
    for spec in [
        "nice: 5,",
        "oomScoreAdj: 5,",
        "stopSignal: 2,",
        "signalDelivery: All,",
        "signals: [{from: HUP, to: TERM}],",
        "exitCodes: [{from: 143, to: 0}],",
    ] {
        assert_ne!(manifest("", spec), before, "{spec}");
    }
}

#[test]
fn an_agents_limits_lie_within_those_of_its_instance() {
    let with = |limits: &str| {
        let agents = format!(
            "resources: {{limits: {{memory: 64Mi, pids: 100}}}}, agents: [{{name: a, command: [/a], resources: {{limits: {{{limits}}}}}}}], image:"
        );
        parse(&MINIMAL.replace("image:", &agents))
    };
    let app = with("cpu: 250m, memory: 64Mi, pids: 100").unwrap();
    assert!(app.divides_cgroup());
    for (limits, said) in [
        ("memory: 65Mi", "spec.agents[0].resources.limits.memory"),
        ("memory: 1Mi", "spec.agents[0].resources.limits.memory"),
        ("cpu: much", "spec.agents[0].resources.limits.cpu"),
        ("pids: 101", "1 to 100, which is spec.resources.limits.pids"),
        ("pids: 0", "spec.agents[0].resources.limits.pids"),
    ] {
        let refused = with(limits).unwrap_err().to_string();
        assert!(refused.contains(said), "{limits}: {refused}");
    }
}

#[test]
fn the_revision_stays_with_spelling_and_pool_targets() {
    let text = full();
    let (before, hash) = {
        let app = parse(&text).unwrap();
        (revision(&app, "sha256:0"), manifest_hash(&app))
    };
    let spelling = parse(&format!(
        "# half a core\n{}",
        text.replace("cpu: 500m", "cpu: 0.5")
    ))
    .unwrap();
    assert_eq!(revision(&spelling, "sha256:0"), before);
    assert_eq!(manifest_hash(&spelling), hash);
    for (from, to) in [
        ("armed: 3", "armed: 4"),
        ("drainSeconds: 40", "drainSeconds: 41"),
        (
            "drainSeconds: 40",
            "drainSeconds: 40\n  restartPolicy: Never",
        ),
    ] {
        let target = parse(&text.replace(from, to)).unwrap();
        assert_eq!(revision(&target, "sha256:0"), before, "{to}");
        assert_ne!(manifest_hash(&target), hash, "{to}");
    }
}

#[test]
fn a_flood_of_mistakes_is_answered_with_the_first_fifty() {
    let labels: String = (0..8_000).map(|n| format!("    l{n}: '-'\n")).collect();
    let text = format!(
        "apiVersion: nodeagent/v1\nkind: App\nmetadata:\n  name: web\n  labels:\n{labels}spec: {{image: w, ports: [{{containerPort: 1}}]}}\n"
    );
    let refused = parse(&text).unwrap_err();
    assert_eq!(refused.findings.len(), 51);
    assert_eq!(
        refused.findings[50].to_string(),
        "there may be more mistakes; the first 50 are listed"
    );
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn arbitrary_yaml_like_text_never_panics(
        text in "([a-z]{1,4}|[-:&*!|>%@`{}\\[\\],#?'\"~ \n\t0-9<.]){0,80}"
    ) {
        let _ = parse(&text);
    }

    /// One cut, one splice: near to a real manifest, where the readers have most to do.
    #[test]
    fn a_damaged_manifest_never_panics(
        at in 0usize..1200,
        cut in 0usize..40,
        splice in "[-:&*!|{}\\[\\], \n\t0-9a-z~]{0,10}",
    ) {
        let mut bytes = full().into_bytes();
        let at = at.min(bytes.len());
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, splice.bytes());
        let text = String::from_utf8(bytes).unwrap();
        if let Ok(app) = parse(&text) {
            prop_assert_eq!(parse(&text).unwrap(), app);
        }
    }

    #[test]
    fn values_of_env_survive_and_never_collide(a in "[ -~]{0,12}", b in "[ -~]{0,12}") {
        let with = |a: &str, b: &str| {
            let quote = |s: &str| s.replace('\'', "''");
            parse(&MINIMAL.replace("image:", &format!(
                "env: [{{name: A, value: '{}'}}, {{name: B, value: '{}'}}], image:", quote(a), quote(b)
            ))).unwrap()
        };
        let app = with(&a, &b);
        prop_assert_eq!(&app.env, &[("A".to_owned(), a.clone()), ("B".to_owned(), b.clone())]);
        let swapped = with(&b, &a);
        prop_assert_eq!(revision(&app, "d") == revision(&swapped, "d"), a == b);
    }
}

#[test]
fn a_restart_policy_is_one_of_kubernetes_and_makes_no_other_instance() {
    let with =
        |policy: &str| MINIMAL.replace("image:", &format!("restartPolicy: {policy}, image:"));
    let always = parse(MINIMAL).unwrap();
    assert_eq!(parse(&with("Always")).unwrap(), always);
    let never = parse(&with("Never")).unwrap();
    assert_eq!(never.restart.as_str(), "Never");
    assert_eq!(revision(&never, "sha256:1"), revision(&always, "sha256:1"));
    assert_ne!(manifest_hash(&never), manifest_hash(&always));
    let refused = parse(&with("never")).unwrap_err();
    assert_eq!(
        refused.findings[0].to_string(),
        "line 1: spec.restartPolicy: \"never\" is not allowed; allowed: Always, OnFailure or Never"
    );
}
