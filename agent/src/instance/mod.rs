//! One instance: its names, its life ([`machine`]), what it is made from.

mod identity;
mod image_config;
pub mod machine;
mod revision;

pub use identity::{AppName, ContainerId, InstanceName, InvalidName};
pub use image_config::ImageConfig;
pub use machine::{EffectKind, Failure, Instance, Phase, State, Urgency, Warmth};
pub use revision::{Revision, RevisionImage};
