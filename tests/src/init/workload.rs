//! What runs below an init under measurement: a program that stamps the clock.
//!
//! The program is `init-workload`, beside the program that uses it. It writes [`Stamp`]s to its
//! standard output: one when it is ready, then as its [`Workload`] says.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, test_kill_process};

use super::{now_ns, sys};

/// Orphans of the storm that one process makes.
const BATCH: usize = 8;

/// What the program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Stamps in its handler of SIGUSR1.
    Handler,
    /// As the handler; beside it orphans are made and end as fast as one process can.
    Storm,
    /// For every byte it reads, makes so many zombies of the init's at once, and stamps when it has,
    /// and when the last of them was reaped.
    Crowd(usize),
    /// SIGTERM: works so many milliseconds, stamps, and ends with 0.
    Stop(u32),
}

/// What the program says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// [`now_ns`].
    pub at: u64,
    /// Orphans that the storm has made so far.
    pub orphans: u64,
}

impl Stamp {
    const SIZE: usize = 16;

    fn now() -> Self {
        Self {
            at: now_ns(),
            orphans: ORPHANS
                .get()
                .map_or(0, |count| count.load(Ordering::Relaxed)),
        }
    }

    /// Safe in a signal handler: one write(2), no memory.
    fn say(self) {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.at.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.orphans.to_ne_bytes());
        // Nobody may be there to read it any more.
        let _ = rustix::io::write(rustix::stdio::stdout(), &bytes);
    }
}

/// Reads one stamp, and waits for it at most `within`.
pub fn next_stamp(from: &mut (impl Read + AsFd), within: Duration) -> Result<Stamp> {
    let limit = Timespec::try_from(within).context("the wait is too long")?;
    let ready = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&limit)).context("poll")?;
    ensure!(ready == 1, "nothing within {within:?}");
    let mut bytes = [0; Stamp::SIZE];
    from.read_exact(&mut bytes)
        .context("the other end is closed")?;
    let (at, orphans) = bytes.split_at(8);
    Ok(Stamp {
        at: u64::from_ne_bytes(at.try_into()?),
        orphans: u64::from_ne_bytes(orphans.try_into()?),
    })
}

impl Workload {
    /// The command that runs it.
    pub fn argv(self) -> Result<Vec<OsString>> {
        let mut argv = vec![program()?.into_os_string()];
        match self {
            Self::Handler => argv.push("handler".into()),
            Self::Storm => argv.push("storm".into()),
            Self::Crowd(size) => argv.extend(["crowd".into(), size.to_string().into()]),
            Self::Stop(ms) => argv.extend(["stop".into(), ms.to_string().into()]),
        }
        Ok(argv)
    }

    fn parse(words: &[String]) -> Result<Self> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Ok(match words[..] {
            ["handler"] => Self::Handler,
            ["storm"] => Self::Storm,
            ["crowd", size] => Self::Crowd(size.parse()?),
            ["stop", ms] => Self::Stop(ms.parse()?),
            _ => bail!("usage: init-workload handler | storm | crowd SIZE | stop MILLISECONDS"),
        })
    }

    /// Does it; the program's arguments are without its name.
    pub fn run(words: &[String]) -> Result<()> {
        match Self::parse(words)? {
            Self::Handler => {
                sys::handle(libc::SIGUSR1, stamp)?;
                forever()
            }
            Self::Storm => {
                storm()?;
                sys::handle(libc::SIGUSR1, stamp)?;
                forever()
            }
            Self::Crowd(size) => crowd(size),
            Self::Stop(ms) => {
                STOP_MS.store(u64::from(ms), Ordering::Relaxed);
                sys::handle(libc::SIGTERM, stop)?;
                forever()
            }
        }
    }
}

/// Beside the running program, or a directory above it, as it is for tests.
fn program() -> Result<PathBuf> {
    let here = std::env::current_exe().context("where this program is")?;
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("init-workload"))
        .find(|path| path.exists())
        .with_context(|| format!("init-workload is not beside {}", here.display()))
}

static ORPHANS: OnceLock<&'static AtomicU64> = OnceLock::new();
static STOP_MS: AtomicU64 = AtomicU64::new(0);

extern "C" fn stamp(_signal: i32) {
    Stamp::now().say();
}

extern "C" fn stop(_signal: i32) {
    std::thread::sleep(Duration::from_millis(STOP_MS.load(Ordering::Relaxed)));
    Stamp::now().say();
    sys::end(0)
}

fn forever() -> Result<()> {
    Stamp::now().say();
    loop {
        std::thread::park();
    }
}

/// Orphans are made by a process of its own, which ends with this one.
fn storm() -> Result<()> {
    let count = sys::shared_counter().context("memory for the count")?;
    ORPHANS.get_or_init(|| count);
    sys::fork_for_life(move || {
        while let Ok(batch) = sys::zombies(BATCH) {
            count.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
    })
    .context("fork the storm")
}

fn crowd(size: usize) -> Result<()> {
    let mut asked = std::io::stdin().lock();
    Stamp::now().say();
    let mut byte = [0];
    while asked.read(&mut byte).context("read what is asked")? == 1 {
        let crowd = sys::zombies(size).context("make zombies")?;
        Stamp::now().say();
        reaped(crowd).say();
    }
    Ok(())
}

/// When the last of them is gone. The youngest is reaped last; whether somebody older is left is
/// looked at when the clock was read.
fn reaped(mut crowd: Vec<Pid>) -> Stamp {
    let mut gone = None;
    while let Some(last) = crowd.pop() {
        let mut waited = gone.is_none();
        while test_kill_process(last).is_ok() {
            waited = true;
        }
        if waited {
            gone = Some(Stamp::now());
        }
    }
    gone.unwrap_or_else(Stamp::now)
}
