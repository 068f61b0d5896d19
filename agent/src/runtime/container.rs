//! Container records: spec, rootfs and labels; no process yet. And what of ours is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest,
    ListContainersRequest,
};
use prost_types::Any;

use super::error::{Answer, RuntimeError};
use super::image::Image;
use super::task::{self, TaskState};
use super::{Containerd, SPEC, labels};
use crate::instance::ContainerId;

/// A container of ours, as containerd has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Id of the container.
    pub id: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its task, when there is one.
    pub task: Option<TaskState>,
    /// Key of its rootfs.
    pub snapshot_key: String,
}

impl Containerd {
    /// Records a container. The same record made before is success; another one of that name is a
    /// conflict.
    pub async fn create_container(
        &self,
        id: &ContainerId,
        image: &Image,
        snapshot_key: &str,
        spec: &oci_spec::runtime::Spec,
        labels: BTreeMap<String, String>,
    ) -> Result<(), RuntimeError> {
        let operation = "create container";
        let name = id.to_string();
        let conflict = |why: String| RuntimeError::Conflict {
            operation,
            object: name.clone(),
            why,
        };
        let spec = canonical(spec)
            .map_err(|error| conflict(format!("its spec cannot be written: {error}")))?;
        let container = Container {
            id: name.clone(),
            labels: labels.into_iter().collect(),
            image: image.reference.clone(),
            runtime: Some(Runtime {
                name: self.runtime.shim.clone(),
                options: task::runc_options(&self.runtime, self.shim_cgroup.as_deref()),
            }),
            spec: Some(Any {
                type_url: SPEC.to_owned(),
                value: spec,
            }),
            snapshotter: self.connection.snapshotter(),
            snapshot_key: snapshot_key.to_owned(),
            ..Container::default()
        };
        let request = self.connection.request(CreateContainerRequest {
            container: Some(container.clone()),
        });
        let mut client = ContainersClient::new(self.connection.channel());
        match self
            .connection
            .answer(self.connection.plain(), client.create(request))
            .await
        {
            Ok(_) => return Ok(()),
            Err(Answer::Exists) => {}
            Err(said) => return Err(said.into_error(operation, &name)),
        }
        let Some(there) = self.container(&name).await? else {
            return Err(conflict("it was deleted at the same time".to_owned()));
        };
        for (what, same) in [
            ("spec", there.spec == container.spec),
            ("rootfs", there.snapshot_key == container.snapshot_key),
            ("image", there.image == container.image),
            ("labels", there.labels == container.labels),
        ] {
            if !same {
                return Err(conflict(format!("it exists with another {what}")));
            }
        }
        Ok(())
    }

    /// Deletes a container with its task, running or not, and what is left of its cgroup. One that is
    /// gone is fine.
    pub async fn delete_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        // containerd would delete the record of a running task, and leave the task to nobody.
        self.delete_task(id).await?;
        let name = id.to_string();
        let request = self
            .connection
            .request(DeleteContainerRequest { id: name.clone() });
        let mut client = ContainersClient::new(self.connection.channel());
        match self
            .connection
            .answer(self.connection.plain(), client.delete(request))
            .await
        {
            Ok(_) | Err(Answer::NotFound) => {}
            Err(said) => return Err(said.into_error("delete container", &name)),
        }
        // Mostly gone with the task; an OCI runtime whose caller was killed leaves it behind.
        if let Err(error) = self.remove_cgroup(id).await {
            tracing::warn!(%error, container_id = name, "its cgroup remains until the next start");
        }
        Ok(())
    }

    /// All containers that carry our instance label, with their tasks.
    pub async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        let ours = vec![format!("labels.{:?}", labels::INSTANCE)];
        let observed = self.containers(ours, |container| Observed {
            labels: container.labels.into_iter().collect(),
            task: None,
            snapshot_key: container.snapshot_key,
            id: container.id,
        });
        let mut observed = observed.await?;
        let mut tasks: HashMap<String, TaskState> = self.tasks().await?.into_iter().collect();
        for container in &mut observed {
            container.task = tasks.remove(&container.id);
        }
        Ok(observed)
    }

    /// Names of the images of all containers in our namespace, whoever made them.
    pub(crate) async fn images_of_containers(&self) -> Result<BTreeSet<String>, RuntimeError> {
        let images = self.containers(Vec::new(), |container| container.image);
        let images = images.await?.into_iter();
        self.all_names(images.filter(|image| !image.is_empty()).collect())
            .await
    }

    /// Whether a container in our namespace, whoever made it, was made from an image that has this
    /// name or has `target` by another one.
    pub(crate) async fn is_image_of_container(
        &self,
        name: &str,
        target: &str,
    ) -> Result<bool, RuntimeError> {
        let mut names = vec![name.to_owned()];
        let also = self.images_of(&[target.to_owned()]).await?;
        names.extend(also.into_iter().map(|image| image.name));
        let filters = names.iter().map(|name| format!("image=={name:?}"));
        let users = self.containers(filters.collect(), |container| container.id);
        Ok(!users.await?.is_empty())
    }

    /// What `of` takes of each container that passes one of `filters`. One after the other: their
    /// specs together are more than one message may have, and than anybody wants in memory.
    async fn containers<T>(
        &self,
        filters: Vec<String>,
        of: impl Fn(Container) -> T,
    ) -> Result<Vec<T>, RuntimeError> {
        let request = self.connection.request(ListContainersRequest { filters });
        let mut client = ContainersClient::new(self.connection.channel());
        let read = async {
            let mut stream = client.list_stream(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(message) = stream.message().await? {
                all.extend(message.container.map(&of));
            }
            Ok(all)
        };
        let listed = self.connection.answer(self.connection.slow(), read).await;
        listed.map_err(|said| said.into_error("list", "containers"))
    }

    pub(super) async fn container(&self, name: &str) -> Result<Option<Container>, RuntimeError> {
        let request = self.connection.request(GetContainerRequest {
            id: name.to_owned(),
        });
        let mut client = ContainersClient::new(self.connection.channel());
        match self
            .connection
            .answer(self.connection.plain(), client.get(request))
            .await
        {
            Ok(response) => Ok(response.into_inner().container),
            Err(Answer::NotFound) => Ok(None),
            Err(said) => Err(said.into_error("look up container", name)),
        }
    }
}

/// One spelling for one spec: the sets of capabilities come in any order.
fn canonical(spec: &oci_spec::runtime::Spec) -> serde_json::Result<Vec<u8>> {
    let mut value = serde_json::to_value(spec)?;
    if let Some(sets) = value
        .pointer_mut("/process/capabilities")
        .and_then(|c| c.as_object_mut())
    {
        for set in sets.values_mut().filter_map(|set| set.as_array_mut()) {
            set.sort_by_key(ToString::to_string);
        }
    }
    serde_json::to_vec(&value)
}
