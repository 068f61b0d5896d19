//! Where registrations are written.

use std::path::PathBuf;

use super::facts::writable;
use super::finding::Finding;
use crate::config;

/// The backends on this host.
#[derive(Debug, Clone)]
pub(super) struct Discovery {
    /// The directory of the files, and whether it can be written to; none when they are off.
    pub file: Option<(PathBuf, Result<(), String>)>,
}

pub(super) fn read(settings: &config::Discovery) -> Discovery {
    Discovery {
        file: settings
            .file
            .as_ref()
            .map(|file| (file.directory.clone(), writable(&file.directory))),
    }
}

pub(super) fn judge(discovery: &Discovery) -> Vec<Finding> {
    let check = "discovery.file";
    let Some((directory, writable)) = &discovery.file else {
        return Vec::new();
    };
    let at = directory.display();
    vec![match writable {
        Ok(()) => Finding::full(check, format!("{at} can be written to")),
        Err(why) => Finding::not(
            check,
            format!("{at} cannot be written to: {why}"),
            "no instance gets into service",
            "run as root; or another directory: discovery.file.directory",
        ),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    #[test]
    fn a_directory_that_cannot_be_written_to_keeps_every_instance_out_of_service() {
        let of = |file| judge(&Discovery { file });
        assert!(of(None).is_empty());
        assert_eq!(of(Some(("/x".into(), Ok(()))))[0].works, Works::Full);
        let refused = &of(Some(("/x".into(), Err("read-only".to_owned()))))[0];
        assert_eq!(refused.works, Works::Not);
        assert_eq!(refused.found, "/x cannot be written to: read-only");
    }
}
