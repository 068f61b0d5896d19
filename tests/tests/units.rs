//! The units, as systemd's own tools read them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use nodeagent_tests::Ground;
use nodeagent_tests::cli::nodeagent;

/// Exposure of `nodeagent.service` as `systemd-analyze security` counts it (0 to 10, lower is
/// better). Each option that is not used has its reason in the unit.
const EXPOSURE: f32 = 5.3;

/// Every option that makes systemd give the service a mount namespace of its own (systemd.exec(5),
/// "Sandboxing" and "Paths"; `exec_needs_mount_namespace` of systemd 252).
const PRIVATE_MOUNTS: [&str; 24] = [
    "RootDirectory",
    "RootImage",
    "MountImages",
    "ExtensionImages",
    "ExtensionDirectories",
    "BindPaths",
    "BindReadOnlyPaths",
    "TemporaryFileSystem",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "ExecPaths",
    "NoExecPaths",
    "MountFlags",
    "PrivateTmp",
    "PrivateDevices",
    "PrivateMounts",
    "ProtectHome",
    "ProtectSystem",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectProc",
];

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/units")
}

fn unit_files() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(units()).context("read systemd/units")?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files)
}

fn analyze(arguments: &[&str], files: &[PathBuf]) -> Result<Output> {
    let mut command = Command::new("systemd-analyze");
    command
        .args(arguments)
        .args(files)
        .env("SYSTEMD_COLORS", "0");
    command.output().context("run systemd-analyze")
}

#[test]
fn systemd_has_nothing_to_say_about_the_units() -> Result<()> {
    let ground = Ground::new()?;
    // Verified with the program where it is built: it is not installed on this machine.
    let program = nodeagent()?;
    let mut files = Vec::new();
    for unit in unit_files()? {
        let text = fs::read_to_string(&unit)?;
        let name = unit.file_name().context("a unit without a name")?;
        let copy = ground.path(&name.to_string_lossy());
        let text = text.replace("/usr/bin/nodeagent", &program.to_string_lossy());
        fs::write(&copy, text)?;
        files.push(copy);
    }
    ensure!(files.len() >= 2, "only {files:?}");
    let said = analyze(&["verify", "--recursive-errors=one"], &files)?;
    let said_text = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "{}: {said_text}", said.status);
    assert_eq!(said_text, "");
    Ok(())
}

#[test]
fn the_exposure_of_the_service_is_not_worse_than_recorded() -> Result<()> {
    let service = units().join("nodeagent.service");
    let said = analyze(&["security", "--offline=yes", "--no-pager"], &[service])?;
    let text = String::from_utf8_lossy(&said.stdout);
    let overall = text.lines().find(|line| line.contains("Overall exposure"));
    let overall = overall.with_context(|| format!("no score in {text}"))?;
    println!("{overall}");
    let score = overall
        .split_once("nodeagent.service: ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse::<f32>().ok());
    let score = score.with_context(|| format!("no score in {overall:?}"))?;
    ensure!(
        score <= EXPOSURE,
        "the exposure is {score}, recorded are {EXPOSURE}:\n{text}"
    );
    Ok(())
}

#[test]
fn no_option_of_the_service_implies_a_mount_namespace() -> Result<()> {
    let text = fs::read_to_string(units().join("nodeagent.service"))?;
    let options: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(option, _)| option)
        .collect();
    ensure!(options.contains(&"KillMode"), "read {options:?}");
    for option in PRIVATE_MOUNTS.iter().chain(&["ProcSubset"]) {
        ensure!(!options.contains(option), "{option}= is set");
    }
    Ok(())
}
