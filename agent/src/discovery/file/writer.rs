//! The one that writes: batches in, whole files out, answers after.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::failed;
use super::load::{Files, UNFINISHED};
use crate::discovery::{
    Change, DiscoveryError, Outcome, RegistrationRecord, Table, eds, prometheus,
};
use crate::instance::InstanceName;

type Answer<T> = oneshot::Sender<Result<T, DiscoveryError>>;

/// What the writer is asked for.
pub(super) enum Job {
    Write {
        changes: Vec<Change>,
        answer: Answer<Vec<Outcome>>,
    },
    Renew {
        answer: Answer<()>,
    },
    List {
        answer: Answer<Vec<RegistrationRecord>>,
    },
}

/// A record as it stands in the files, so that a change of one costs the rendering of one.
struct Rendered {
    record: Arc<RegistrationRecord>,
    group: String,
    endpoint: String,
}

/// Owner of the files.
pub(super) struct Writer {
    files: Files,
    rendered: HashMap<InstanceName, Rendered>,
}

impl Writer {
    pub(super) fn new(files: Files) -> Self {
        Self {
            files,
            rendered: HashMap::new(),
        }
    }

    /// Does jobs that wait at the same time; their changes share one write.
    pub(super) fn work(&mut self, jobs: impl IntoIterator<Item = Job>) {
        let mut writes = Vec::new();
        for job in jobs {
            match job {
                Job::Write { changes, answer } => writes.push((changes, answer)),
                // These see what was asked for before them.
                Job::Renew { answer } => {
                    self.commit(std::mem::take(&mut writes));
                    self.find_missing();
                    say(answer, self.settle());
                }
                Job::List { answer } => {
                    self.commit(std::mem::take(&mut writes));
                    let records = self.files.table.records();
                    say(answer, Ok(records.map(|r| r.as_ref().clone()).collect()));
                }
            }
        }
        self.commit(writes);
    }

    /// Writes every file that does not say what the table says.
    pub(super) fn settle(&mut self) -> Result<(), DiscoveryError> {
        let table = self.files.table.clone();
        let content = self.prometheus_content(&table)?;
        let path = self.files.prometheus();
        if self.files.unsettled.is_empty()
            && fs::read(&path).is_ok_and(|present| present == content)
        {
            return Ok(());
        }
        self.write(&table, BTreeSet::new())
    }

    fn commit(&mut self, writes: Vec<(Vec<Change>, Answer<Vec<Outcome>>)>) {
        let mut table = self.files.table.clone();
        let mut touched = BTreeSet::new();
        let mut answers = Vec::with_capacity(writes.len());
        for (changes, answer) in writes {
            let outcomes = changes.into_iter().map(|change| {
                let instance = change.instance().clone();
                let before = table.get(&instance).cloned();
                let outcome = change.apply(&mut table);
                let after = table.get(&instance);
                if before.as_ref() != after {
                    touched.extend(
                        before
                            .iter()
                            .chain(after)
                            .map(|record| record.service.clone()),
                    );
                }
                outcome
            });
            answers.push((outcomes.collect(), answer));
        }
        let written = if touched.is_empty() && self.files.unsettled.is_empty() {
            Ok(())
        } else {
            self.write(&table, touched)
        };
        match written {
            Ok(()) => {
                self.files.table = table;
                answers
                    .into_iter()
                    .for_each(|(outcomes, answer)| say(answer, Ok(outcomes)));
            }
            Err(error) => {
                tracing::warn!(%error, "discovery files could not be written");
                answers
                    .into_iter()
                    .for_each(|(_, answer)| say(answer, Err(again(&error))));
            }
        }
    }

    /// Writes `table` to Prometheus' file and to the files of `touched` and unsettled services. All
    /// are written beside their places before the first is put there, so that a full disk changes
    /// nothing.
    fn write(
        &mut self,
        table: &Table,
        mut touched: BTreeSet<String>,
    ) -> Result<(), DiscoveryError> {
        touched.extend(self.files.unsettled.iter().cloned());
        let mut contents = Vec::with_capacity(touched.len() + 1);
        let last = (self.files.prometheus(), self.prometheus_content(table)?);
        for service in &touched {
            let version = self.files.versions.get(service).copied().unwrap_or(0) + 1;
            let lines = table
                .records()
                .filter(|record| record.service == *service)
                .filter_map(|record| self.rendered.get(&record.instance))
                .map(|rendered| rendered.endpoint.as_str());
            contents.push((self.files.eds(service), eds::file(service, version, lines)));
        }
        contents.push(last);
        let unfinished = contents
            .iter()
            .map(|(path, content)| write_beside(path, content))
            .collect::<Result<Vec<_>, _>>()?;
        // From here on a file may be ahead of the table until all of it has succeeded.
        self.files.unsettled.clone_from(&touched);
        for (beside, (path, _)) in unfinished.iter().zip(&contents) {
            fs::rename(beside, path).map_err(|source| failed("replace", path, source))?;
        }
        for service in touched {
            *self.files.versions.entry(service).or_default() += 1;
        }
        self.files.unsettled.clear();
        Ok(())
    }

    fn prometheus_content(&mut self, table: &Table) -> Result<Vec<u8>, DiscoveryError> {
        self.render(table)
            .map_err(|error| failed("render", &self.files.prometheus(), io::Error::from(error)))?;
        let lines = table
            .records()
            .filter_map(|record| self.rendered.get(&record.instance))
            .map(|rendered| rendered.group.as_str());
        Ok(prometheus::file(lines))
    }

    fn render(&mut self, table: &Table) -> Result<(), serde_json::Error> {
        for record in table.records() {
            let present = self.rendered.get(&record.instance);
            if present.is_none_or(|rendered| !Arc::ptr_eq(&rendered.record, record)) {
                let rendered = Rendered {
                    record: Arc::clone(record),
                    group: prometheus::group(record)?,
                    endpoint: eds::endpoint(record)?,
                };
                self.rendered.insert(record.instance.clone(), rendered);
            }
        }
        self.rendered
            .retain(|instance, _| table.get(instance).is_some());
        Ok(())
    }

    fn find_missing(&mut self) {
        let missing = self
            .files
            .versions
            .keys()
            .filter(|service| !self.files.eds(service).exists());
        let missing: Vec<String> = missing.cloned().collect();
        self.files.unsettled.extend(missing);
    }
}

/// Writes a file beside its place and returns where.
fn write_beside(path: &Path, content: &[u8]) -> Result<PathBuf, DiscoveryError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}{UNFINISHED}"));
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&beside)?;
        file.write_all(content)
    };
    if let Err(source) = write() {
        // On a full disk the half that was written is in the way; the first error is the one to tell.
        let _ = fs::remove_file(&beside);
        return Err(failed("write", &beside, source));
    }
    Ok(beside)
}

/// The same error for each of several callers.
fn again(error: &DiscoveryError) -> DiscoveryError {
    match error {
        DiscoveryError::File {
            operation,
            path,
            source,
        } => {
            let source = match source.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(source.kind(), source.to_string()),
            };
            DiscoveryError::File {
                operation,
                path: path.clone(),
                source,
            }
        }
        _ => DiscoveryError::WriterEnded {
            backend: super::NAME,
        },
    }
}

/// Answers; a caller that went away reads the outcome by `registered`.
fn say<T>(answer: Answer<T>, result: Result<T, DiscoveryError>) {
    drop(answer.send(result));
}
