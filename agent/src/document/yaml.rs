//! YAML (and so JSON) text -> tree. One document, limits against documents that grow when read.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error, Spanned, from_str_with_options};

use super::{Entry, Finding, MAX_BYTES, MAX_DEPTH, Node, Place, Value};

/// The tree of a YAML text.
///
/// Doubled keys stay in the tree: [`read`](super::read) reports each of them with its path.
/// The error is the one finding that kept the text from being read at all.
pub(crate) fn from_yaml(text: &str) -> Result<Node, Finding> {
    if text.len() > MAX_BYTES {
        return Err(Finding::new(
            "",
            Some(format!("a document of {} bytes", text.len())),
            format!("at most {MAX_BYTES} bytes"),
        ));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_documents: 2,
            max_nodes: 50_000,
            max_events: 200_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 50_000,
            max_total_scalar_bytes: MAX_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 8,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `value: no` is a text, as Kubernetes' readers of YAML 1.2 have it.
        strict_booleans: true,
        // A tag such as `!secret` would be dropped without a word.
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let root: Spanned<Raw> =
        from_str_with_options(text, options).map_err(|error| refusal(&error))?;
    if matches!(root.value, Raw::Scalar(Value::Null)) {
        return Err(Finding::new("", None, EMPTY));
    }
    Ok(node(root))
}

const EMPTY: &str = "the document is empty";

fn refusal(error: &Error) -> Finding {
    let error = error.without_snippet();
    let sentence = match error {
        Error::MultipleDocuments { .. } => {
            "one document only: split the file at its `---`".to_owned()
        }
        Error::Budget { breach, .. } => {
            format!("cannot be read as YAML: larger or deeper than a manifest may be ({breach:?})")
        }
        Error::Eof { .. } => EMPTY.to_owned(),
        other => format!("cannot be read as YAML: {}", other.to_string().trim_end()),
    };
    let finding = Finding::new("", None, sentence);
    match error.location().map(|location| location.line()) {
        Some(line) if line > 0 => finding.at(&place(line)),
        _ => finding,
    }
}

fn place(line: u64) -> Place {
    Place {
        file: None,
        line: usize::try_from(line).unwrap_or(usize::MAX),
    }
}

fn node(raw: Spanned<Raw>) -> Node {
    let value = match raw.value {
        Raw::Scalar(value) => value,
        Raw::List(items) => Value::List(items.into_iter().map(node).collect()),
        Raw::Table(entries) => Value::Table(
            entries
                .into_iter()
                .map(|(key, value)| Entry {
                    place: place(key.referenced.line()),
                    key: key.value,
                    node: node(value),
                })
                .collect(),
        ),
    };
    Node {
        place: place(raw.referenced.line()),
        value,
    }
}

/// What the YAML reader hands over: scalars are done, the rest carries locations.
enum Raw {
    Scalar(Value),
    List(Vec<Spanned<Raw>>),
    Table(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Integer(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Integer(value.into())))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Integer(value)))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Raw, E> {
        i128::try_from(value)
            .map(|value| Raw::Scalar(Value::Integer(value)))
            .map_err(|_| E::custom("a number of more than 127 bits"))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Text(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Text(value)))
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Raw, E> {
        Err(E::custom("binary values are not allowed"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut table = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            table.push(entry);
            if table.len() > 50_000 {
                return Err(A::Error::custom("too many entries"));
            }
        }
        Ok(Raw::Table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_line() {
        let root = from_yaml("a: 1\nb:\n  - x\n  - y: true\n").unwrap();
        let places = root.places();
        let line = |path: &str| places[path].line;
        assert_eq!(
            (line("a"), line("b"), line("b[0]"), line("b[1].y")),
            (1, 2, 3, 4)
        );
    }

    #[test]
    fn scalars_keep_the_type_that_was_written() {
        let root = from_yaml("[1, -2, 0.5, true, no, '1', ~, 18446744073709551615]").unwrap();
        let Value::List(items) = root.value else {
            panic!("a list was written")
        };
        let values: Vec<Value> = items.into_iter().map(|item| item.value).collect();
        assert_eq!(
            values,
            [
                Value::Integer(1),
                Value::Integer(-2),
                Value::Float(0.5),
                Value::Bool(true),
                Value::Text("no".into()),
                Value::Text("1".into()),
                Value::Null,
                Value::Integer(u64::MAX.into()),
            ]
        );
    }

    #[test]
    fn json_is_yaml() {
        let json = from_yaml("{\"a\": [1, \"x\"], \"b\": null}").unwrap();
        assert!(json.places().contains_key("a[1]"));
    }

    #[test]
    fn a_merged_key_may_be_overridden_and_is_not_twice_there() {
        let root = from_yaml("base: &b {x: 1, y: 2}\nover:\n  <<: *b\n  x: 3\n").unwrap();
        let Value::Table(entries) = root.value else {
            panic!("a table was written")
        };
        let Value::Table(over) = &entries[1].node.value else {
            panic!("a table was written")
        };
        let mut keys: Vec<&str> = over.iter().map(|entry| entry.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["x", "y"]);
    }

    #[test]
    fn a_tag_of_somebody_else_is_refused() {
        let finding = from_yaml("a: !secret x\n").unwrap_err();
        assert!(
            finding.allowed.starts_with("cannot be read as YAML"),
            "{finding}"
        );
    }

    #[test]
    fn a_second_document_is_refused() {
        let finding = from_yaml("a: 1\n---\nb: 2\n").unwrap_err();
        assert!(finding.allowed.contains("one document only"), "{finding}");
    }

    #[test]
    fn broken_yaml_names_the_line() {
        let finding = from_yaml("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(
            finding.allowed.starts_with("cannot be read as YAML"),
            "{finding}"
        );
        assert!(finding.line.is_some(), "{finding}");
    }

    #[test]
    fn a_billion_laughs_are_refused_before_they_grow() {
        let mut text = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
        for level in 1..10 {
            let list = format!("*a{}, ", level - 1).repeat(10);
            text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        let finding = from_yaml(&text).unwrap_err();
        assert!(
            finding.allowed.starts_with("cannot be read as YAML"),
            "{finding}"
        );
    }

    #[test]
    fn a_tower_of_brackets_is_refused_without_a_stack_overflow() {
        for text in [
            "[".repeat(100_000),
            "{a: ".repeat(100_000),
            "- ".repeat(100_000),
        ] {
            assert!(
                from_yaml(&text)
                    .unwrap_err()
                    .allowed
                    .starts_with("cannot be read")
            );
        }
    }

    #[test]
    fn a_document_above_the_limit_is_refused_unread() {
        let finding = from_yaml(&"#".repeat(MAX_BYTES + 1)).unwrap_err();
        assert_eq!(
            finding.to_string(),
            "a document of 1048577 bytes is not allowed; allowed: at most 1048576 bytes"
        );
    }
}
