//! The tree of a document: values with their places.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file; none for text that came by the API.
    pub(crate) file: Option<Arc<Path>>,
    /// Line from 1.
    pub(crate) line: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What YAML and TOML have in common.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// YAML's null: the field counts as absent, as in Kubernetes.
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
    /// A value that has its finding already and is passed over when the tree is read again.
    Faulty,
}

/// One `key: value` of a table; keys may come twice until the table is read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Where the key stands.
    pub(crate) place: Place,
    pub(crate) node: Node,
}

impl Node {
    /// Path of every field -> where it stands.
    pub(crate) fn places(&self) -> BTreeMap<String, Place> {
        let mut places = BTreeMap::new();
        self.collect("", &mut places);
        places
    }

    fn collect(&self, path: &str, places: &mut BTreeMap<String, Place>) {
        match &self.value {
            Value::Table(entries) => {
                for entry in entries {
                    let path = join_key(path, &entry.key);
                    places
                        .entry(path.clone())
                        .or_insert_with(|| entry.place.clone());
                    entry.node.collect(&path, places);
                }
            }
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = join_index(path, index);
                    places.insert(path.clone(), item.place.clone());
                    item.collect(&path, places);
                }
            }
            _ => {}
        }
    }

    /// The node that `route` (positions of entries and items) leads to.
    pub(crate) fn descend(&mut self, route: &[usize]) -> Option<&mut Self> {
        let mut node = self;
        for &step in route {
            node = match &mut node.value {
                Value::Table(entries) => &mut entries.get_mut(step)?.node,
                Value::List(items) => items.get_mut(step)?,
                _ => return None,
            };
        }
        Some(node)
    }
}

/// `path.key`; a key with unusual characters is quoted.
pub(crate) fn join_key(path: &str, key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if key.is_empty() || !key.chars().all(plain) {
        format!("{path}[{}]", shown(key))
    } else if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// `path[index]`.
pub(crate) fn join_index(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// Text in quotes, control characters escaped, shortened to 80 characters.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{:?} (shortened)", &text[..cut]),
        None => format!("{text:?}"),
    }
}

impl Value {
    /// The value for a message.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Null | Self::Faulty => "nothing".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(value) => shown(value),
            Self::List(items) => format!("a list of {}", items.len()),
            Self::Table(_) => "a table".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_quotes_only_keys_that_need_it() {
        assert_eq!(join_key("metadata.labels", "tier"), "metadata.labels.tier");
        assert_eq!(
            join_key("metadata.labels", "a.b/c"),
            "metadata.labels[\"a.b/c\"]"
        );
        assert_eq!(join_key("", "spec"), "spec");
    }

    #[test]
    fn a_long_value_is_shortened_at_a_character() {
        let long = "ü".repeat(200);
        assert!(shown(&long).ends_with("(shortened)"));
        assert_eq!(shown(&long).matches('ü').count(), 80);
    }
}
