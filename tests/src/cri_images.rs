//! containerd's CRI image service, asked as the kubelet and `crictl` ask it (kubernetes,
//! `cri-api/pkg/apis/runtime/v1/api.proto`; the few fields that a test needs).

use anyhow::{Context, Result};
use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::containerd::Containerd;

/// An image as the kubelet sees it.
#[derive(Clone, PartialEq, Message)]
pub struct CriImage {
    /// Digest of its config.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its names by tag.
    #[prost(string, repeated, tag = "2")]
    pub repo_tags: Vec<String>,
    /// Its names by digest.
    #[prost(string, repeated, tag = "3")]
    pub repo_digests: Vec<String>,
    /// Whether the kubelet leaves it alone.
    #[prost(bool, tag = "8")]
    pub pinned: bool,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

/// `PullImageRequest`, `ImageStatusRequest` and `ImageFilter` alike.
#[derive(Clone, PartialEq, Message)]
struct OfImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(message, repeated, tag = "1")]
    images: Vec<CriImage>,
}

#[derive(Clone, PartialEq, Message)]
struct Found {
    #[prost(message, optional, tag = "1")]
    image: Option<CriImage>,
}

#[derive(Clone, PartialEq, Message)]
struct Pulled {
    #[prost(string, tag = "1")]
    image_ref: String,
}

impl Containerd {
    /// All images.
    pub fn cri_images(&self) -> Result<Vec<CriImage>> {
        let listed: Listed = self.ask_cri("ListImages", Nothing {})?;
        Ok(listed.images)
    }

    /// The image of that name, where there is one.
    pub fn cri_image(&self, name: &str) -> Result<Option<CriImage>> {
        let found: Found = self.ask_cri("ImageStatus", of_image(name))?;
        Ok(found.image)
    }

    /// Has the CRI plugin pull an image, as for a pod.
    pub fn cri_pull(&self, name: &str) -> Result<()> {
        let pulled: Pulled = self.ask_cri("PullImage", of_image(name))?;
        drop(pulled.image_ref);
        Ok(())
    }

    fn ask_cri<Q, A>(&self, method: &str, question: Q) -> Result<A>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let path = format!("/runtime.v1.ImageService/{method}");
        let path: PathAndQuery = path.parse().context("a path of the CRI")?;
        self.ask(async |channel| {
            let mut service = Grpc::new(channel);
            let ready = service.ready().await;
            ready.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = service.unary(Request::new(question), path, codec).await?;
            Ok(answer.into_inner())
        })
        .with_context(|| format!("ask the CRI plugin: {method}"))
    }
}

fn of_image(name: &str) -> OfImage {
    let image = name.to_owned();
    OfImage {
        image: Some(ImageSpec { image }),
    }
}
