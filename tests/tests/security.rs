//! What the processes of an app may do, read inside of real containers, and what a host refuses.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::{Manifest, TestHost};
use serde_json::{Value, json};

const CONFIG: &str = "[discovery.file]\npropagation_bound = \"100ms\"\n";
/// Docker's standard capabilities, and what container-init needs of its own (capabilities(7)).
const STANDARD: u64 = 0xa804_25fb;
const INIT: u64 = 0x1ea;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;

/// Tells what it is and what it may, as `key=value` lines, and serves that from memory.
const SCRIPT: &str = "{ cat /proc/self/status; echo init; cat /proc/1/status; echo end; \
    echo nofile=$(ulimit -Sn)/$(ulimit -Hn); echo core=$(ulimit -Sc)/$(ulimit -Hc); \
    echo fsize=$(ulimit -Sf)/$(ulimit -Hf); \
    echo ports=$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start); \
    echo shm=$(cat /proc/sys/kernel/shm_rmid_forced); echo sem=$(cat /proc/sys/kernel/sem); \
    echo www=$(ls -lnd /www); echo disk=$(ls -lnd /disk); \
    echo oom=$(cat /proc/1/oom_score_adj)/$(cat /proc/self/oom_score_adj); \
    echo root=$(touch /x && echo writable); echo dir=$(mkdir /tmp/d && echo made); \
    } >/www/index.html 2>/dev/null; exec httpd -f -p 8080 -h /www";

/// What the app told: a value for each key; those of container-init's status as `init.KEY`.
struct Told(BTreeMap<String, String>);

impl Told {
    fn by(host: &TestHost, app: &str) -> Result<Self> {
        let task = host.cli().activate(app, 1, app)?;
        let page = host.fetch(&task.instances[0])?.text();
        let mut told = BTreeMap::new();
        let mut prefix = "";
        for line in page.lines() {
            match line {
                "init" => prefix = "init.",
                "end" => prefix = "",
                line => {
                    if let Some((key, value)) = line.split_once([':', '=']) {
                        told.insert(format!("{prefix}{key}"), value.trim().to_owned());
                    }
                }
            }
        }
        Ok(Self(told))
    }

    fn get(&self, key: &str) -> Result<&str> {
        let value = self.0.get(key).map(String::as_str);
        value.with_context(|| format!("no {key} in {:?}", self.0))
    }

    fn mask(&self, key: &str) -> Result<u64> {
        let text = self.get(key)?;
        u64::from_str_radix(text, 16).with_context(|| format!("{key} is {text:?}"))
    }

    /// Every id of a line of `/proc/PID/status`, or every word of another.
    fn words(&self, key: &str) -> Result<Vec<&str>> {
        Ok(self.get(key)?.split_whitespace().collect())
    }
}

fn app(name: &str, security: Value) -> Manifest {
    Manifest::script(name, SCRIPT)
        .ready_by_page(10)
        .with("securityContext", security)
        .with(
            "volumes",
            json!([{ "name": "www", "emptyDir": { "medium": "Memory" } }, { "name": "disk", "emptyDir": {} }]),
        )
        .with(
            "volumeMounts",
            json!([{ "name": "www", "mountPath": "/www" }, { "name": "disk", "mountPath": "/disk" }]),
        )
}

/// A host with this `[security]`, and profiles below its ground.
fn host(security: &str) -> Result<TestHost> {
    let mut host = TestHost::without_agent(CONFIG)?;
    let profiles = host.ground.path("seccomp");
    fs::create_dir(&profiles)?;
    let config = format!(
        "[security]\nseccomp_profiles = \"{}\"\n{security}",
        profiles.display()
    );
    host.start_beside(&config)?;
    Ok(host)
}

#[test]
fn processes_have_what_the_manifest_says_and_nothing_else() -> Result<()> {
    let host = host("allowed_sysctls = [\"kernel.sem\"]\n")?;
    let manifest = app(
        "web",
        json!({
            "runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true,
            "supplementalGroups": [4000], "fsGroup": 5000,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
            "sysctls": [
                { "name": "net.ipv4.ip_unprivileged_port_start", "value": "81" },
                { "name": "kernel.shm_rmid_forced", "value": "1" },
                { "name": "kernel.sem", "value": "100 200 10 20" },
            ],
        }),
    )
    .with(
        "ulimits",
        json!({
            "nofile": { "soft": 500, "hard": 600 },
            "core": { "soft": 0 },
            "fsize": { "soft": 1_048_576 },
        }),
    );
    host.apply(&manifest)?;
    let told = Told::by(&host, "web")?;
    assert_eq!(told.words("Uid")?, ["1000"; 4]);
    assert_eq!(told.words("Gid")?, ["1000"; 4]);
    assert_eq!(told.words("Groups")?, ["4000", "5000"]);
    assert_eq!(told.mask("CapBnd")?, NET_BIND_SERVICE);
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(told.mask(set)?, 0, "{set}");
    }
    assert_eq!(told.mask("init.CapBnd")?, NET_BIND_SERVICE | INIT);
    assert_eq!((told.get("NoNewPrivs")?, told.get("Seccomp")?), ("1", "2"));
    assert_eq!(told.get("nofile")?, "500/600");
    assert_eq!(told.get("core")?, "0/0");
    // In blocks of 512 bytes; container-init has no such limit, or its log would end it.
    assert_eq!(told.get("fsize")?, "2048/2048");
    assert_eq!((told.get("ports")?, told.get("shm")?), ("81", "1"));
    assert_eq!(told.words("sem")?, ["100", "200", "10", "20"]);
    assert_eq!(told.get("root")?, "");
    for directory in ["www", "disk"] {
        let listed = told.words(directory)?;
        assert_eq!(listed[3], "5000", "{directory}: {listed:?}");
        ensure!(listed[0].contains("rws"), "{directory}: {listed:?}");
    }
    host.remove_app("web")
}

#[test]
fn a_container_is_killed_for_memory_no_later_and_no_sooner_for_what_containerd_is_worth()
-> Result<()> {
    let host = host("")?;
    let pid = host.containerd.pid().context("containerd runs")?;
    // Its unit lowers it, which takes a capability that not every machine has.
    fs::write(format!("/proc/{pid}/oom_score_adj"), "300")?;
    host.apply(&app("web", json!({})))?;
    assert_eq!(Told::by(&host, "web")?.get("oom")?, "0/0");
    host.apply(&app("last", json!({})).with("oomScoreAdj", 700.into()))?;
    assert_eq!(Told::by(&host, "last")?.get("oom")?, "0/700");
    host.remove_app_only("web")?;
    host.remove_app("last")
}

#[test]
fn an_app_gets_more_where_the_host_allows_it() -> Result<()> {
    let host = host("allowed_capabilities = [\"NET_ADMIN\"]\n")?;
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }],
    });
    let file = host.ground.path("seccomp/no-mkdir.json");
    fs::write(&file, profile.to_string())?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;

    host.apply(&app("plain", json!({})))?;
    let plain = Told::by(&host, "plain")?;
    assert_eq!(plain.mask("CapEff")?, STANDARD);
    assert_eq!(plain.mask("CapBnd")?, STANDARD);
    assert_eq!(
        (plain.get("NoNewPrivs")?, plain.get("Seccomp")?),
        ("1", "2")
    );
    assert_eq!(
        (plain.get("root")?, plain.get("dir")?),
        ("writable", "made")
    );
    host.remove_app_only("plain")?;

    let more = json!({
        "allowPrivilegeEscalation": true,
        "capabilities": { "add": ["NET_ADMIN"], "drop": ["MKNOD"] },
        "seccompProfile": { "type": "Unconfined" },
    });
    host.apply(&app("more", more))?;
    let more = Told::by(&host, "more")?;
    assert_eq!(more.mask("CapEff")?, STANDARD & !(1 << 27) | NET_ADMIN);
    assert_eq!((more.get("NoNewPrivs")?, more.get("Seccomp")?), ("0", "0"));
    host.remove_app_only("more")?;

    let own = json!({
        "seccompProfile": { "type": "Localhost", "localhostProfile": "no-mkdir.json" },
    });
    host.apply(&app("own", own))?;
    let own = Told::by(&host, "own")?;
    assert_eq!((own.get("Seccomp")?, own.get("dir")?), ("2", ""));
    host.remove_app("own")
}

#[test]
fn what_the_host_does_not_allow_is_refused_and_named() -> Result<()> {
    let host = host("allowed_capabilities = [\"SYS_TIME\"]\n")?;
    for (name, content, mode) in [
        (
            "open.json",
            "{\"defaultAction\": \"SCMP_ACT_ALLOW\"}",
            0o666,
        ),
        ("broken.json", "{\"defaultAction\": 7}", 0o644),
    ] {
        let file = host.ground.path("seccomp").join(name);
        fs::write(&file, content)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
    }
    let profile =
        |name: &str| json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": name } });
    let more_than_any: u64 = fs::read_to_string("/proc/sys/fs/nr_open")?.trim().parse()?;
    let nofile = json!({ "nofile": { "soft": 1, "hard": more_than_any + 1 } });
    let mut limited = app("web", json!({}));
    limited = limited.with("ulimits", nofile);
    for (manifest, field, expected) in [
        (
            app("web", json!({ "capabilities": { "add": ["NET_ADMIN"] } })),
            "spec.securityContext.capabilities.add",
            "and SYS_TIME (security.allowed_capabilities)",
        ),
        (
            app(
                "web",
                json!({ "sysctls": [{ "name": "net.core.somaxconn", "value": "1" }] }),
            ),
            "spec.securityContext.sysctls[0].name",
            "what security.allowed_sysctls names: nothing",
        ),
        (
            app("web", json!({ "runAsNonRoot": true })),
            "spec.securityContext.runAsNonRoot",
            "an image that does not run as root",
        ),
        (
            limited,
            "spec.ulimits.nofile.hard",
            "as high as containers get on this host",
        ),
        (
            app("web", profile("absent.json")),
            "spec.securityContext.seccompProfile.localhostProfile",
            "No such file",
        ),
        (
            app("web", profile("open.json")),
            "spec.securityContext.seccompProfile.localhostProfile",
            "has owner 0 and mode 0666",
        ),
        (
            app("web", profile("broken.json")),
            "spec.securityContext.seccompProfile.localhostProfile",
            "is no seccomp profile",
        ),
    ] {
        let file = host.file("refused.yaml", &manifest.text())?;
        let answer = host
            .cli()
            .json(&["app", "apply", "-f", &file.to_string_lossy()])?;
        let problem = answer.problem(answer.code)?;
        let said = problem
            .findings
            .iter()
            .any(|finding| finding.field == field && finding.allowed.contains(expected));
        ensure!(
            answer.code != 0 && said,
            "wanted {field}: {expected:?}, got {problem:?}"
        );
    }
    assert_eq!(host.cli().status()?.pools, Vec::new());
    host.assert_nothing_left()
}
