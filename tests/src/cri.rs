//! Log files in the format of the Container Runtime Interface, read without the agent: evidence
//! beside what it says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::host::TestHost;

/// One line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// `2016-10-06T00:17:09.669794202Z`.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// Whether the line ends with it.
    pub is_full: bool,
    /// As it was written.
    pub text: &'a str,
}

impl<'a> Record<'a> {
    fn parse(line: &'a str) -> Result<Self> {
        let mut fields = line.splitn(4, ' ');
        let mut field = |what: &str| {
            let field = fields.next();
            field.with_context(|| format!("{line:?} has no {what}"))
        };
        let record = Self {
            time: field("time")?,
            stream: field("stream")?,
            is_full: field("tag")? == "F",
            text: field("text")?,
        };
        ensure!(
            record.time.len() == 30 && record.time.ends_with('Z'),
            "{:?} of {line:?} is no time",
            record.time
        );
        ensure!(
            matches!(record.stream, "stdout" | "stderr"),
            "{:?} of {line:?} is no stream",
            record.stream
        );
        Ok(record)
    }
}

/// The records of a file; fails on what is none.
pub fn records(file: &str) -> Result<Vec<Record<'_>>> {
    file.lines().map(Record::parse).collect()
}

/// What was written to get this file: its records without what stands before their texts.
pub fn text(file: &str) -> Result<String> {
    let mut text = String::new();
    for record in records(file)? {
        text.push_str(record.text);
        if record.is_full {
            text.push('\n');
        }
    }
    Ok(text)
}

impl TestHost {
    /// The log files of a process in a container, the oldest first. Only of a process that does not
    /// write just now: a rotation between two looks is not noticed.
    pub fn log_files(&self, container: &str, process: &str) -> Result<Vec<PathBuf>> {
        let directory = self.agent.state().join("instances").join(container);
        let log = directory.join("log").join(format!("{process}.log"));
        let rotated = |number: u32| PathBuf::from(format!("{}.{number}", log.display()));
        let mut files = vec![log.clone()];
        files.extend((1..).map(rotated).take_while(|file| file.exists()));
        files.reverse();
        Ok(files)
    }

    /// The text of a process's log.
    pub fn log_text(&self, container: &str, process: &str) -> Result<String> {
        let files = self.log_files(container, process)?;
        let texts = files.iter().map(|file| text(&read(file)?));
        texts.collect()
    }
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_and_what_is_no_record_fails() {
        let time = "2016-10-06T00:17:09.669794202Z";
        let file = format!("{time} stdout P a b\n{time} stdout F  c\n{time} stderr F \n");
        assert_eq!(text(&file).unwrap(), "a b c\n\n");
        for bad in [
            "plain",
            "x stdout F text",
            "2016-10-06T00:17:09.669794202Z both F text",
        ] {
            assert!(records(bad).is_err(), "{bad}");
        }
    }
}
