//! Inside the virtual machine: runs what the test outside asks for ([`nodeagent_tests::vm`]).
//!
//! usage: vm-guest PORT

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nodeagent_tests::vm::{Order, Said};

/// Between two looks at a port that nobody outside has opened.
const NOBODY_THERE: Duration = Duration::from_millis(50);

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("usage: vm-guest PORT")?;
    let port = OpenOptions::new().read(true).write(true).open(&path);
    let port = port.with_context(|| format!("open {path}"))?;
    let writer = Arc::new(Mutex::new(port.try_clone().context("duplicate the port")?));
    let mut reader = BufReader::new(port);
    let mut line = Vec::new();
    loop {
        // Nothing is read while nobody outside has opened the port.
        if reader
            .read_until(b'\n', &mut line)
            .context("read an order")?
            == 0
        {
            std::thread::sleep(NOBODY_THERE);
        } else if line.ends_with(b"\n") {
            let order = serde_json::from_slice::<Order>(&line);
            line.clear();
            let writer = writer.clone();
            if let Ok(order) = order {
                std::thread::spawn(move || answer(&writer, &carry_out(&order)));
            }
        }
    }
}

fn carry_out(order: &Order) -> Said {
    let (program, arguments) = order
        .words
        .split_first()
        .map_or(("", &[][..]), |(p, a)| (p, a));
    match Command::new(program)
        .args(arguments)
        .current_dir("/")
        .output()
    {
        Ok(output) => Said {
            id: order.id,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        },
        Err(error) => Said {
            id: order.id,
            code: None,
            stdout: String::new(),
            stderr: format!("cannot start {program:?}: {error}"),
        },
    }
}

fn answer(port: &Mutex<File>, said: &Said) {
    let Ok(mut line) = serde_json::to_vec(said) else {
        return;
    };
    line.push(b'\n');
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = port.write_all(&line) {
        eprintln!("vm-guest: the answer to order {} is lost: {error}", said.id);
    }
}
