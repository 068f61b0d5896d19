//! How large the files are.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nodeagent_tests::bench::{Row, Samples, Target};
use nodeagent_tests::init::Init;

use super::{Inits, compared};

pub fn rows(inits: &Inits) -> Result<Vec<Row>> {
    let mut sizes = [const { None }; 3];
    let mut linked = Vec::new();
    for (room, init) in sizes.iter_mut().zip(inits.all()) {
        let (size, with) = file(init)?;
        *room = Some([size].into_iter().collect::<Samples>());
        linked.push(format!("{} {with}", init.name));
    }
    Ok(compared(
        "file",
        &format!("stripped; stretch 64; {}", linked.join("; ")),
        "KiB",
        &sizes.map(Option::unwrap_or_default),
        &[Target::MaxAtMost(128.0)],
    ))
}

/// KiB of the file itself, and what it needs beside it.
fn file(init: &Init) -> Result<(f64, String)> {
    let program = init.program().context("an init is a program")?;
    // ldd(1) fails for what is static.
    let ldd = Command::new("ldd")
        .arg(program)
        .output()
        .context("run ldd(1)")?;
    let mut with = 0.0;
    for line in String::from_utf8_lossy(&ldd.stdout).lines() {
        // `name => path (address)` or `path (address)`; the vdso has no path.
        if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
            with += kib(Path::new(path))?;
        }
    }
    let with = match ldd.status.success() {
        true => format!("links {with:.0} KiB of libraries"),
        false => "is static".to_owned(),
    };
    Ok((kib(program)?, with))
}

fn kib(path: &Path) -> Result<f64> {
    let size = fs::metadata(path).with_context(|| format!("stat {}", path.display()))?;
    Ok(size.len() as f64 / 1024.0)
}
