//! The description of the API: OpenAPI 3.1, made from the table of routes and the types of the
//! documents. `GET /v1/openapi.json`.
//!
//! Nothing is written down twice: schemas come from the types that are serialised, codes from the
//! table of problems, roles and summaries from the table of routes. Made when somebody asks.

use container_init::log::Stream;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::TaskFilter;
use super::exec::PROTOCOL;
use super::server::{Operation, ROUTES, Route};
use super::v1::{
    AlarmChange, AppChange, AppDocument, AppImages, AppList, ApplyResult, EvictRequest,
    EvictResult, ExecRequest, ExportRequest, ExportResult, ImageDocument, ImageList, ImageRequest,
    ImportRequest, ImportResult, InstanceChange, JournalDocument, Problem, ProblemCode,
    ProcessList, PullChange, StableList, StableRequest, Status, Task, TaskList, TaskRequest,
    TaskState, TaskSummary, Trail, VerifyRequest, VerifyResult,
};

/// The document.
pub fn openapi() -> Value {
    // What is answered has every field; what is asked may leave some out.
    let mut answers = generator(SchemaSettings::for_serialize);
    let mut requests = generator(SchemaSettings::for_deserialize);
    let mut paths = Map::new();
    for route in ROUTES {
        let operation = operation(route, &mut answers, &mut requests);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    let mut schemas = answers.take_definitions(true);
    schemas.append(&mut requests.take_definitions(true));
    let mut document = json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "nodeagent",
            "description": "Warm containers on this host, let go and registered in milliseconds.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
        "components": { "schemas": schemas },
        "x-problems": problems(),
    });
    plain(&mut document);
    document
}

/// Descriptions come from the types' documentation: links between types mean nothing here, and
/// lines end where the source does.
fn plain(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(text) if name == "description" => {
                        *text = text
                            .replace("[`", "`")
                            .replace("`]", "`")
                            .replace('\n', " ");
                    }
                    member => plain(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        _ => {}
    }
}

fn generator(contract: fn(SchemaSettings) -> SchemaSettings) -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    contract(settings).into_generator()
}

/// The codes with their statuses, as programs may want them.
fn problems() -> Value {
    let row = |code: ProblemCode| {
        let row = code.row();
        json!({ "code": row.code, "status": row.status, "exit": row.exit, "title": row.title })
    };
    ProblemCode::ALL.into_iter().map(row).collect()
}

fn operation(
    route: &Route,
    answers: &mut SchemaGenerator,
    requests: &mut SchemaGenerator,
) -> Value {
    let mut operation = json!({
        "operationId": operation_id(route.operation),
        "summary": route.summary,
        "parameters": parameters(route),
        "responses": {
            "default": {
                "description": "Refused or failed.",
                "content": { "application/problem+json": { "schema": answers.subschema_for::<Problem>() } },
            },
        },
    });
    if let Some(role) = route.needs {
        operation["x-role"] = role.as_str().into();
    }
    for (status, description, media_type, schema) in success(route.operation, answers) {
        operation["responses"][status] = json!({
            "description": description,
            "content": { media_type: { "schema": schema } },
        });
    }
    if let Some((media_type, schema)) = body(route.operation, requests) {
        operation["requestBody"] = json!({
            "required": true,
            "content": { media_type: { "schema": schema } },
        });
    }
    operation
}

type Answer = (&'static str, &'static str, &'static str, Schema);

fn success(operation: Operation, answers: &mut SchemaGenerator) -> Vec<Answer> {
    const JSON: &str = "application/json";
    fn document<T: JsonSchema>(answers: &mut SchemaGenerator) -> Vec<Answer> {
        vec![("200", "The document.", JSON, answers.subschema_for::<T>())]
    }
    let text = |media_type| {
        vec![(
            "200",
            "Text.",
            media_type,
            schema(json!({"type": "string"})),
        )]
    };
    match operation {
        Operation::Activate
        | Operation::Deactivate
        | Operation::Scale
        | Operation::Roll
        | Operation::Restart => {
            let task = answers.subschema_for::<Task>();
            vec![
                (
                    "200",
                    "The task has ended; its state says how.",
                    JSON,
                    task.clone(),
                ),
                ("202", "The wait has ended, the task goes on.", JSON, task),
            ]
        }
        Operation::ListTasks => document::<TaskList>(answers),
        Operation::ShowTask => document::<Task>(answers),
        Operation::ShowTrail => document::<Trail>(answers),
        Operation::ShowStatus => document::<Status>(answers),
        Operation::ListProcesses => document::<ProcessList>(answers),
        Operation::ListImages => document::<ImageList>(answers),
        Operation::PullImage | Operation::PinImage | Operation::UnpinImage => {
            document::<ImageDocument>(answers)
        }
        Operation::VerifyImages => document::<VerifyResult>(answers),
        Operation::EvictImages => document::<EvictResult>(answers),
        Operation::ListStableImages => document::<StableList>(answers),
        Operation::SetStableImage => document::<AppImages>(answers),
        Operation::ImportImages => document::<ImportResult>(answers),
        Operation::ExportImages => document::<ExportResult>(answers),
        Operation::ShowJournal | Operation::AcceptJournal => document::<JournalDocument>(answers),
        Operation::ListApps => document::<AppList>(answers),
        Operation::ShowApp => document::<AppDocument>(answers),
        Operation::ApplyApp | Operation::DeleteApp => document::<ApplyResult>(answers),
        Operation::WatchEvents => {
            let events = json!({
                "type": "string",
                "x-events": {
                    "reset": {"type": "object"},
                    "synced": {"type": "object"},
                    "app": answers.subschema_for::<AppChange>(),
                    "instance": answers.subschema_for::<InstanceChange>(),
                    "task": answers.subschema_for::<TaskSummary>(),
                    "alarm": answers.subschema_for::<AlarmChange>(),
                    "pull": answers.subschema_for::<PullChange>(),
                },
            });
            vec![(
                "200",
                "Server-sent events, without end; x-events has the documents by name.",
                "text/event-stream",
                schema(events),
            )]
        }
        Operation::ShowOpenapi => vec![(
            "200",
            "This document.",
            JSON,
            schema(json!({"type": "object"})),
        )],
        Operation::Exec => vec![(
            "101",
            "The connection is the command's from here on, in both directions: frames of a byte for the kind, four for the length (big endian), and the rest. To the agent: i input, e its end, r COLUMNSxROWS. From the agent: o stdout, p stderr, and at last x the exit code, or f why it is not known.",
            "application/octet-stream",
            schema(json!({"type": "string", "format": "binary"})),
        )],
        Operation::ReadLog => text("text/plain; charset=utf-8"),
        Operation::ShowMetrics => text("text/plain; version=0.0.4"),
        Operation::ShowHealth | Operation::ShowReadiness => text("text/plain"),
    }
}

fn body(operation: Operation, requests: &mut SchemaGenerator) -> Option<(&'static str, Schema)> {
    match operation {
        operation if operation.submits() => {
            Some(("application/json", requests.subschema_for::<TaskRequest>()))
        }
        Operation::Exec => Some(("application/json", requests.subschema_for::<ExecRequest>())),
        Operation::PullImage | Operation::PinImage | Operation::UnpinImage => {
            Some(("application/json", requests.subschema_for::<ImageRequest>()))
        }
        Operation::VerifyImages => Some((
            "application/json",
            requests.subschema_for::<VerifyRequest>(),
        )),
        Operation::SetStableImage => Some((
            "application/json",
            requests.subschema_for::<StableRequest>(),
        )),
        Operation::EvictImages => {
            Some(("application/json", requests.subschema_for::<EvictRequest>()))
        }
        Operation::ImportImages => Some((
            "application/json",
            requests.subschema_for::<ImportRequest>(),
        )),
        Operation::ExportImages => Some((
            "application/json",
            requests.subschema_for::<ExportRequest>(),
        )),
        Operation::ApplyApp => Some(("application/yaml", schema(json!({"type": "string"})))),
        _ => None,
    }
}

fn parameters(route: &Route) -> Value {
    let named = |place: &str, name: &str, required: bool, text: &str, schema: Value| json!({ "name": name, "in": place, "required": required, "description": text, "schema": schema });
    let string = || json!({"type": "string"});
    let mut parameters = Vec::new();
    if route.path.contains("{app}") {
        parameters.push(named("path", "app", true, "Name of the app.", string()));
    }
    if route.path.contains("{id}") {
        let rule = json!({"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"});
        parameters.push(named("path", "id", true, "Id of the task.", rule));
    }
    if route.path.contains("{name}") {
        let text = "Name of the instance.";
        parameters.push(named("path", "name", true, text, string()));
    }
    match route.operation {
        Operation::ListTasks => {
            let names = TaskState::ALL.map(TaskState::as_str);
            let state = json!({"type": "array", "items": {"type": "string", "enum": names}});
            let since = json!({"type": "number", "minimum": 0});
            let limit = json!({"type": "integer", "minimum": 1, "maximum": TaskFilter::MOST, "default": TaskFilter::default().limit});
            for (name, text, schema) in [
                ("app", "Only those of this app.", string()),
                ("state", "Only those in one of these states.", state),
                (
                    "since",
                    "Only those accepted at most so long ago, in seconds.",
                    since,
                ),
                ("limit", "The newest so many.", limit),
            ] {
                let mut parameter = named("query", name, false, text, schema);
                if name == "state" {
                    // With commas between them.
                    parameter["explode"] = false.into();
                }
                parameters.push(parameter);
            }
        }
        Operation::ReadLog => {
            let process = json!({"type": "string", "default": "app"});
            let tail = json!({"type": "integer", "minimum": 0, "maximum": 10_000_000});
            let since = json!({"oneOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "format": "date-time"},
            ]});
            let stream = json!({"type": "string", "enum": Stream::ALL.map(Stream::as_str)});
            let timestamps = json!({"type": "boolean", "default": false});
            let follow = json!({"type": "boolean", "default": false});
            for (name, text, schema) in [
                ("process", "Name of the process.", process),
                ("tail", "Lines from the end.", tail),
                (
                    "since",
                    "Only lines of the last so many seconds, or of this time and later.",
                    since,
                ),
                ("stream", "Only what was written to this stream.", stream),
                ("timestamps", "Each line begins with its time.", timestamps),
                ("follow", "Go on with what is written later.", follow),
            ] {
                parameters.push(named("query", name, false, text, schema));
            }
        }
        operation if operation.submits() => {
            let seconds = json!({"type": "number", "minimum": 0, "maximum": 3600, "default": 90});
            parameters.push(named(
                "query",
                "wait",
                false,
                "Seconds to wait for the task's end.",
                seconds,
            ));
            let text = "W3C Trace Context that the task becomes part of.";
            parameters.push(named("header", "traceparent", false, text, string()));
        }
        Operation::Exec => {
            let protocol = json!({"type": "string", "const": PROTOCOL});
            parameters.push(named(
                "header",
                "Upgrade",
                true,
                "The protocol of the streams.",
                protocol,
            ));
        }
        Operation::DeleteApp => {
            let force = json!({"type": "boolean", "default": false});
            parameters.push(named(
                "query",
                "force",
                false,
                "Take instances out without drain.",
                force,
            ));
        }
        Operation::WatchEvents => {
            parameters.push(named(
                "query",
                "app",
                false,
                "Only what is about this app.",
                string(),
            ));
            let text = "Go on after this event.";
            parameters.push(named("header", "Last-Event-ID", false, text, string()));
        }
        _ => {}
    }
    parameters.into()
}

fn schema(value: Value) -> Schema {
    // Only objects are given.
    Schema::try_from(value).unwrap_or_default()
}

/// `listTasks` of `ListTasks`.
fn operation_id(operation: Operation) -> String {
    let name = format!("{operation:?}");
    let mut letters = name.chars();
    let first = letters.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}
