//! Environment files: what `envFrom` reads from the host.
//!
//! UTF-8 text of lines `NAME=value`. Blank lines, and lines that begin with `#`, say nothing. The
//! value is everything behind the first `=`, as it stands: no quotes, no escapes, no references,
//! spaces included. A line that is none of these, or that names a variable twice, makes the whole
//! file wrong.

use std::collections::BTreeMap;

use super::validate::{ENV_NAME, is_env_name, is_reserved};

/// A file of the host whose variables the app gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvFile {
    /// Absolute path on the host.
    pub path: String,
    /// Put before each name.
    pub prefix: String,
    /// Whether the file may be missing.
    pub optional: bool,
}

/// A line that says nothing that could be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} {mistake}")]
pub struct WrongLine {
    /// From 1.
    pub line: usize,
    /// A sentence without its subject; never the value, which may be a secret by mistake.
    pub mistake: String,
}

/// The variables of a file, in order, each name with `prefix` before it.
///
/// # Errors
/// [`WrongLine`] for the first one.
pub fn variables(text: &[u8], prefix: &str) -> Result<Vec<(String, String)>, WrongLine> {
    let mut seen = BTreeMap::new();
    let mut variables = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let wrong = |mistake: String| WrongLine {
            line: index + 1,
            mistake,
        };
        let line = str::from_utf8(line).map_err(|_| wrong("is not UTF-8".to_owned()))?;
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            return Err(wrong("has no '='; allowed: NAME=value".to_owned()));
        };
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(wrong(
                "has a control character; a line ends in a line feed alone".to_owned(),
            ));
        }
        let name = format!("{prefix}{name}");
        if !is_env_name(&name) {
            return Err(wrong(format!(
                "has the name {name:?}, which is not allowed; allowed: {ENV_NAME}"
            )));
        }
        if is_reserved(&name) {
            return Err(wrong(format!("sets {name}, which the agent sets")));
        }
        if let Some(first) = seen.insert(name.clone(), index + 1) {
            return Err(wrong(format!("sets {name} again, first on line {first}")));
        }
        variables.push((name, value.to_owned()));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_everything_behind_the_first_equals_sign() {
        let text = b"# a comment\n\nA=1\nB= \"x y\"=$(A) # no comment\nC=\n  \nD=\ttab";
        let expected = [
            ("P_A", "1"),
            ("P_B", " \"x y\"=$(A) # no comment"),
            ("P_C", ""),
            ("P_D", "\ttab"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(variables(text, "P_").unwrap(), expected);
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number_and_its_value_is_not_told() {
        for (text, expected) in [
            ("A=1\nexport", "line 2 has no '='; allowed: NAME=value"),
            (
                "A=1\r\n",
                "line 1 has a control character; a line ends in a line feed alone",
            ),
            ("A=1\n\nA=2", "line 3 sets A again, first on line 1"),
            (
                "NODEAGENT_X=secret",
                "line 1 sets NODEAGENT_X, which the agent sets",
            ),
        ] {
            assert_eq!(
                variables(text.as_bytes(), "").unwrap_err().to_string(),
                expected
            );
        }
        let named = variables(b"export A=secret", "").unwrap_err().to_string();
        assert!(named.starts_with("line 1 has the name \"export A\"") && !named.contains("secret"));
        assert_eq!(variables(b"A=1\n\xff=2", "").unwrap_err().line, 2);
    }
}
