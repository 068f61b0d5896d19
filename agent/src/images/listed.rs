//! The file that names images which belong on this host: one a line, `#` begins a comment.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use imagecache::Reference;

/// Most images that the file may name.
const MOST: usize = 1000;

/// Why the file is not used. What it said before holds.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is no name.
    #[error("{path}:{line}: {text:?} is not the name of an image like registry.lan/web:1: {why}")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// The line.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// There are too many.
    #[error("{path} names more than {MOST} images")]
    TooMany {
        /// The file.
        path: String,
    },
}

/// The images that the file names, each once, in its order. A file that is not there names none.
pub fn read(path: &Path) -> Result<Vec<Reference>, ListError> {
    let name = || path.display().to_string();
    match fs::read_to_string(path) {
        Ok(text) => parse(&name(), &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(ListError::Read {
            path: name(),
            source,
        }),
    }
}

fn parse(path: &str, text: &str) -> Result<Vec<Reference>, ListError> {
    let mut known = BTreeSet::new();
    let mut images = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let reference: Reference = entry.parse().map_err(|error| ListError::Line {
            path: path.to_owned(),
            line: index + 1,
            text: entry.to_owned(),
            why: crate::chain::chain(&error),
        })?;
        if known.insert(reference.to_string()) {
            images.push(reference);
        }
    }
    match images.len() <= MOST {
        true => Ok(images),
        false => Err(ListError::TooMany {
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_images_and_the_rest_is_said() {
        let text = "# base images\nr.lan/base:1\n\n  r.lan/web:2 # the shop\nr.lan/base:1\n";
        let names: Vec<String> = parse("list", text)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["r.lan/base:1", "r.lan/web:2"]);
        let error = parse("/etc/images", "r.lan/web:1\nr.lan/WEB:1\n").unwrap_err();
        let said = error.to_string();
        assert!(
            said.starts_with("/etc/images:2: \"r.lan/WEB:1\" is not the name of an image"),
            "{said}"
        );
        let many: String = (0..=MOST).map(|n| format!("r.lan/web:{n}\n")).collect();
        assert!(matches!(
            parse("list", &many),
            Err(ListError::TooMany { .. })
        ));
    }

    #[test]
    fn a_file_that_is_not_there_names_nothing() {
        assert!(read(Path::new("/nonexistent/images")).unwrap().is_empty());
        assert!(matches!(
            read(Path::new("/proc/self")),
            Err(ListError::Read { .. })
        ));
    }
}
