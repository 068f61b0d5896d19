//! Applying and deleting apps.
//!
//! An applied app is an app whose image is on this host: the pull is part of the application, so
//! that a registry's trouble is told to who applies, and never to who activates.

use std::io::ErrorKind;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::answers;
use super::failure::failure;
use super::node::{Entry, Node, app_name, stopping};
use super::{env_files, security, volumes};
use crate::api::Deletion;
use crate::api::v1::{ApplyOutcome, ApplyResult, Finding, Problem, ProblemCode};
use crate::app::{self, App, NetworkMode, manifest_hash};
use crate::chain::chain;
use crate::images::Held;
use crate::instance::{Failure, Revision};
use crate::journal::Write;
use crate::network::{self, HostPort};
use crate::pool::{Effects, Message, Pool, driver, read_clocks};
use crate::runtime::{Image, RuntimeError};
use crate::sys;

impl<E: Effects> Node<E> {
    pub(super) async fn apply_manifest(&self, manifest: &str) -> Result<ApplyResult, Problem> {
        let app = app::parse(manifest).map_err(|refused| invalid(refused.findings))?;
        let mut findings = app::check_against(&app, &self.terms);
        findings.extend(volumes::check(&app, &self.settings));
        findings.extend(env_files::check(&app, &self.settings));
        findings.extend(security::check(&app, &self.settings, &self.executor.facts));
        if !findings.is_empty() {
            return Err(invalid(findings));
        }
        self.observation().await?;
        let findings = self.ports_in_use(&app);
        if !findings.is_empty() {
            return Err(invalid(findings));
        }
        let (image, _held) = self
            .image(&app.image)
            .await
            .map_err(|e| unusable_image(&app, &e))?;
        let findings = app::check_against_image(&app, &image.config);
        if !findings.is_empty() {
            return Err(invalid(findings));
        }
        let revision = Arc::new(Revision {
            id: app::revision(&app, &image.digest).to_string(),
            app,
            manifest: manifest.to_owned(),
            image,
        });
        let _turn = self.applying.lock().await;
        let name = revision.app.name.clone();
        let (outcome, detail) = match self.pools.get(&name) {
            Some(entry) if same(&entry.revision, &revision) => (ApplyOutcome::Unchanged, None),
            Some(entry) => {
                self.revise(&entry, &revision).await?;
                let detail = (entry.revision.id != revision.id)
                    .then(|| "waiting instances are replaced at refill pace; active ones keep their revision".to_owned());
                (ApplyOutcome::Changed, detail)
            }
            None => {
                self.found(&revision).await?;
                let armed = revision.app.warm.armed;
                (
                    ApplyOutcome::Created,
                    (armed > 0).then(|| format!("{armed} instances are being armed")),
                )
            }
        };
        Ok(ApplyResult {
            name: name.to_string(),
            outcome,
            revision: revision.id.clone(),
            detail,
        })
    }

    /// Fixed host ports that somebody else has: another app, or a process of this host.
    fn ports_in_use(&self, app: &App) -> Vec<crate::document::Finding> {
        if app.network == NetworkMode::Host {
            return Vec::new();
        }
        let others = self.pools.all();
        let others = others
            .iter()
            .map(|entry| &entry.revision.app)
            .filter(|other| other.name != app.name && other.network != NetworkMode::Host);
        let theirs: Vec<(&App, HostPort)> = others
            .flat_map(|other| fixed(other).map(move |(_, port)| (other, port)))
            .collect();
        let finding = |(index, port): (usize, HostPort)| {
            let taken = theirs.iter().find(|(_, other)| other.conflicts(&port));
            let allowed = match (taken, network::probe(&port)) {
                (Some((other, _)), _) => {
                    format!(
                        "a host port that no other app has; app {} has {port}",
                        other.name
                    )
                }
                (None, Err(error)) if error.kind() == ErrorKind::AddrInUse => {
                    format!("a host port that no process of this host has; {port} is in use")
                }
                (None, Err(error)) if error.kind() == ErrorKind::AddrNotAvailable => {
                    format!("a hostIP that this host has; {port} cannot be bound")
                }
                _ => return None,
            };
            let field = format!("spec.ports[{index}].hostPort");
            let value = Some(port.port.to_string());
            Some(crate::document::Finding::new(&field, value, allowed))
        };
        fixed(app).filter_map(finding).collect()
    }

    /// What the reference means now, and held until the app names it. A registry that does not
    /// answer does not stand in the way of an image that is here.
    async fn image(&self, reference: &str) -> Result<(Image, Held), RuntimeError> {
        let images = &self.executor.images;
        match images.resolve(reference).await {
            Ok(resolved) => {
                let held = images.holds().hold(&resolved).await;
                let image = images.ensure(&resolved).await;
                sys::give_memory_back();
                Ok((image?, held))
            }
            Err(error) => {
                let known = self
                    .pools
                    .all()
                    .into_iter()
                    .find(|entry| entry.revision.app.image == reference);
                let Some(known) = known.filter(|_| error.is_retryable()) else {
                    return Err(error);
                };
                tracing::warn!(
                    reference,
                    error = chain(&error),
                    digest = known.revision.image.digest,
                    "the registry does not answer; the image that is here is used"
                );
                let known = &known.revision.image.reference;
                let held = images.holds().hold(known).await;
                Ok((images.ensure(known).await?, held))
            }
        }
    }

    async fn revise(&self, entry: &Entry, revision: &Arc<Revision>) -> Result<(), Problem> {
        let (reply, answer) = oneshot::channel();
        entry
            .handle
            .messages
            .send(Message::Revise(revision.clone(), reply))
            .map_err(|_| stopping())?;
        answer
            .await
            .map_err(|_| stopping())?
            .map_err(|refusal| answers::refused(&refusal))?;
        self.pools.put(Entry {
            handle: entry.handle.clone(),
            revision: revision.clone(),
            applied_ms: read_clocks().wall_ms,
        });
        Ok(())
    }

    async fn found(&self, revision: &Arc<Revision>) -> Result<(), Problem> {
        let applied_ms = read_clocks().wall_ms;
        let written = self
            .shared
            .effects
            .commit(vec![Write::Revision(revision.clone(), applied_ms)])
            .await;
        written.map_err(|failure| answers::unwritten(&failure))?;
        // Instances of a former app of this name left their generations behind.
        let left = self
            .journal
            .left_behind(&revision.app.name)
            .map_err(|e| answers::unwritten(&Failure::from(e)))?;
        let pool = Pool::new(
            revision.clone(),
            Self::limits(&self.settings, &self.terms, &self.epoch),
        )
        .with_left_behind(&left);
        let handle = driver::spawn(pool, Vec::new(), self.shared.clone());
        self.pools.put(Entry {
            handle,
            revision: revision.clone(),
            applied_ms,
        });
        self.shared.moved.send_replace(());
        Ok(())
    }

    pub(super) async fn delete(
        &self,
        name: &str,
        deletion: Deletion,
    ) -> Result<ApplyResult, Problem> {
        let name = app_name(name)?;
        let entry = self.entry(&name).await?;
        let (reply, answer) = oneshot::channel();
        let force = deletion == Deletion::Forced;
        entry
            .handle
            .messages
            .send(Message::Delete { force, reply })
            .map_err(|_| stopping())?;
        answer
            .await
            .map_err(|_| stopping())?
            .map_err(|refusal| answers::refused(&refusal))?;
        self.pools.remove_ended(&name);
        Ok(ApplyResult {
            name: name.to_string(),
            outcome: ApplyOutcome::Deleted,
            revision: entry.revision.id.clone(),
            detail: None,
        })
    }
}

/// Host ports that the manifest names, with their place in it.
fn fixed(app: &App) -> impl Iterator<Item = (usize, HostPort)> {
    app.fixed_host_ports().map(|(index, port, number)| {
        let port = HostPort {
            protocol: port.protocol,
            address: port.host_ip,
            port: number,
            container_port: port.container_port,
        };
        (index, port)
    })
}

fn same(one: &Revision, other: &Revision) -> bool {
    one.id == other.id && manifest_hash(&one.app) == manifest_hash(&other.app)
}

fn invalid(findings: Vec<crate::document::Finding>) -> Problem {
    let findings: Vec<Finding> = findings.into_iter().map(Finding::from).collect();
    let detail = match findings.len() {
        1 => "1 field is wrong; nothing was changed".to_owned(),
        n => format!("{n} fields are wrong; nothing was changed"),
    };
    Problem::new(ProblemCode::InvalidManifest, detail).with_findings(findings)
}

fn unusable_image(app: &App, error: &RuntimeError) -> Problem {
    let code = match error {
        RuntimeError::Unavailable { .. } => ProblemCode::Unavailable,
        RuntimeError::Image { .. } if error.is_retryable() => ProblemCode::Unavailable,
        _ => ProblemCode::InvalidManifest,
    };
    let detail = format!(
        "the image of app {} is not to be had, nothing was changed: {}",
        app.name,
        chain(error)
    );
    let problem = Problem::new(code, detail);
    if code == ProblemCode::InvalidManifest {
        let allowed = format!(
            "an image that the registry has: {}",
            failure("image", error).detail
        );
        problem.with_findings([Finding::new("spec.image", app.image.clone(), allowed)])
    } else {
        problem
    }
}
