//! A reboot of a test host without a reboot of the machine: whatever lives in the kernel and in
//! tmpfs is removed as the kernel would, and the journal is told of another boot.
//!
//! Discovery stays, as a server elsewhere would.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};

use crate::host::TestHost;

impl TestHost {
    /// The agent, its containers, their networks and the runtime directory end; the agent is not
    /// started again.
    pub fn reboot(&mut self) -> Result<()> {
        self.agent.kill()?;
        let namespace = self.agent.namespace().to_owned();
        for id in self.containerd.tasks(&namespace)?.into_keys() {
            self.run(
                Command::new("ctr")
                    .arg("--address")
                    .arg(self.containerd.socket())
                    .args(["--namespace", &namespace, "tasks", "delete", "--force", &id]),
            )?;
        }
        let run = self.agent.runtime();
        for entry in fs::read_dir(run.join("netns")).into_iter().flatten() {
            let file = entry.context("read the namespaces")?.path();
            // Held by its mount alone: it goes with it, and the veth with it.
            unmount(&file, UnmountFlags::DETACH)
                .with_context(|| format!("unmount {}", file.display()))?;
        }
        for entry in fs::read_dir(&run).with_context(|| format!("read {}", run.display()))? {
            let entry = entry.context("read the runtime directory")?;
            let path = entry.path();
            if entry.file_name() == "discovery" {
                continue;
            }
            let removed = match path.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
        let journal =
            rusqlite::Connection::open(self.agent.journal()).context("open the journal")?;
        let changed = journal
            .execute(
                "UPDATE meta SET value = 'another-boot' WHERE key = 'boot_id'",
                [],
            )
            .context("change the boot id")?;
        ensure!(changed == 1, "the journal has no boot id");
        Ok(())
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        command.current_dir("/");
        let output = self
            .ground
            .netns()
            .run(|| command.output().context("run a command"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{command:?}: {}", said.trim());
        Ok(())
    }
}
