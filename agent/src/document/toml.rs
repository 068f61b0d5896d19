//! TOML text -> tree.

use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::{Entry, Finding, MAX_BYTES, Node, Place, Value};

/// The tree of the TOML text in `file`, or everything that keeps it from being TOML.
pub(crate) fn from_toml(text: &str, file: Arc<Path>) -> Result<Node, Vec<Finding>> {
    let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
    let source = Source {
        line_ends: newlines.map(|(offset, _)| offset).collect(),
        file,
    };
    if text.len() > MAX_BYTES {
        let finding = Finding::new(
            "",
            Some(format!("a file of {} bytes", text.len())),
            format!("at most {MAX_BYTES} bytes"),
        );
        return Err(vec![finding.at(&source.place(0))]);
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Node {
            place: source.place(0),
            value: source.table(table.get_ref()),
        });
    }
    let findings = errors.iter().map(|error| {
        let sentence = format!(
            "cannot be read as TOML: {}",
            error.message().replace('\n', ", ")
        );
        let start = error.span().map_or(0, |span| span.start);
        Finding::new("", None, sentence).at(&source.place(start))
    });
    Err(findings.collect())
}

struct Source {
    /// Offset of each newline, so that a place is found without counting from the top.
    line_ends: Vec<usize>,
    file: Arc<Path>,
}

impl Source {
    fn place(&self, offset: usize) -> Place {
        Place {
            file: Some(Arc::clone(&self.file)),
            line: self.line_ends.partition_point(|end| *end < offset) + 1,
        }
    }

    fn table(&self, table: &DeTable<'_>) -> Value {
        let mut entries: Vec<(usize, Entry)> = table
            .iter()
            .map(|(key, value)| {
                let entry = Entry {
                    key: key.get_ref().to_string(),
                    place: self.place(key.span().start),
                    node: Node {
                        place: self.place(value.span().start),
                        value: self.value(value.get_ref()),
                    },
                };
                (key.span().start, entry)
            })
            .collect();
        entries.sort_by_key(|(start, _)| *start);
        Value::Table(entries.into_iter().map(|(_, entry)| entry).collect())
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Value::Text(number.to_string()), Value::Integer),
            DeValue::Float(number) => number
                .as_str()
                .parse()
                .map_or_else(|_| Value::Text(number.to_string()), Value::Float),
            DeValue::Boolean(value) => Value::Bool(*value),
            // No key of ours is a date; as text it is refused with its own spelling.
            DeValue::Datetime(time) => Value::Text(time.to_string()),
            DeValue::Array(items) => Value::List(
                items
                    .iter()
                    .map(|item| Node {
                        place: self.place(item.span().start),
                        value: self.value(item.get_ref()),
                    })
                    .collect(),
            ),
            DeValue::Table(table) => self.table(table),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Node, Vec<Finding>> {
        from_toml(text, Path::new("/etc/x.toml").into())
    }

    #[test]
    fn every_key_knows_its_file_and_line() {
        let root = parse("version = 1\n\n[host]\nid = \"a\"\n").unwrap();
        let places = root.places();
        assert_eq!((places["version"].line, places["host.id"].line), (1, 4));
        assert_eq!(
            places["host.id"].file.as_deref(),
            Some(Path::new("/etc/x.toml"))
        );
    }

    #[test]
    fn broken_toml_names_file_and_line() {
        let findings = parse("version = 1\n[host\nid = \"a\"\n").unwrap_err();
        let first = findings[0].to_string();
        assert!(
            first.starts_with("/etc/x.toml:2: cannot be read as TOML: "),
            "{first}"
        );
    }

    #[test]
    fn a_tower_of_brackets_is_refused_without_a_stack_overflow() {
        let findings = parse(&format!("a = {}", "[".repeat(100_000))).unwrap_err();
        assert!(findings[0].allowed.starts_with("cannot be read as TOML"));
    }
}
