use std::collections::BTreeMap;
use std::time::Duration;

use container_init::plan::{Log, Output, Strings};

use super::*;
use crate::app::{
    AgentResources, AgentRestart, Conduct, Look, NetworkMode, ProbeTiming, Registration, Resources,
    RestartPolicy, Rewrite, Scheme, SignalDelivery, Ulimit, Warm,
};

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn timing() -> ProbeTiming {
    ProbeTiming {
        initial_delay: Duration::from_secs(1),
        period: Duration::from_secs(2),
        timeout: Duration::from_millis(500),
        success_threshold: 1,
        failure_threshold: 3,
    }
}

fn app() -> App {
    App {
        name: "web".parse().unwrap(),
        labels: BTreeMap::new(),
        image: "127.0.0.1:5000/web:1".into(),
        command: vec![],
        args: vec![],
        env_from: vec![],
        env: vec![],
        working_dir: None,
        user: None,
        hostname: None,
        host_aliases: Vec::new(),
        dns: Default::default(),
        ports: vec![],
        resources: Resources {
            cpu_millis: None,
            memory_bytes: 1 << 29,
            pids: 1024,
        },
        security: Default::default(),
        ulimits: vec![],
        conduct: Default::default(),
        signals: vec![],
        exit_codes: vec![],
        startup: None,
        readiness: Readiness::None,
        liveness: None,
        agents: vec![],
        mounts: vec![],
        secret_files: vec![],
        restart: RestartPolicy::default(),
        clean: crate::app::Clean::Default,
        warm: Warm::default(),
        registration: Registration {
            enabled: false,
            address: None,
            service: "web".into(),
            port: 80,
            weight: 100,
            metadata: BTreeMap::new(),
        },
        network: NetworkMode::Routed,
        termination_grace: Duration::from_secs(30),
        drain: Duration::from_secs(30),
    }
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: texts(&["/entry"]),
        cmd: texts(&["serve"]),
        env: pairs(&[("PATH", "/bin"), ("LANG", "C")]),
        working_dir: Some("/srv".into()),
        user: None,
        stop_signal: None,
    }
}

fn proxy() -> Agent {
    Agent {
        name: "proxy".into(),
        command: texts(&["/proxy", "$(MODE)"]),
        env: pairs(&[("MODE", "fast"), ("LANG", "de")]),
        user: None,
        working_dir: None,
        ulimits: vec![],
        conduct: Default::default(),
        termination_grace: None,
        after: vec![],
        readiness: Readiness::None,
        essential: Essential::No,
        restart: AgentRestart {
            policy: RestartPolicy::Always,
            max: None,
        },
        exit_code: None,
        resources: None,
    }
}

fn id() -> ContainerId {
    "web-0.g7".parse().unwrap()
}

fn nobody_asks(_: &User) -> Result<ProcessIds, String> {
    Err("not to be asked".into())
}

fn of_host(basics: &[(String, String)]) -> OfHost<'_> {
    OfHost {
        basics,
        logs: LogLimits {
            max_bytes: 1 << 20,
            max_files: 3,
        },
    }
}

fn compiled(app: &App, image: &ImageConfig) -> Vec<u8> {
    compile(app, image, &id(), &of_host(&[]), &nobody_asks).unwrap()
}

fn strings(list: Strings<'_>) -> Vec<String> {
    list.iter()
        .map(|text| text.to_str().unwrap().to_owned())
        .collect()
}

/// What `read` sees of the app's process in the plan.
fn of_app<T>(app: &App, image: &ImageConfig, read: impl Fn(Process<'_>) -> T) -> T {
    let file = compiled(app, image);
    let plan = Plan::decode(&file).unwrap();
    let last = plan.processes.iter().last().unwrap();
    assert_eq!((last.name, last.kind), (APP_PROCESS, ProcessKind::App));
    read(last)
}

#[test]
fn the_plan_is_the_containers_and_holds_agents_before_the_app() {
    let mut app = app();
    app.agents = vec![proxy()];
    let file = compiled(&app, &image());
    let plan = Plan::decode(&file).unwrap();
    assert_eq!(
        (
            plan.container_id,
            plan.create_generation,
            plan.stop_grace_ms
        ),
        ("web-0.g7", 7, 30_000)
    );
    let names: Vec<&str> = plan.processes.iter().map(|process| process.name).collect();
    assert_eq!(names, ["proxy", "app"]);
    let agent = plan.processes.iter().next().unwrap();
    assert_eq!(strings(agent.argv), ["/proxy", "fast"]);
    assert_eq!(strings(agent.env), ["PATH=/bin", "LANG=de", "MODE=fast"]);
    assert_eq!(agent.essential, plan::Essential::No);
    assert_eq!((agent.stdout, agent.stderr), (Output::Log, Output::Log));
    let log = Log {
        path: c"/.nodeagent/log/proxy.log",
        max_bytes: 1 << 20,
        max_files: 3,
        // The container's own streams lead to /dev/null.
        pass_through: false,
    };
    assert_eq!(agent.log, Some(log));
    assert_eq!(agent.capabilities, 0xa80425fb, "Docker's default set");
}

#[test]
fn command_and_args_replace_entrypoint_and_cmd_as_in_kubernetes() {
    for (command, args, expected) in [
        (&[][..], &[][..], &["/entry", "serve"][..]),
        (&["/mine"], &[], &["/mine"]),
        (&[], &["other"], &["/entry", "other"]),
        (&["/mine"], &["other"], &["/mine", "other"]),
    ] {
        let app = App {
            command: texts(command),
            args: texts(args),
            ..app()
        };
        let argv = of_app(&app, &image(), |process| strings(process.argv));
        assert_eq!(argv, expected, "command {command:?} args {args:?}");
    }
    let empty = ImageConfig::default();
    assert_eq!(
        compile(&app(), &empty, &id(), &of_host(&[]), &nobody_asks)
            .unwrap_err()
            .to_string(),
        "app web has no command, and its image 127.0.0.1:5000/web:1 has neither entrypoint nor cmd"
    );
}

#[test]
fn the_manifest_wins_over_the_basics_and_those_over_the_image() {
    let app = App {
        env: pairs(&[("LANG", "app"), ("URL", "http://$(LANG)")]),
        ..app()
    };
    let basics = pairs(&[("LANG", "basics"), ("HOSTNAME", "web-0")]);
    let file = compile(&app, &image(), &id(), &of_host(&basics), &nobody_asks).unwrap();
    let plan = Plan::decode(&file).unwrap();
    let env = strings(plan.processes.iter().last().unwrap().env);
    assert_eq!(
        env,
        ["PATH=/bin", "LANG=app", "HOSTNAME=web-0", "URL=http://app"]
    );
    let bare = ImageConfig {
        env: vec![],
        ..image()
    };
    let env = of_app(&tests::app(), &bare, |process| strings(process.env));
    assert_eq!(env, [format!("PATH={DEFAULT_PATH}")]);
}

#[test]
fn the_working_directory_is_the_manifests_or_the_images_or_the_root() {
    let cwd = |app: &App, image: &ImageConfig| {
        of_app(app, image, |process| {
            process.cwd.to_str().unwrap().to_owned()
        })
    };
    let own = App {
        working_dir: Some("/data".into()),
        ..app()
    };
    assert_eq!(cwd(&own, &image()), "/data");
    assert_eq!(cwd(&app(), &image()), "/srv");
    let bare = ImageConfig {
        working_dir: None,
        ..image()
    };
    assert_eq!(cwd(&app(), &bare), "/");
}

#[test]
fn users_are_resolved_unless_they_are_numbers_throughout() {
    let resolve = |user: &User| match user.user.as_str() {
        "www" | "1000" => Ok(ProcessIds {
            uid: 33,
            gid: 34,
            groups: vec![35],
        }),
        _ => Err("is not in the image's /etc/passwd".to_owned()),
    };
    let ids = |user: Option<&str>| {
        let image = ImageConfig {
            user: user.map(str::to_owned),
            ..image()
        };
        let file = compile(&app(), &image, &id(), &of_host(&[]), &resolve)?;
        let plan = Plan::decode(&file).unwrap();
        let process = plan.processes.iter().last().unwrap();
        Ok::<_, PlanError>((
            process.uid,
            process.gid,
            process.groups.iter().collect::<Vec<_>>(),
        ))
    };
    assert_eq!(ids(None), Ok((0, 0, vec![])));
    assert_eq!(ids(Some("1000:1001")), Ok((1000, 1001, vec![])));
    assert_eq!(
        ids(Some("1000")),
        Ok((33, 34, vec![35])),
        "its group is passwd's"
    );
    assert_eq!(ids(Some("www")), Ok((33, 34, vec![35])));
    assert_eq!(
        ids(Some("ghost:staff")).unwrap_err().to_string(),
        "user \"ghost:staff\" of app: is not in the image's /etc/passwd"
    );
}

#[test]
fn agents_run_as_the_apps_user_unless_they_have_their_own() {
    let user = |user: &str| User {
        user: user.into(),
        group: Some("5".into()),
    };
    let own = Agent {
        name: "own".into(),
        user: Some(user("4")),
        ..proxy()
    };
    let app = App {
        user: Some(user("3")),
        agents: vec![proxy(), own],
        ..app()
    };
    let file = compiled(&app, &image());
    let uids: Vec<u32> = Plan::decode(&file)
        .unwrap()
        .processes
        .iter()
        .map(|process| process.uid)
        .collect();
    assert_eq!(uids, [3, 4, 3]);
}

#[test]
fn who_probes_what() {
    let probed = |look: Look| {
        Readiness::Probe(crate::app::Probe {
            look,
            timing: timing(),
        })
    };
    let tcp = probed(Look::Tcp {
        port: 80,
        host: None,
    });
    let http = probed(Look::Http {
        port: 80,
        host: None,
        scheme: Scheme::Http,
        path: "/".into(),
        headers: vec![],
    });
    let exec = probed(Look::Exec {
        command: texts(&["/ready", "$(MODE)"]),
    });
    let notify = Readiness::Notify {
        timeout: Duration::from_secs(9),
    };
    let said = |readiness: &Readiness| {
        let app = App {
            readiness: readiness.clone(),
            env: pairs(&[("MODE", "x")]),
            ..app()
        };
        of_app(&app, &image(), |process| match process.readiness {
            plan::Readiness::Exec { argv, .. } => format!("exec {}", strings(argv).join(" ")),
            other => format!("{other:?}"),
        })
    };
    assert_eq!(said(&tcp), "External");
    assert_eq!(said(&http), "External");
    assert_eq!(said(&exec), "exec /ready x");
    assert_eq!(said(&notify), "Notify { timeout_ms: 9000 }");
    assert_eq!(said(&Readiness::None), "None");

    let with_agent = |readiness: Readiness| App {
        agents: vec![Agent {
            readiness,
            ..proxy()
        }],
        ..app()
    };
    let file = compiled(&with_agent(tcp), &image());
    assert_eq!(
        Plan::decode(&file)
            .unwrap()
            .processes
            .iter()
            .next()
            .unwrap()
            .readiness,
        plan::Readiness::TcpLoopback {
            port: 80,
            period_ms: 2000,
            timeout_ms: 500,
            deadline_ms: 7000
        }
    );
    assert_eq!(
        compile(
            &with_agent(http),
            &image(),
            &id(),
            &of_host(&[]),
            &nobody_asks
        ),
        Err(PlanError::AgentReadiness {
            agent: "proxy".into()
        })
    );
}

#[test]
fn the_stop_signal_is_the_images_or_term() {
    assert_eq!(of_app(&app(), &image(), |process| process.stop_signal), 15);
    let quit = ImageConfig {
        stop_signal: Some("SIGQUIT".into()),
        ..image()
    };
    assert_eq!(of_app(&app(), &quit, |process| process.stop_signal), 3);
    let odd = ImageConfig {
        stop_signal: Some("SIGODD".into()),
        ..image()
    };
    assert_eq!(
        compile(&app(), &odd, &id(), &of_host(&[]), &nobody_asks)
            .unwrap_err()
            .to_string(),
        "the image's StopSignal \"SIGODD\" is no signal: a name like SIGTERM or a number 1 to 64 is allowed"
    );
}

#[test]
fn agents_stand_behind_those_that_they_wait_for() {
    let named = |name: &str, after: &[usize]| Agent {
        name: name.into(),
        after: after.to_vec(),
        ..proxy()
    };
    let app = App {
        agents: vec![
            named("shipper", &[1, 2]),
            named("cache", &[2]),
            named("config", &[]),
            named("clock", &[]),
        ],
        ..app()
    };
    let file = compiled(&app, &image());
    let plan = Plan::decode(&file).unwrap();
    let order: Vec<(&str, u16)> = plan.processes.iter().map(|p| (p.name, p.after)).collect();
    assert_eq!(
        order,
        [
            ("config", 0),
            ("cache", 0b1),
            ("shipper", 0b11),
            ("clock", 0),
            (APP_PROCESS, 0),
        ]
    );
}

#[test]
fn with_limits_of_one_agent_every_process_has_a_cgroup_of_its_own() {
    let limits = |resources| {
        let agent = Agent {
            resources,
            ..proxy()
        };
        let app = App {
            agents: vec![agent],
            ..app()
        };
        let file = compiled(&app, &image());
        let plan = Plan::decode(&file).unwrap();
        let limits = plan.processes.iter().map(|process| process.limits);
        limits.collect::<Vec<_>>()
    };
    assert_eq!(limits(None), [None, None]);
    let own = AgentResources {
        cpu_millis: Some(250),
        memory_bytes: Some(64 << 20),
        pids: None,
    };
    let of = |memory_bytes, cpu_quota_us| {
        Some(plan::Limits {
            memory_bytes,
            cpu_quota_us,
            pids: 0,
        })
    };
    assert_eq!(limits(Some(own)), [of(64 << 20, 25_000), of(0, 0)]);
}

#[test]
fn what_the_manifest_says_of_a_process_is_in_the_plan() {
    let limit = |name, resource, hard| Ulimit {
        name,
        resource,
        soft: 1,
        hard,
    };
    let agent = Agent {
        working_dir: Some("/cache".into()),
        ulimits: vec![limit("nofile", 7, 20)],
        conduct: Conduct {
            nice: Some(-5),
            oom_score_adj: Some(-300),
            stop_signal: Some(3),
            delivery: SignalDelivery::Group,
        },
        termination_grace: Some(Duration::from_secs(2)),
        readiness: Readiness::NotificationFd {
            fd: 4,
            timeout: Duration::from_secs(9),
        },
        essential: Essential::Yes,
        restart: AgentRestart {
            policy: RestartPolicy::OnFailure,
            max: Some(3),
        },
        exit_code: Some(70),
        ..proxy()
    };
    let app = App {
        ulimits: vec![limit("core", 4, 10), limit("nofile", 7, 10)],
        conduct: Conduct {
            nice: Some(5),
            oom_score_adj: Some(500),
            stop_signal: Some(12),
            delivery: SignalDelivery::All,
        },
        signals: vec![Rewrite { from: 1, to: 0 }],
        exit_codes: vec![Rewrite { from: 143, to: 0 }],
        agents: vec![agent],
        ..app()
    };
    let image = ImageConfig {
        stop_signal: Some("SIGQUIT".into()),
        ..image()
    };
    let file = compiled(&app, &image);
    let plan = Plan::decode(&file).unwrap();
    let pair = |rewrite: plan::Rewrite| (rewrite.from, rewrite.to);
    assert_eq!(plan.signals.iter().map(pair).collect::<Vec<_>>(), [(1, 0)]);
    assert_eq!(
        plan.exit_codes.iter().map(pair).collect::<Vec<_>>(),
        [(143, 0)]
    );
    let both: Vec<Process<'_>> = plan.processes.iter().collect();
    let [cache, app] = both.as_slice() else {
        panic!("{both:?}")
    };
    assert_eq!(cache.cwd.to_str(), Ok("/cache"));
    let limits = |p: &Process<'_>| -> Vec<(u32, u64)> {
        p.rlimits.iter().map(|l| (l.resource, l.hard)).collect()
    };
    assert_eq!(limits(cache), [(4, 10), (7, 20)]);
    assert_eq!(limits(app), [(4, 10), (7, 10)]);
    assert_eq!(
        (cache.nice, cache.oom_score_adj, cache.stop_signal),
        (Some(-5), Some(-300), 3)
    );
    assert_eq!(
        (cache.stop_grace_ms, cache.delivery, cache.exit_code),
        (2000, Delivery::Group, Some(70))
    );
    assert_eq!(
        (cache.restart.policy, cache.restart.max),
        (plan::RestartPolicy::OnFailure, 3)
    );
    assert_eq!(
        cache.readiness,
        plan::Readiness::NewlineFd {
            fd: 4,
            timeout_ms: 9000
        }
    );
    assert_eq!(
        (app.nice, app.oom_score_adj, app.stop_signal, app.delivery),
        (Some(5), Some(500), 12, Delivery::All)
    );
}

#[test]
fn what_init_would_refuse_or_cut_off_is_refused_here() {
    let nul = App {
        env: pairs(&[("A", "x\0y")]),
        ..app()
    };
    assert_eq!(
        compile(&nul, &image(), &id(), &of_host(&[]), &nobody_asks)
            .unwrap_err()
            .to_string(),
        "the environment of app has a NUL character: \"A=x\\0y\""
    );
    let long = App {
        env: vec![("A".into(), "x".repeat(MAX_PLAN))],
        ..app()
    };
    assert_eq!(
        compile(&long, &image(), &id(), &of_host(&[]), &nobody_asks),
        Err(PlanError::TooLarge { container: id() })
    );
    let relative = App {
        working_dir: Some("data".into()),
        ..app()
    };
    assert_eq!(
        compile(&relative, &image(), &id(), &of_host(&[]), &nobody_asks),
        Err(PlanError::Invalid {
            container: id(),
            source: Malformed::Invalid("working directory")
        })
    );
}

#[test]
fn commands_that_look_at_the_app_in_service_are_in_the_plan() {
    let command = |words: &[&str], success_threshold| AppProbe {
        look: Look::Exec {
            command: texts(words),
        },
        timing: ProbeTiming {
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            success_threshold,
            failure_threshold: 3,
        },
    };
    let said = |app: &App| {
        let file = compiled(app, &image());
        let plan = Plan::decode(&file).unwrap();
        let app = plan.processes.iter().last().unwrap();
        let waits = matches!(app.readiness, plan::Readiness::Exec { .. });
        let looks = [plan.looks.readiness, plan.looks.liveness].map(strings);
        (waits, looks)
    };
    let vital = |probe| {
        Some(VitalProbe {
            probe,
            termination_grace: None,
        })
    };
    assert_eq!(said(&app()), (false, [vec![], vec![]]));
    let mut app = App {
        readiness: Readiness::Probe(command(&["/ready", "$(MODE)"], 1)),
        liveness: vital(command(&["/alive"], 1)),
        env: pairs(&[("MODE", "x")]),
        ..app()
    };
    let looks = [texts(&["/ready", "x"]), texts(&["/alive"])];
    assert_eq!(
        said(&app),
        (true, looks.clone()),
        "init waits for its first pass"
    );
    app.readiness = Readiness::Probe(command(&["/ready", "$(MODE)"], 2));
    assert_eq!(said(&app), (false, looks), "the agent counts");
}

#[test]
fn what_an_app_leaves_is_in_its_plan_and_no_volume_or_port_of_others() {
    use crate::app::{Access, Clean, Port, Protocol, Volume, VolumeMount};
    let port = |protocol, container_port| Port {
        name: None,
        container_port,
        protocol,
        host_port: None,
        host_ip: None,
    };
    let said = |app: &App| {
        of_app(app, &image(), |process| {
            let ports: Vec<u16> = process.ports.iter().collect();
            (strings(process.clean), ports)
        })
    };
    let mut app = App {
        ports: vec![port(Protocol::Tcp, 8080), port(Protocol::Udp, 53)],
        agents: vec![proxy()],
        ..app()
    };
    let all = texts(&["/tmp", "/dev/shm", "/proc/sysvipc"]);
    assert_eq!(said(&app), (all, vec![8080]));
    app.security.read_only_root = true;
    let without_tmp = texts(&["/dev/shm", "/proc/sysvipc"]);
    assert_eq!(said(&app).0, without_tmp, "nobody can write it");
    app.security.read_only_root = false;
    app.mounts.push(VolumeMount {
        name: "scratch".into(),
        volume: Volume::EmptyDir,
        path: "/tmp".into(),
        access: Access::ReadWrite,
    });
    assert_eq!(said(&app).0, without_tmp, "a volume is the user's");
    app.clean = Clean::Paths(texts(&["/tmp"]));
    assert_eq!(said(&app).0, texts(&["/tmp"]), "unless it is named");
    app.network = NetworkMode::Host;
    assert_eq!(said(&app).1, [0; 0], "others may listen there");
    let file = compiled(&app, &image());
    let plan = Plan::decode(&file).unwrap();
    let agent = plan.processes.iter().next().unwrap();
    assert_eq!(
        strings(agent.clean),
        [""; 0],
        "it is beside an app that goes on"
    );
}
