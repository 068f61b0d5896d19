//! The real agent, killed at one effect boundary: `crash-agent run --config-dir …`.
//!
//! The effects of the agent are wrapped, nothing in the agent knows. Boundaries are counted while
//! the file [`MARK`] exists and appended to the file [`RECORD`], as `before register 2`; at the one
//! that is in the file [`CRASH_AT`] the process gets SIGKILL. All three are in the directory that
//! `NODEAGENT_TESTS_CRASH` names.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use nodeagent::host::{Executor, run_with};
use nodeagent::instance::Failure;
use nodeagent::journal::Write;
use nodeagent::pool::{Effect, Effects};
use nodeagent_systemd::Service;
use nodeagent_tests::crash::{CRASH_AT, DIRECTORY, MARK, RECORD};
use rustix::process::{Signal, getpid, kill_process};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    nodeagent::cli::main(|settings| {
        let service = Service::from_environment()?;
        let directory = std::env::var_os(DIRECTORY).map(PathBuf::from);
        let directory = directory.with_context(|| format!("{DIRECTORY} is not set"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("make a runtime")?;
        let wrap = |inner| Crashing {
            inner,
            boundaries: Arc::new(Boundaries {
                directory,
                seen: Mutex::default(),
            }),
        };
        Ok(runtime.block_on(run_with(settings, service, wrap))?)
    })
}

/// Effects that end the process at one of their boundaries.
struct Crashing {
    inner: Executor,
    boundaries: Arc<Boundaries>,
}

/// Counts the boundaries that are passed, and ends the process at the one that was asked for.
struct Boundaries {
    directory: PathBuf,
    seen: Mutex<BTreeMap<String, u32>>,
}

impl Boundaries {
    fn pass(&self, side: &str, effect: &str) {
        if !self.directory.join(MARK).exists() {
            return;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("{side} {effect}");
        let count = seen.entry(name.clone()).or_default();
        *count += 1;
        let boundary = format!("{name} {count}");
        let record = self.directory.join(RECORD);
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&record)
            .and_then(|mut file| writeln!(file, "{boundary}"));
        if let Err(error) = written {
            eprintln!("crash-agent: {}: {error}", record.display());
        }
        let wanted = fs::read_to_string(self.directory.join(CRASH_AT)).unwrap_or_default();
        if wanted == boundary {
            // Held under the lock: nobody passes a boundary after this one.
            let _ = kill_process(getpid(), Signal::KILL);
            loop {
                std::thread::park();
            }
        }
    }
}

impl Effects for Crashing {
    fn commit(
        &self,
        writes: Vec<Write>,
    ) -> impl Future<Output = Result<(), Failure>> + Send + 'static {
        self.boundaries.pass("before", "commit");
        let durable = self.inner.commit(writes);
        let boundaries = self.boundaries.clone();
        async move {
            let done = durable.await;
            boundaries.pass("after", "commit");
            done
        }
    }

    async fn perform(&self, effect: &Effect, cancel: &CancellationToken) -> Result<(), Failure> {
        let name = effect.kind.as_str();
        self.boundaries.pass("before", name);
        let done = self.inner.perform(effect, cancel).await;
        self.boundaries.pass("after", name);
        done
    }
}
