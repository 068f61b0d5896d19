//! Host configuration: fragments -> merged -> [`Settings`]. Only `Settings` leaves.

mod settings;

pub use settings::*;
