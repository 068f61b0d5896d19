//! The part of JSON Schema that ours use, read strictly: a keyword that is not known here fails.

use serde_json::Value;

/// What of `document` its schema does not allow.
pub fn violations(schema: &Value, document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    judge(schema, schema, document, "", &mut found);
    found
}

fn judge(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let keywords = schema.as_object().expect("a schema is an object");
    let below = |name: &str| match at {
        "" => name.to_owned(),
        _ => format!("{at}.{name}"),
    };
    for name in keywords
        .get("required")
        .iter()
        .flat_map(|n| n.as_array().unwrap())
    {
        let name = name.as_str().unwrap();
        if value.get(name).is_none() {
            found.push(format!("{} is missing", below(name)));
        }
    }
    for (keyword, rule) in keywords {
        match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "format" | "default" | "required" => {}
            "$ref" => {
                let place = rule.as_str().unwrap().trim_start_matches('#');
                judge(root, root.pointer(place).unwrap(), value, at, found);
            }
            "type" => {
                let kinds: Vec<&str> = match rule {
                    Value::Array(kinds) => kinds.iter().map(|k| k.as_str().unwrap()).collect(),
                    kind => vec![kind.as_str().unwrap()],
                };
                if !kinds.iter().any(|kind| is(value, kind)) {
                    found.push(format!("{at} is no {}", kinds.join(" or ")));
                }
            }
            "const" if value != rule => found.push(format!("{at} is not {rule}")),
            "enum" if !rule.as_array().unwrap().contains(value) => {
                found.push(format!("{at} is none of {rule}"));
            }
            "minimum" if value.is_number() && value.as_f64() < rule.as_f64() => {
                found.push(format!("{at} is below {rule}"));
            }
            "maximum" if value.is_number() && value.as_f64() > rule.as_f64() => {
                found.push(format!("{at} is above {rule}"));
            }
            "const" | "enum" | "minimum" | "maximum" => {}
            "anyOf" | "oneOf" => {
                let fits = |choice: &Value| violations_at(root, choice, value, at).is_empty();
                if !rule.as_array().unwrap().iter().any(fits) {
                    found.push(format!("{at} fits no choice"));
                }
            }
            "items" => {
                for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                    judge(root, rule, item, &format!("{at}[{n}]"), found);
                }
            }
            "properties" => {
                for (name, member) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = rule.get(name) {
                        judge(root, schema, member, &below(name), found);
                    }
                }
            }
            "additionalProperties" => {
                let known = &schema["properties"];
                for (name, member) in value.as_object().into_iter().flatten() {
                    if known.get(name).is_some() {
                        continue;
                    }
                    match rule {
                        Value::Bool(false) => found.push(format!("{} is unknown", below(name))),
                        rule => judge(root, rule, member, &below(name), found),
                    }
                }
            }
            other => panic!("{at}: the keyword {other} is not known to this test"),
        }
    }
}

fn violations_at(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    judge(root, schema, value, at, &mut found);
    found
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("the type {other} is not known to this test"),
    }
}
