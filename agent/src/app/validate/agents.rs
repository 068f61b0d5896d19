//! Rules for `spec.agents`: what each is, whom it waits for, and what its end means.

use std::collections::BTreeSet;
use std::time::Duration;

use super::conduct::{Given, conduct};
use super::process::{arguments, environment, user};
use super::{names, probe, quantities, restart, security, working_dir};
use crate::app::conduct::start_order;
use crate::app::manifest;
use crate::app::{Agent, AgentResources, AgentRestart, Essential, Port, Resources, RestartPolicy};
use crate::document::{Findings, shown};

/// A plan of container-init holds the app and as many.
const MAX_AGENTS: usize = container_init::plan::MAX_PROCESSES - 1;
const MAX_RESTARTS: u32 = 1_000_000;

/// Limits of a cgroup of its own, none of them above those of the instance, `all`.
fn own_resources(
    field: &str,
    resources: manifest::Resources,
    all: &Resources,
    findings: &mut Findings,
) -> AgentResources {
    let limits = resources.limits.unwrap_or_default();
    let (cpu_millis, memory_bytes) = quantities(field, &limits, findings);
    if let Some(pids) = limits.pids
        && !(1..=all.pids).contains(&pids)
    {
        findings.wrong(
            &format!("{field}.pids"),
            pids.to_string(),
            format!("1 to {}, which is spec.resources.limits.pids", all.pids),
        );
    }
    if let Some(bytes) = memory_bytes.filter(|bytes| *bytes > all.memory_bytes) {
        findings.wrong(
            &format!("{field}.memory"),
            format!("{bytes} bytes"),
            format!(
                "at most {} bytes, which is spec.resources.limits.memory",
                all.memory_bytes
            ),
        );
    }
    AgentResources {
        cpu_millis,
        memory_bytes,
        pids: limits.pids,
    }
}

/// `spec.agents`, as written; `grace` and `all` are the app's.
pub(super) fn agents(
    list: Vec<manifest::Agent>,
    ports: &[Port],
    grace: Duration,
    all: &Resources,
    findings: &mut Findings,
) -> Vec<Agent> {
    if list.len() > MAX_AGENTS {
        findings.wrong(
            "spec.agents",
            format!("a list of {}", list.len()),
            format!("at most {MAX_AGENTS} agents"),
        );
    }
    let after = dependencies(&list, findings);
    let mut seen = BTreeSet::new();
    let mut agents = Vec::new();
    for ((index, given), after) in list.into_iter().enumerate().zip(after) {
        let field = format!("spec.agents[{index}]");
        let at = format!("{field}.name");
        match &given.name {
            None => findings.note(&at, format!("required: {}", names::AGENT_NAME)),
            Some(name) if !names::is_agent_name(name) => {
                findings.wrong(&at, shown(name), names::AGENT_NAME);
            }
            Some(name) if !seen.insert(name.clone()) => {
                findings.wrong(&at, shown(name), "a name that no other agent has");
            }
            Some(_) => {}
        }
        agents.push(agent(&field, given, after, ports, grace, all, findings));
    }
    agents
}

fn agent(
    field: &str,
    given: manifest::Agent,
    after: Vec<usize>,
    ports: &[Port],
    grace: Duration,
    all: &Resources,
    findings: &mut Findings,
) -> Agent {
    let at = |name: &str| format!("{field}.{name}");
    let command = given.command.unwrap_or_default();
    if command.first().is_none_or(String::is_empty) {
        findings.note(
            &at("command"),
            "required: the program and its arguments, as a list",
        );
    }
    arguments(&at("command"), &command, findings);
    working_dir(&at("workingDir"), given.working_dir.as_deref(), findings);
    let essential = match given.essential {
        None | Some(true) => Essential::Yes,
        Some(false) => Essential::No,
    };
    let policy = restart(
        &at("restartPolicy"),
        given.restart_policy.as_deref(),
        findings,
    );
    let policy = policy.unwrap_or(match essential {
        Essential::Yes => RestartPolicy::Never,
        Essential::No => RestartPolicy::Always,
    });
    if let Some(max) = given.max_restarts {
        restarts(&at("maxRestarts"), max, policy, findings);
    }
    if let Some(code) = given.exit_code
        && essential == Essential::No
    {
        findings.wrong(
            &at("exitCode"),
            code.to_string(),
            "nothing with essential: false: the end of this agent does not end the container",
        );
    }
    let termination_grace = given
        .termination_grace_period_seconds
        .map(|seconds| Duration::from_secs(seconds.into()));
    if let Some(own) = termination_grace.filter(|own| *own > grace) {
        findings.wrong(
            &at("terminationGracePeriodSeconds"),
            own.as_secs().to_string(),
            format!(
                "at most {}, which is spec.terminationGracePeriodSeconds, the budget of the whole stop",
                grace.as_secs()
            ),
        );
    }
    Agent {
        name: given.name.unwrap_or_default(),
        env: environment(&at("env"), given.env, findings),
        user: user(&at("user"), given.user, findings),
        ulimits: security::ulimits(&at("ulimits"), given.ulimits.unwrap_or_default(), findings),
        conduct: conduct(
            field,
            Given {
                nice: given.nice,
                oom_score_adj: given.oom_score_adj,
                stop_signal: given.stop_signal,
                delivery: given.signal_delivery,
            },
            findings,
        ),
        readiness: probe::readiness(
            &at("readiness"),
            given.readiness,
            ports,
            probe::Whose::Agent,
            findings,
        ),
        working_dir: given.working_dir,
        termination_grace,
        after,
        essential,
        restart: AgentRestart {
            policy,
            max: given.max_restarts,
        },
        exit_code: given.exit_code,
        resources: given
            .resources
            .map(|resources| own_resources(&at("resources.limits"), resources, all, findings)),
        command,
    }
}

fn restarts(field: &str, max: u32, policy: RestartPolicy, findings: &mut Findings) {
    if policy == RestartPolicy::Never {
        let why = "nothing with restartPolicy Never, which is the default of an essential agent";
        findings.wrong(field, max.to_string(), why);
    } else if !(1..=MAX_RESTARTS).contains(&max) {
        findings.wrong(field, max.to_string(), format!("1 to {MAX_RESTARTS}"));
    }
}

/// Whom each agent waits for, by index: `dependsOn`, else the one before it.
fn dependencies(list: &[manifest::Agent], findings: &mut Findings) -> Vec<Vec<usize>> {
    let before = |index: usize| index.checked_sub(1).into_iter().collect();
    let mut waits: Vec<Vec<usize>> = Vec::with_capacity(list.len());
    for (index, agent) in list.iter().enumerate() {
        waits.push(match &agent.depends_on {
            None => before(index),
            Some(named) => {
                let field = format!("spec.agents[{index}].dependsOn");
                resolved(&field, index, named, list, findings)
            }
        });
    }
    let borrowed: Vec<&[usize]> = waits.iter().map(Vec::as_slice).collect();
    let order = start_order(&borrowed);
    if let Some(circle) = circle(&waits, &order) {
        refuse_circle(&circle, list, findings);
    }
    waits
}

fn resolved(
    field: &str,
    index: usize,
    named: &[String],
    list: &[manifest::Agent],
    findings: &mut Findings,
) -> Vec<usize> {
    let mut waits: Vec<usize> = Vec::new();
    for (at, name) in named.iter().enumerate() {
        let mut all = list.iter();
        match all.position(|other| other.name.as_ref() == Some(name)) {
            Some(other) if other == index => {
                findings.wrong(
                    &format!("{field}[{at}]"),
                    shown(name),
                    "another agent than itself",
                );
            }
            Some(other) => {
                if !waits.contains(&other) {
                    waits.push(other);
                }
            }
            None => {
                let others = list.iter().enumerate().filter(|(other, _)| *other != index);
                let others: Vec<&str> = others.filter_map(|(_, o)| o.name.as_deref()).collect();
                let allowed = match others.as_slice() {
                    [] => "nothing: there is no other agent".to_owned(),
                    others => format!("the name of another agent: {}", others.join(", ")),
                };
                findings.wrong(&format!("{field}[{at}]"), shown(name), allowed);
            }
        }
    }
    waits.sort_unstable();
    waits
}

/// Some agents each of which waits for the next, and the last for the first.
fn circle(waits: &[Vec<usize>], order: &[usize]) -> Option<Vec<usize>> {
    let stuck = |index: &usize| !order.contains(index);
    let mut path = vec![(0..waits.len()).find(stuck)?];
    // Who cannot start waits for one who cannot start: the path comes back to itself.
    loop {
        let next = *waits.get(*path.last()?)?.iter().find(|i| stuck(i))?;
        if let Some(at) = path.iter().position(|known| *known == next) {
            return Some(path.split_off(at));
        }
        path.push(next);
    }
}

fn refuse_circle(circle: &[usize], list: &[manifest::Agent], findings: &mut Findings) {
    let name = |index: usize| {
        let agent = list.get(index);
        agent.and_then(|a| a.name.as_deref()).unwrap_or("?")
    };
    let written = |index: &&usize| list.get(**index).is_some_and(|a| a.depends_on.is_some());
    // Nobody waits in a circle only because of what is not written.
    let Some(first) = circle.iter().find(written) else {
        return;
    };
    let start = circle.iter().position(|i| i == first).unwrap_or_default();
    let (behind, ahead) = circle.split_at(start);
    let mut names: Vec<&str> = ahead.iter().chain(behind).map(|i| name(*i)).collect();
    names.push(name(*first));
    let silent = circle.iter().find(|index| !written(index));
    let why = match silent {
        Some(index) => format!(
            "; {} has no dependsOn and so waits for the agent before it",
            name(*index)
        ),
        None => String::new(),
    };
    let field = format!("spec.agents[{first}].dependsOn");
    let given = list.get(*first).and_then(|a| a.depends_on.as_deref());
    findings.wrong(
        &field,
        format!("[{}]", given.unwrap_or_default().join(", ")),
        format!(
            "agents that do not wait for this one, and here {}{why}",
            names.join(", which waits for ").replacen(", which", "", 1)
        ),
    );
}
