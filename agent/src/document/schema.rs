//! JSON Schema of a shape, for editors and for checks before a file reaches a host.
//!
//! It says which fields there are and what kind of value each takes. What depends on other fields,
//! on the host or on the spelling of a text (names, durations, quantities) is for the validation.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// The schema of what is read as `T` (JSON Schema, draft 2020-12).
pub(crate) fn schema<T: JsonSchema>(title: &str) -> Value {
    let settings = SchemaSettings::draft2020_12();
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = schema.to_value();
    absent_not_null(&mut schema);
    schema["title"] = title.into();
    schema
}

/// A field that is not given is left out: nothing is spelt `null`, and `null` is no default.
fn absent_not_null(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|name, member| name != "default" || !member.is_null());
            if let Some(Value::Array(types)) = members.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    members.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(choices)) = members.get_mut("anyOf") {
                choices.retain(|choice| choice["type"] != "null");
                if let [Value::Object(only)] = choices.as_mut_slice() {
                    let only: Map<String, Value> = std::mem::take(only);
                    members.remove("anyOf");
                    members.extend(only);
                }
            }
            if let Some(Value::Array(choices)) = members.get_mut("enum") {
                choices.retain(|choice| !choice.is_null());
            }
            members.values_mut().for_each(absent_not_null);
        }
        Value::Array(items) => items.iter_mut().for_each(absent_not_null),
        _ => {}
    }
}
