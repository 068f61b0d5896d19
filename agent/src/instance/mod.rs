//! One instance: its names, its life ([`machine`]), what it is made from and how that becomes a
//! container: the [`plan`] of container-init, the OCI [`spec`], and what it knows of names
//! ([`name_service`]).

mod identity;
mod image_config;
pub mod machine;
pub mod name_service;
pub mod plan;
pub mod probe;
mod revision;
mod seccomp;
pub mod spec;

pub use identity::{AppName, ContainerId, InstanceName, InvalidName};
pub use image_config::ImageConfig;
pub use machine::{EffectKind, Failure, Instance, Phase, Retry, State, Urgency, Warmth};
pub use revision::Revision;
