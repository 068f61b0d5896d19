//! One instance: its names, its life ([`machine`]), the spec and the plan it is created from.

mod identity;

pub use identity::{AppName, ContainerId, InstanceName, InvalidName};
