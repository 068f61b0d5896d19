//! Roles, by real processes of other users and groups, with the real command line.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::cli::nodeagent;
use nodeagent_tests::{Answer, TestHost};

/// Groups that have a role in this configuration. They have no name on this machine.
const VIEW: &str = "70201";
const OPERATE: &str = "70202";

fn roles() -> String {
    format!(
        "[discovery.file]\npropagation_bound = \"1s\"\n[api]\nview_groups = [\"{VIEW}\"]\noperate_groups = [\"{OPERATE}\"]\n"
    )
}

/// The program where everybody may execute it: the checkout is root's alone.
fn program(host: &TestHost) -> Result<PathBuf> {
    let copy = host.ground.path("nodeagent");
    // Not by a descriptor of ours: children that other tests fork meanwhile would have it, and what
    // somebody writes nobody may execute (ETXTBSY).
    let mut install = Command::new("install");
    install.args(["-m", "0755"]).arg(nodeagent()?).arg(&copy);
    ensure!(install.status()?.success(), "{install:?}");
    Ok(copy)
}

/// Runs the command line as user 70200 with these supplementary groups.
fn run_as(host: &TestHost, program: &Path, groups: &[&str], arguments: &[&str]) -> Result<Answer> {
    let groups = match groups {
        [] => "--clear-groups".to_owned(),
        groups => format!("--groups={}", groups.join(",")),
    };
    let output = Command::new("setpriv")
        .args(["--reuid=70200", "--regid=70200", &groups])
        .arg(program)
        .arg("--socket")
        .arg(host.agent.socket())
        .args(arguments)
        .current_dir("/")
        .output()
        .context("run setpriv(1)")?;
    Ok(Answer {
        command: format!("nodeagent {} with {groups}", arguments.join(" ")),
        code: output.status.code().context("it died of a signal")?,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[test]
fn a_member_of_a_group_may_what_its_role_may_and_is_told_what_is_missing() -> Result<()> {
    let host = TestHost::start_with(&roles())?;
    host.warm_web(1)?;
    let program = program(&host)?;
    let activate = ["activate", "web", "--to", "1", "--task-id", "peak-7"];

    run_as(&host, &program, &[VIEW], &["status"])?.ok()?;
    let refused = run_as(&host, &program, &[VIEW], &activate)?;
    assert_eq!(refused.code, 3, "{refused}");
    for part in [
        "role operate is needed",
        "user id 70200",
        "has the role view",
        "api.*_groups",
    ] {
        assert!(
            refused.stderr.contains(part),
            "{part:?} is missing: {refused}"
        );
    }
    assert_eq!(
        host.cli().pool("web")?.target,
        0,
        "a refused activation had an effect"
    );

    run_as(&host, &program, &[OPERATE], &activate)?.ok()?;
    let delete = run_as(&host, &program, &[OPERATE, VIEW], &["app", "delete", "web"])?;
    assert_eq!(delete.code, 3, "{delete}");
    assert!(delete.stderr.contains("role admin is needed"), "{delete}");
    host.remove_app("web")
}

#[test]
fn a_stranger_is_told_that_it_has_no_role() -> Result<()> {
    let host = TestHost::start_with(&roles())?;
    let program = program(&host)?;
    let answer = run_as(&host, &program, &[], &["status", "-o", "json"])?;
    let problem = answer.problem(3)?;
    assert_eq!((problem.code.as_str(), problem.status), ("forbidden", 403));
    assert!(problem.detail.contains("has no role"), "{}", problem.detail);
    Ok(())
}

#[test]
fn without_roles_the_socket_is_roots_and_the_command_line_says_so() -> Result<()> {
    let host = TestHost::start()?;
    let program = program(&host)?;
    let answer = run_as(&host, &program, &[VIEW], &["status"])?;
    assert_eq!(answer.code, 3, "{answer}");
    for part in ["api.sock", "user id 70200", "mode 0600"] {
        assert!(
            answer.stderr.contains(part),
            "{part:?} is missing: {answer}"
        );
    }
    Ok(())
}
