//! From a revision to a created task: plan, directories, snapshot, spec, container.

use std::collections::BTreeMap;

use super::executor::{Executor, blocking, rootfs};
use super::failure::failure;
use super::{env_files, etc, security, volumes};
use crate::app::{App, NetworkMode, User};
use crate::instance::plan::{LogLimits, OfHost, PlanError, ProcessIds};
use crate::instance::spec::{self, SpecInput};
use crate::instance::{ContainerId, Failure, Instance, plan};
use crate::runtime::{self, RuntimeError, resolve_user};

/// What every process of an instance is told about it.
fn of_instance(app: &App, id: &ContainerId) -> Vec<(String, String)> {
    let label = |variable: &str, label: &str| {
        let value = app.labels.get(label)?;
        Some((variable.to_owned(), value.clone()))
    };
    let name = ("NODEAGENT_INSTANCE".to_owned(), id.instance.to_string());
    let labels = [
        label("NODEAGENT_SET", "set"),
        label("NODEAGENT_LANE", "lane"),
    ];
    [name]
        .into_iter()
        .chain(labels.into_iter().flatten())
        .collect()
}

impl Executor {
    /// Makes sure of the image of an instance that is about to be created. One that has gone since
    /// it was applied (by hand, or by another's collector) is pulled again, one that may not have
    /// been on the disk when power was lost is unpacked anew, and the policy of today judges it. An
    /// instance that keeps its rootfs needs none of it.
    pub(super) async fn image_of(&self, instance: &Instance) -> Result<(), Failure> {
        if instance.rootfs_generation != instance.create_generation {
            return Ok(());
        }
        Ok(self.images.make_sure(&instance.revision.image).await?)
    }

    pub(super) async fn create(
        &self,
        id: &ContainerId,
        instance: &Instance,
    ) -> Result<(), Failure> {
        let revision = &instance.revision;
        let image = revision.image.clone();
        if instance.rootfs_generation != id.create_generation {
            self.remove_former_containers(id).await?;
        }
        let key = rootfs(id, instance).to_string();
        let rootfs = {
            let _held = self.images.holds().hold(&image.reference).await;
            match self.runtime.prepare_snapshot(&key, &image).await {
                Ok(rootfs) => rootfs,
                // It went since it was looked at: the next try gets it again.
                Err(error @ RuntimeError::NotFound { .. }) => {
                    return Err(Failure::from(error).passing());
                }
                Err(error) => return Err(error.into()),
            }
        };
        let (app, config, container) = (revision.app.clone(), image.config.clone(), id.clone());
        let (etc_of, settings, address) = (app.clone(), self.settings.clone(), instance.address);
        let named = id.clone();
        let etc = blocking(move || etc::prepare(&etc_of, &named, address, &settings)).await??;
        let mut basics = vec![("HOSTNAME".to_owned(), etc.hostname.clone())];
        basics.extend(of_instance(&revision.app, id));
        let (files_of, settings) = (app.clone(), self.settings.clone());
        basics.extend(blocking(move || env_files::variables(&files_of, &settings)).await??);
        let limits = &self.settings.logs;
        let logs = LogLimits {
            max_bytes: limits.max_size,
            max_files: limits.max_files,
        };
        let plan = blocking(move || {
            let resolve = |user: &User| {
                resolve_user(&rootfs, &user.user, user.group.as_deref())
                    .map(|found| ProcessIds {
                        uid: found.uid,
                        gid: found.gid,
                        groups: found.additional_gids,
                    })
                    .map_err(|error| crate::chain::chain(&error))
            };
            let host = OfHost {
                basics: &basics,
                logs,
            };
            let plan = plan::compile(&app, &config, &container, &host, &resolve)?;
            let ids = plan::app_ids(&app, &config, &resolve)?;
            Ok::<_, PlanError>((plan, ids))
        });
        let (plan, ids) = plan.await?.map_err(|e| failure("plan", &e))?;
        self.gate.expect(id);
        self.predecessors.begin(id);
        let (directories, container) = (self.directories.clone(), id.clone());
        let made = blocking(move || directories.prepare(&container, &plan)).await??;
        let (app, settings, container) = (revision.app.clone(), self.settings.clone(), id.clone());
        let volumes =
            blocking(move || volumes::prepare(&app, &container, &settings, &ids)).await??;
        let netns = match revision.app.network {
            NetworkMode::Host => None,
            NetworkMode::Routed => Some(
                self.settings
                    .paths
                    .runtime
                    .join("netns")
                    .join(id.instance.to_string()),
            ),
        };
        let (app, settings, facts) = (revision.app.clone(), self.settings.clone(), self.facts);
        let seccomp_profile =
            blocking(move || security::prepare(&app, &settings, &facts)).await??;
        let sources = [etc.sources, volumes.sources.clone()].concat();
        let spec = spec::build(&SpecInput {
            app: &revision.app,
            image: &image.config,
            id,
            hostname: &etc.hostname,
            netns: netns.as_deref(),
            cgroup_path: format!("{}/{id}", self.settings.runtime.cgroup_parent),
            bin_dir: &made.bin,
            log_dir: &made.log,
            ctl_dir: &self.settings.paths.runtime.join("ctl"),
            volumes: &sources,
            seccomp_profile,
            host: self.facts,
        })
        .map_err(|e| failure("spec", &e))?;
        let labels = BTreeMap::from([
            (runtime::APP.to_owned(), id.instance.app.to_string()),
            (runtime::INSTANCE.to_owned(), id.instance.to_string()),
            (runtime::REVISION.to_owned(), revision.id.clone()),
            (
                runtime::CREATE_GENERATION.to_owned(),
                id.create_generation.to_string(),
            ),
        ]);
        let created = self
            .runtime
            .create_container(id, &image, &key, &spec, labels.clone())
            .await;
        if let Err(RuntimeError::Conflict { .. }) = created {
            self.take_away(id).await?;
            self.runtime
                .create_container(id, &image, &key, &spec, labels)
                .await?;
        } else {
            created?;
        }
        let pid = self.runtime.create_task(id).await?;
        self.predecessors.end(id, pid);
        Ok(blocking(move || volumes.settle(pid)).await??)
    }

    /// What an older agent began and did not arm: its end is not the end of what comes now.
    async fn take_away(&self, id: &ContainerId) -> Result<(), Failure> {
        self.gate.forget(id);
        self.runtime.delete_container(id).await?;
        self.gate.expect(id);
        Ok(())
    }

    /// What a reboot left of the containers that had this rootfs before: records without a task,
    /// and their directories.
    async fn remove_former_containers(&self, id: &ContainerId) -> Result<(), Failure> {
        let of_instance = |former: &ContainerId| former.instance == id.instance && former != id;
        let containers = self.runtime.list().await?;
        let records = containers.iter().filter_map(|c| c.id.parse().ok());
        for former in records.filter(of_instance) {
            self.runtime.delete_container(&former).await?;
        }
        let directories = self.directories.clone();
        let existing = blocking(move || directories.existing()).await??;
        for former in existing.into_iter().filter(of_instance) {
            let directories = self.directories.clone();
            self.gate.forget(&former);
            blocking(move || directories.remove(&former)).await??;
        }
        Ok(())
    }
}
