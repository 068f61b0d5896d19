//! `make bench-check`: lists the figures in a directory of reports that miss their target.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nodeagent_tests::bench::Report;

fn main() -> ExitCode {
    match check() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-check: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Number of figures that miss their target.
fn check() -> Result<usize> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.context("usage: bench-check DIRECTORY")?;
    let entries = std::fs::read_dir(&directory);
    let entries = entries
        .with_context(|| format!("read {} (run `make bench` first)", directory.display()))?;
    let (mut reports, mut short) = (0, 0);
    for entry in entries.flatten() {
        let file = entry.path();
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let report: Report =
            serde_json::from_str(&text).with_context(|| format!("parse {}", file.display()))?;
        reports += 1;
        for row in report.short() {
            short += 1;
            println!(
                "{} / {}: wanted {}; p50 {} p99 {} max {} {}{}",
                report.bench,
                row.case,
                row.target.as_deref().unwrap_or("?"),
                row.p50,
                row.p99,
                row.max,
                row.unit,
                row.ratio
                    .map(|ratio| format!(", ratio {ratio}"))
                    .unwrap_or_default(),
            );
        }
    }
    if reports == 0 {
        bail!(
            "no reports in {} (run `make bench` first)",
            directory.display()
        );
    }
    println!("{reports} reports, {short} figures miss their target");
    Ok(short)
}
