//! What the files say at start, and what is not ours among them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{SetAside, failed};
use crate::chain::chain;
use crate::discovery::record::is_service_name;
use crate::discovery::{DiscoveryError, Outcome, Table, eds, prometheus};

/// Ending of a file that is being written; readers' patterns (`*.json`) do not match it.
pub(super) const UNFINISHED: &str = ".tmp";

/// The files as they were found.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) directory: PathBuf,
    pub(super) table: Table,
    /// Every service that has a file, with the version of that file.
    pub(super) versions: BTreeMap<String, u64>,
    /// Services whose file does not say what the table says.
    pub(super) unsettled: BTreeSet<String>,
}

impl Files {
    /// Path of a service's file.
    pub(super) fn eds(&self, service: &str) -> PathBuf {
        self.directory.join("eds").join(format!("{service}.json"))
    }

    /// Path of Prometheus' file.
    pub(super) fn prometheus(&self) -> PathBuf {
        self.directory.join("prometheus.json")
    }
}

/// Reads the directory; makes it when it does not exist.
pub(super) fn load(directory: &Path) -> Result<(Files, Vec<SetAside>), DiscoveryError> {
    let eds_directory = directory.join("eds");
    fs::create_dir_all(&eds_directory)
        .map_err(|source| failed("make the directory", &eds_directory, source))?;
    let mut files = Files {
        directory: directory.to_owned(),
        table: Table::default(),
        versions: BTreeMap::new(),
        unsettled: BTreeSet::new(),
    };
    let mut aside = Vec::new();
    remove_unfinished(directory)?;
    remove_unfinished(&eds_directory)?;
    for path in json_files(&eds_directory)? {
        let service = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default()
            .to_owned();
        if !is_service_name(&service) {
            aside.push(set_aside(&path, "its name is no service name".to_owned())?);
            continue;
        }
        let bytes = fs::read(&path).map_err(|source| failed("read", &path, source))?;
        match eds::read(&service, &bytes) {
            Ok(file) => files.take(service, file),
            Err(reason) => {
                aside.push(set_aside(&path, chain(&reason))?);
                // Clients still watch this file: it comes back without endpoints.
                files.versions.insert(service.clone(), 0);
                files.unsettled.insert(service);
            }
        }
    }
    let path = files.prometheus();
    match fs::read(&path) {
        Ok(bytes) if !prometheus::is_ours(&bytes) => {
            aside.push(set_aside(
                &path,
                "it is not a target file of ours, or not whole".to_owned(),
            )?);
        }
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(failed("read", &path, source));
        }
        _ => {}
    }
    Ok((files, aside))
}

impl Files {
    fn take(&mut self, service: String, file: eds::ServiceFile) {
        for record in file.records {
            // One instance in two files: a write was cut off between them; the higher generation
            // stands, and both files are written again.
            let other = self
                .table
                .get(&record.instance)
                .map(|present| present.service.clone());
            let outcome = self.table.register(Arc::new(record));
            if other.is_some() || outcome != Outcome::Applied {
                self.unsettled.extend(other);
                self.unsettled.insert(service.clone());
            }
        }
        self.versions.insert(service, file.version);
    }
}

fn json_files(directory: &Path) -> Result<Vec<PathBuf>, DiscoveryError> {
    let mut found = entries(directory)?;
    found.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    found.sort();
    Ok(found)
}

fn remove_unfinished(directory: &Path) -> Result<(), DiscoveryError> {
    for path in entries(directory)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') && name.ends_with(UNFINISHED) {
            fs::remove_file(&path)
                .map_err(|source| failed("remove the unfinished file", &path, source))?;
        }
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, DiscoveryError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    list().map_err(|source| failed("list", directory, source))
}

fn set_aside(from: &Path, reason: String) -> Result<SetAside, DiscoveryError> {
    let name = from.file_name().unwrap_or_default().to_string_lossy();
    // The name must be free: what was set aside before is evidence too.
    let to = (1..u32::MAX)
        .map(|n| from.with_file_name(format!("{name}.set-aside-{n}")))
        .find(|candidate| candidate.symlink_metadata().is_err())
        .ok_or_else(|| failed("set aside", from, io::ErrorKind::AlreadyExists.into()))?;
    fs::rename(from, &to).map_err(|source| failed("set aside", from, source))?;
    Ok(SetAside {
        from: from.to_owned(),
        to,
        reason,
    })
}
