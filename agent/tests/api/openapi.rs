//! The description of the API: it has every route and every code, and real answers keep to it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use nodeagent::api::v1::*;
use nodeagent::api::{Limits, ROUTES, Role, openapi};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::twin::Served;

#[test]
fn the_description_is_that_of_the_golden_file() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/openapi.json");
    let text = serde_json::to_string_pretty(&openapi()).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    // The order of members is nobody's promise.
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    assert!(
        openapi() == golden,
        "tests/golden/openapi.json is not the description: UPDATE_GOLDEN=1 writes it, git diff shows it"
    );
}

#[test]
fn every_route_its_role_and_every_code_are_described() {
    let document = openapi();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            described.insert((path.clone(), method.to_ascii_uppercase()));
        }
    }
    let routes = ROUTES.iter();
    let routes = routes.map(|route| (route.path.to_owned(), route.method.to_string()));
    assert_eq!(described, routes.collect());
    for route in ROUTES {
        let method = route.method.as_str().to_ascii_lowercase();
        let role = document["paths"][route.path][method]["x-role"].as_str();
        assert_eq!(role, route.needs.map(Role::as_str), "{}", route.path);
    }
    let codes: BTreeSet<&str> = ProblemCode::ALL
        .into_iter()
        .map(ProblemCode::as_str)
        .collect();
    let listed = document["x-problems"].as_array().unwrap();
    let listed: BTreeSet<&str> = listed
        .iter()
        .map(|row| row["code"].as_str().unwrap())
        .collect();
    assert_eq!(listed, codes);
    for code in &codes {
        let wrong = |problem: &str| json!({"type": "", "title": "", "status": 400, "code": problem, "detail": ""});
        let problem = json!({"$ref": "#/components/schemas/Problem"});
        assert_eq!(check(&document, &problem, &wrong(code), "$"), Ok(()));
        assert!(check(&document, &problem, &wrong("weather"), "$").is_err());
    }
}

/// One exchange: status, media type and body.
async fn ask(served: &Served, method: &str, path: &str, body: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(served.path()).await.unwrap();
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.0\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let read = stream.read_to_string(&mut text);
    tokio::time::timeout(Duration::from_secs(5), read)
        .await
        .unwrap()
        .unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let media_type = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "));
    (
        head[9..12].parse().unwrap(),
        media_type.unwrap().to_owned(),
        body.to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn real_answers_keep_to_the_description() {
    let served = Served::start(&["web", "slow", "broken", "halfway"], Limits::default());
    let (status, _, text) = ask(&served, "GET", "/v1/openapi.json", "").await;
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &document), (200, &openapi()));
    let activate = "/v1/apps/{app}/activate";
    let one = r#"{"to":2,"taskId":"t-1"}"#;
    let manifest = "metadata:\n  name: new\n";
    let exchanges = [
        ("POST", activate, "/v1/apps/web/activate", one, 200),
        ("POST", activate, "/v1/apps/web/activate", one, 200),
        (
            "POST",
            activate,
            "/v1/apps/broken/activate",
            r#"{"to":1,"taskId":"t-2"}"#,
            200,
        ),
        (
            "POST",
            activate,
            "/v1/apps/halfway/activate",
            r#"{"to":2}"#,
            200,
        ),
        (
            "POST",
            activate,
            "/v1/apps/slow/activate?wait=0",
            r#"{"to":1}"#,
            202,
        ),
        (
            "POST",
            activate,
            "/v1/apps/web/activate",
            r#"{"to":-1}"#,
            400,
        ),
        (
            "POST",
            activate,
            "/v1/apps/web/activate",
            r#"{"to":1,"expectSeq":1}"#,
            409,
        ),
        (
            "POST",
            "/v1/apps/{app}/scale",
            "/v1/apps/none/scale",
            r#"{"to":1}"#,
            404,
        ),
        (
            "POST",
            "/v1/apps/{app}/roll",
            "/v1/apps/web/roll",
            r#"{"step":"25%"}"#,
            200,
        ),
        (
            "POST",
            "/v1/instances/{name}/restart",
            "/v1/instances/web-0/restart",
            r#"{"strategy":"reuse","process":"log"}"#,
            200,
        ),
        ("GET", "/v1/tasks", "/v1/tasks", "", 200),
        ("GET", "/v1/tasks/{id}", "/v1/tasks/t-1", "", 200),
        (
            "GET",
            "/v1/tasks/{id}/trail",
            "/v1/tasks/t-2/trail",
            "",
            200,
        ),
        ("GET", "/v1/tasks/{id}", "/v1/tasks/none", "", 404),
        ("GET", "/v1/status", "/v1/status", "", 200),
        ("GET", "/v1/apps", "/v1/apps", "", 200),
        ("GET", "/v1/apps/{app}", "/v1/apps/web", "", 200),
        ("PUT", "/v1/apps", "/v1/apps", manifest, 200),
        ("PUT", "/v1/apps", "/v1/apps", "nothing", 422),
        ("DELETE", "/v1/apps/{app}", "/v1/apps/web", "", 409),
        (
            "DELETE",
            "/v1/apps/{app}",
            "/v1/apps/web?force=true",
            "",
            200,
        ),
    ];
    for (method, route, path, body, expected) in exchanges {
        let what = format!("{method} {path} {body}");
        let (status, media_type, text) = ask(&served, method, path, body).await;
        assert_eq!(status, expected, "{what}: {text}");
        let operation = &document["paths"][route][method.to_ascii_lowercase()];
        let named = &operation["responses"][status.to_string()];
        let response = if named.is_null() {
            &operation["responses"]["default"]
        } else {
            named
        };
        let schema = &response["content"][&media_type]["schema"];
        assert!(!schema.is_null(), "{what}: {media_type} is not described");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            check(&document, schema, &answer, "$"),
            Ok(()),
            "{what}: {text}"
        );
        if !body.is_empty() && method == "POST" {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let request: Value = serde_json::from_str(body).unwrap();
            let fits = check(&document, schema, &request, "$").is_ok();
            assert_eq!(fits, status != 400, "{what}");
        }
    }
}

/// Whether `value` keeps to the schema; an error names the place. Knows the keywords that the
/// description uses, and fails for others: none is passed over.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let rules = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Object(rules) => rules,
        other => return Err(format!("{at}: {other} is no schema")),
    };
    let fail = |why: String| Err(format!("{at}: {why}: {value}"));
    for (keyword, rule) in rules {
        match keyword.as_str() {
            "$ref" => {
                let pointer = rule.as_str().unwrap().strip_prefix('#').unwrap();
                let target = document.pointer(pointer);
                check(
                    document,
                    target.ok_or(format!("{at}: no {pointer}"))?,
                    value,
                    at,
                )?;
            }
            "type" => {
                let is = |kind: &Value| match kind.as_str().unwrap() {
                    "null" => value.is_null(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "number" => value.is_number(),
                    "string" => value.is_string(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    other => panic!("type {other}"),
                };
                let kinds = rule
                    .as_array()
                    .cloned()
                    .unwrap_or_else(|| vec![rule.clone()]);
                if !kinds.iter().any(is) {
                    return fail(format!("not {rule}"));
                }
            }
            "enum" if !rule.as_array().unwrap().contains(value) => {
                return fail(format!("none of {rule}"));
            }
            "const" if rule != value => return fail(format!("not {rule}")),
            "required" => {
                for name in rule.as_array().unwrap() {
                    if value.get(name.as_str().unwrap()).is_none() {
                        return fail(format!("{name} is missing"));
                    }
                }
            }
            "properties" => {
                let members = value.as_object().into_iter().flatten();
                for (name, member) in members {
                    match rule.get(name) {
                        Some(rule) => check(document, rule, member, &format!("{at}.{name}"))?,
                        // What is answered is described, every field of it.
                        None => return fail(format!("{name} is not described")),
                    }
                }
            }
            "items" => {
                for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, rule, item, &format!("{at}[{n}]"))?;
                }
            }
            "oneOf" | "anyOf" => {
                let fits = |rule: &&Value| check(document, rule, value, at).is_ok();
                let count = rule.as_array().unwrap().iter().filter(fits).count();
                if count == 0 || (keyword == "oneOf" && count > 1) {
                    return fail(format!("{count} of {rule} fit"));
                }
            }
            "minimum" if value.as_f64().is_some_and(|n| n < rule.as_f64().unwrap()) => {
                return fail(format!("less than {rule}"));
            }
            "maximum" if value.as_f64().is_some_and(|n| n > rule.as_f64().unwrap()) => {
                return fail(format!("more than {rule}"));
            }
            // Looked at above, or said for people.
            "enum"
            | "const"
            | "minimum"
            | "maximum"
            | "description"
            | "title"
            | "format"
            | "default"
            | "additionalProperties" => {}
            other => return Err(format!("{at}: the keyword {other} is not known here")),
        }
    }
    Ok(())
}
