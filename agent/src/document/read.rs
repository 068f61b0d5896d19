//! Tree -> serde shape, with all mistakes at once.
//!
//! serde stops at the first error. So the tree is read; the value at fault gets its finding and is
//! passed over; and the tree is read again, until it reads without a fault. Shapes therefore have
//! only optional fields: what is missing is for validation to say.

use std::collections::HashMap;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, Unexpected,
    Visitor,
};
use serde::forward_to_deserialize_any;

use super::finding::MAX_FINDINGS;
use super::node::{join_index, join_key};
use super::suggest::{one_of, unknown_field};
use super::{Entry, Finding, Node, Value};

/// Reads `root` as a `T`. The shape lacks what has a finding; it is `None` when the root itself
/// is at fault or the findings were too many.
pub(crate) fn read<T: DeserializeOwned>(root: &Node) -> (Option<T>, Vec<Finding>) {
    let mut tree = root.clone();
    let mut findings = Vec::new();
    while findings.len() < MAX_FINDINGS {
        let fault = match T::deserialize(Reader::root(&tree)) {
            Ok(shape) => return (Some(shape), findings),
            Err(fault) => fault,
        };
        let route = fault.route.clone().unwrap_or_default();
        let Some(node) = tree.descend(&route) else {
            break;
        };
        let place = fault.place.unwrap_or_else(|| Box::new(node.place.clone()));
        findings.push(Finding::new(fault.field, fault.value, fault.allowed).at(&place));
        if route.is_empty() {
            break;
        }
        node.value = Value::Faulty;
    }
    (None, findings)
}

/// Why reading stopped; `route` is set once the node at fault is known.
#[derive(Debug)]
struct Fault {
    route: Option<Vec<usize>>,
    field: String,
    /// Of the key, where the key is at fault. Boxed, because errors are moved about a lot.
    place: Option<Box<super::Place>>,
    value: Option<String>,
    allowed: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.allowed)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            route: None,
            field: String::new(),
            place: None,
            value: None,
            allowed: message.to_string(),
        }
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(expected)
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(expected)
    }
}

/// A position in the tree: the node, its path for people, its route for the tree.
#[derive(Clone)]
struct Reader<'a> {
    node: &'a Node,
    field: String,
    route: Vec<usize>,
}

impl<'a> Reader<'a> {
    fn root(node: &'a Node) -> Self {
        Self {
            node,
            field: String::new(),
            route: Vec::new(),
        }
    }

    fn child(&self, step: usize, field: String, node: &'a Node) -> Self {
        let mut route = self.route.clone();
        route.push(step);
        Self { node, field, route }
    }

    /// The fault of this very node.
    fn fault(&self, allowed: impl Into<String>) -> Fault {
        Fault {
            route: Some(self.route.clone()),
            field: self.field.clone(),
            place: None,
            value: Some(self.node.value.shown()),
            allowed: allowed.into(),
        }
    }

    /// A fault that came from a visitor gets this node as its place.
    fn located(&self, fault: Fault) -> Fault {
        match fault.route {
            Some(_) => fault,
            None => self.fault(fault.allowed),
        }
    }

    fn visit<T>(&self, visited: Result<T, Fault>) -> Result<T, Fault> {
        visited.map_err(|fault| self.located(fault))
    }

    fn table(&self) -> Result<&'a [Entry], Fault> {
        match &self.node.value {
            Value::Table(entries) => Ok(entries),
            _ => Err(self.fault("a table of fields")),
        }
    }

    /// Keys must be different, and among `known` when that is given.
    fn check_keys(&self, entries: &'a [Entry], known: Option<&[&str]>) -> Result<(), Fault> {
        let mut seen = HashMap::new();
        for (step, entry) in entries.iter().enumerate() {
            if matches!(entry.node.value, Value::Faulty) {
                continue;
            }
            let refuse = |allowed: String| Fault {
                place: Some(Box::new(entry.place.clone())),
                value: None,
                ..self
                    .child(step, join_key(&self.field, &entry.key), &entry.node)
                    .fault(allowed)
            };
            if let Some(known) = known
                && !known.contains(&entry.key.as_str())
            {
                return Err(refuse(unknown_field(&entry.key, known)));
            }
            if let Some(first) = seen.insert(entry.key.as_str(), entry.place.line) {
                return Err(refuse(format!("written twice, first on line {first}")));
            }
        }
        Ok(())
    }

    fn visit_entries<'de, V: Visitor<'de>>(
        self,
        entries: &'a [Entry],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let access = Children {
            reader: self.clone(),
            next: 0,
            keys: Some(entries),
            len: entries.len(),
        };
        self.visit(visitor.visit_map(access))
    }
}

macro_rules! whole_numbers {
    ($($method:ident $visit:ident $number:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let fits = match self.node.value {
                Value::Integer(number) => <$number>::try_from(number).ok(),
                _ => None,
            };
            match fits {
                Some(number) => self.visit(visitor.$visit(number)),
                None => Err(self.fault(format!("a whole number, {} to {}", <$number>::MIN, <$number>::MAX))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let visited = match &self.node.value {
            Value::Null | Value::Faulty => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i128(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_str(value),
            Value::List(_) => return self.deserialize_seq(visitor),
            Value::Table(_) => return self.deserialize_map(visitor),
        };
        self.visit(visited)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Bool(value) => self.visit(visitor.visit_bool(value)),
            _ => Err(self.fault("true or false")),
        }
    }

    whole_numbers! {
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_i64 visit_i64 i64;
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Text(text) => self.visit(visitor.visit_str(text)),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                Err(self.fault("text (put the value in quotes)"))
            }
            _ => Err(self.fault("text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Value::List(items) = &self.node.value else {
            return Err(self.fault("a list"));
        };
        let access = Children {
            reader: self.clone(),
            next: 0,
            keys: None,
            len: items.len(),
        };
        self.visit(visitor.visit_seq(access))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let entries = self.table()?;
        self.check_keys(entries, None)?;
        self.visit_entries(entries, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let entries = self.table()?;
        self.check_keys(entries, Some(fields))?;
        self.visit_entries(entries, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Text(text) if variants.contains(&text.as_str()) => {
                let word: StrDeserializer<'_, Fault> = text.as_str().into_deserializer();
                self.visit(visitor.visit_enum(word))
            }
            Value::Text(text) => Err(self.fault(one_of(text, variants))),
            _ => Err(self.fault(one_of("", variants))),
        }
    }

    forward_to_deserialize_any! {
        i32 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

/// The entries of a table or the items of a list, without those that have their finding.
struct Children<'a> {
    reader: Reader<'a>,
    next: usize,
    keys: Option<&'a [Entry]>,
    len: usize,
}

impl<'a> Children<'a> {
    /// Moves to the next child that is worth reading; a null in a table counts as absent.
    fn advance(&mut self) -> Option<Reader<'a>> {
        while self.next < self.len {
            let step = self.next;
            let (node, field) = match (&self.reader.node.value, self.keys) {
                (Value::List(items), _) => (&items[step], join_index(&self.reader.field, step)),
                (_, Some(keys)) => {
                    let entry = &keys[step];
                    (&entry.node, join_key(&self.reader.field, &entry.key))
                }
                _ => return None,
            };
            if !matches!(node.value, Value::Faulty) {
                return Some(self.reader.child(step, field, node));
            }
            self.next += 1;
        }
        None
    }
}

impl<'de> de::SeqAccess<'de> for Children<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some(child) = self.advance() else {
            return Ok(None);
        };
        self.next += 1;
        let read = seed.deserialize(child.clone());
        child.visit(read).map(Some)
    }
}

impl<'de> de::MapAccess<'de> for Children<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let Some(child) = self.advance() else {
            return Ok(None);
        };
        let Some(entry) = self.keys.and_then(|keys| keys.get(self.next)) else {
            return Ok(None);
        };
        let key: StrDeserializer<'_, Fault> = entry.key.as_str().into_deserializer();
        child.visit(seed.deserialize(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some(child) = self.advance() else {
            return Err(de::Error::custom("a value"));
        };
        self.next += 1;
        let read = seed.deserialize(child.clone());
        child.visit(read)
    }
}

#[cfg(test)]
mod tests {
    use super::super::from_yaml;
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "camelCase")]
    struct Shape {
        name: Option<String>,
        port_number: Option<u16>,
        on: Option<bool>,
        tags: Option<BTreeMap<String, String>>,
        inner: Option<Vec<Shape>>,
        mode: Option<Mode>,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Routed,
        Host,
    }

    fn read_text(text: &str) -> (Option<Shape>, Vec<String>) {
        let (shape, findings) = read(&from_yaml(text).unwrap());
        (shape, findings.iter().map(Finding::to_string).collect())
    }

    #[test]
    fn a_good_document_is_read() {
        let (shape, findings) = read_text(
            "name: a\nportNumber: 80\non: true\ntags: {a.b: c}\ninner: [{name: x}]\nmode: host\n",
        );
        assert_eq!(findings, Vec::<String>::new());
        let shape = shape.unwrap();
        assert_eq!(
            (shape.port_number, shape.on, shape.mode),
            (Some(80), Some(true), Some(Mode::Host))
        );
        assert_eq!(shape.inner.unwrap()[0].name.as_deref(), Some("x"));
    }

    #[test]
    fn every_mistake_is_found_and_the_rest_is_read() {
        let (shape, findings) = read_text(
            "name: 7\nportNumbr: 1\ninner:\n- portNumber: 70000\n- name: kept\n- on: yes\nname: b\nmode: hots\ntags: {a: 1}\n",
        );
        assert_eq!(
            findings,
            [
                "line 2: portNumbr: unknown field, did you mean portNumber?",
                "line 7: name: written twice, first on line 1",
                "line 1: name: 7 is not allowed; allowed: text (put the value in quotes)",
                "line 4: inner[0].portNumber: 70000 is not allowed; allowed: a whole number, 0 to 65535",
                "line 6: inner[2].on: \"yes\" is not allowed; allowed: true or false",
                "line 8: mode: \"hots\" is not allowed; allowed: one of routed, host (did you mean host?)",
                "line 9: tags.a: 1 is not allowed; allowed: text (put the value in quotes)",
            ]
        );
        assert_eq!(
            shape.unwrap().inner.unwrap()[1].name.as_deref(),
            Some("kept")
        );
    }

    #[test]
    fn null_is_the_same_as_absent() {
        assert_eq!(
            read_text("name:\ninner: ~\n"),
            (Some(Shape::default()), vec![])
        );
    }

    #[test]
    fn a_root_that_is_no_table_is_one_finding() {
        let (shape, findings) = read_text("[1]");
        assert_eq!(
            (shape, findings.as_slice()),
            (
                None,
                &["line 1: a list of 1 is not allowed; allowed: a table of fields".to_owned()][..]
            )
        );
    }

    #[test]
    fn the_findings_end_somewhere() {
        let text: String = (0..500).map(|n| format!("x{n}: 1\n")).collect();
        assert_eq!(read_text(&text).1.len(), MAX_FINDINGS);
    }
}
