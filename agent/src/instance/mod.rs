//! One instance: its names, its life ([`machine`]), the spec and the plan it is created from.

mod identity;
mod image_config;
mod seccomp;
pub mod spec;

pub use identity::{AppName, ContainerId, InstanceName, InvalidName};
pub use image_config::ImageConfig;
