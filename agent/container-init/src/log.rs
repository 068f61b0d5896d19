//! Logs in the format of the Container Runtime Interface, as containerd and CRI-O write them and
//! kubelet reads them: `2016-10-06T00:17:09.669794202Z stdout F text`.
//!
//! Owns how bytes of a process become records, when a file is full and which files move then, and
//! what is remembered of bytes that could not be written. Deliberately does no I/O.

mod lines;
mod losses;
mod rotation;
mod time;

pub use lines::{HEAD, Part, Parts, Stream, Tag, head};
pub use losses::{Losses, Notice};
pub use rotation::{Rotation, Step};
pub use time::{TIME, rfc3339};
