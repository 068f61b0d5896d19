//! Paths and methods, and what each asks of the core.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::body::Bytes;
use axum::extract::{Extension, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::answer::{json, json_or_problem};
use super::caller::{Caller, guard};
use super::exchange::Exchange;
use super::requests::Requests;
use super::table::{self, Operation, ROUTES, Route};
use super::{Limits, body, exec, images as wishes, query, request, stream};
use crate::api::openapi;
use crate::api::v1::{Problem, ProblemCode, Task, TaskRequest, TaskState, Verb};
use crate::api::{Host, Received, generate_task_id};
use crate::metrics::CONTENT_TYPE;

/// What handlers share.
struct Api<H> {
    host: Arc<H>,
    limits: Limits,
    submissions: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    logs: Arc<Semaphore>,
    commands: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    requests: Arc<Requests>,
    stop: CancellationToken,
}

/// The name in the path. What does not decode to text is a problem like any other.
struct Segment(String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(error) => Err(Problem::new(ProblemCode::InvalidRequest, error.body_text())),
        }
    }
}

type Shared<H> = State<Arc<Api<H>>>;

pub(super) fn router<H: Host>(
    host: Arc<H>,
    limits: &Limits,
    requests: Arc<Requests>,
    stop: CancellationToken,
) -> Router {
    let api = Arc::new(Api {
        host,
        limits: limits.clone(),
        submissions: Arc::new(Semaphore::new(limits.submissions)),
        streams: Arc::new(Semaphore::new(limits.streams)),
        logs: Arc::new(Semaphore::new(limits.streams)),
        commands: Arc::new(Semaphore::new(limits.commands)),
        looks: Arc::new(Semaphore::new(limits.looks)),
        requests: Arc::clone(&requests),
        stop,
    });
    let guarded = |route: &'static Route| {
        let (limits, requests) = (Arc::new(limits.clone()), Arc::clone(&requests));
        let guard = move |caller, request, next| {
            let (limits, requests) = (Arc::clone(&limits), Arc::clone(&requests));
            async move { guard(route, &limits, &requests, caller, request, next).await }
        };
        handler(route).route_layer(middleware::from_fn(guard))
    };
    ROUTES
        .iter()
        .fold(Router::new(), |router, route| {
            router.route(route.path, guarded(route))
        })
        .fallback(no_such_path::<H>)
        .method_not_allowed_fallback(no_such_method::<H>)
        .with_state(api)
}

/// What serves a route.
fn handler<H: Host>(route: &Route) -> MethodRouter<Arc<Api<H>>> {
    let method = match route.method {
        table::Method::Get => MethodFilter::GET,
        table::Method::Post => MethodFilter::POST,
        table::Method::Put => MethodFilter::PUT,
        table::Method::Delete => MethodFilter::DELETE,
    };
    match route.operation {
        Operation::Activate => submission(method, Verb::Activate),
        Operation::Deactivate => submission(method, Verb::Deactivate),
        Operation::Scale => submission(method, Verb::Scale),
        Operation::Roll => submission(method, Verb::Roll),
        Operation::Restart => submission(method, Verb::Restart),
        Operation::ListTasks => on(method, tasks::<H>),
        Operation::ShowTask => on(method, task::<H>),
        Operation::ShowTrail => on(method, trail::<H>),
        Operation::ShowStatus => on(method, status::<H>),
        Operation::WatchEvents => on(method, events::<H>),
        Operation::ReadLog => on(method, log::<H>),
        Operation::ListProcesses => on(method, processes::<H>),
        Operation::Exec => on(method, execute::<H>),
        Operation::ListImages => on(method, images::<H>),
        Operation::PullImage => with_images(method, |host: Arc<H>, body: Bytes| async move {
            host.pull_image(wishes::image_request(&body)?).await
        }),
        Operation::PinImage => with_images(method, |host: Arc<H>, body: Bytes| async move {
            let request = wishes::image_request(&body)?;
            host.pin_image(&request.reference, true).await
        }),
        Operation::UnpinImage => with_images(method, |host: Arc<H>, body: Bytes| async move {
            let request = wishes::image_request(&body)?;
            host.pin_image(&request.reference, false).await
        }),
        Operation::VerifyImages => on(method, verify_images::<H>),
        Operation::EvictImages => with_images(method, |host: Arc<H>, body: Bytes| async move {
            host.evict_images(wishes::evict_request(&body)?).await
        }),
        Operation::ListStableImages => on(method, stable_images::<H>),
        Operation::SetStableImage => with_images(method, |host: Arc<H>, body: Bytes| async move {
            host.set_stable_image(wishes::stable_request(&body)?).await
        }),
        Operation::ImportImages => with_images(method, |host: Arc<H>, body: Bytes| async move {
            host.import_images(wishes::import_request(&body)?).await
        }),
        Operation::ExportImages => with_images(method, |host: Arc<H>, body: Bytes| async move {
            host.export_images(wishes::export_request(&body)?).await
        }),
        Operation::ShowJournal => on(method, journal::<H>),
        Operation::AcceptJournal => on(method, accept_journal::<H>),
        Operation::ListApps => on(method, apps::<H>),
        Operation::ApplyApp => on(method, apply::<H>),
        Operation::ShowApp => on(method, app::<H>),
        Operation::DeleteApp => on(method, delete_app::<H>),
        Operation::ShowOpenapi => on(method, description),
        Operation::ShowMetrics => on(method, metrics::<H>),
        Operation::ShowHealth => on(method, async || "ok\n"),
        Operation::ShowReadiness => on(method, readyz::<H>),
    }
}

/// A route that submits a task of this verb.
fn submission<H: Host>(method: MethodFilter, verb: Verb) -> MethodRouter<Arc<Api<H>>> {
    on(
        method,
        async move |api: Shared<H>,
                    exchange: Extension<Arc<Exchange>>,
                    name: Segment,
                    http: Request| {
            let answer = submit(api, exchange, name, verb, http).await;
            answer.unwrap_or_else(Problem::into_response)
        },
    )
}

async fn submit<H: Host>(
    State(api): Shared<H>,
    Extension(exchange): Extension<Arc<Exchange>>,
    Segment(name): Segment,
    verb: Verb,
    http: Request,
) -> Result<Response, Problem> {
    let name = match verb {
        Verb::Restart => name,
        Verb::Activate | Verb::Deactivate | Verb::Scale | Verb::Roll => {
            request::app_name(&name)?.to_string()
        }
    };
    let wait = query::wait(http.uri())?;
    let received = Received {
        first_byte: exchange.first_byte(),
        traceparent: request::traceparent(http.headers()),
    };
    let (parts, body) = http.into_parts();
    let body = body::read(&parts.headers, body, &api.limits).await?;
    let mut wanted = request::task_request(verb, &body)?;
    if wanted.task_id.is_none() {
        // An id that is made up here was never used before.
        wanted.new_epoch = Some(true);
    }
    let task_id = wanted.task_id.get_or_insert_with(generate_task_id).clone();
    let first_byte = received.first_byte;

    let task = detached(&api, &name, verb, wanted, received, wait, &task_id).await?;
    let host = Arc::clone(&api.host);
    exchange.when_answered(move |at| host.answered(&task_id, at.duration_since(first_byte)));
    let status = match task.state {
        TaskState::Running => StatusCode::ACCEPTED,
        _ => StatusCode::OK,
    };
    Ok(json(status, &task))
}

/// Submits in a task of its own: when the client goes away hyper drops the handler, and what was
/// begun must not stop half-way with it.
async fn detached<H: Host>(
    api: &Api<H>,
    name: &str,
    verb: Verb,
    wanted: TaskRequest,
    received: Received,
    wait: Duration,
    task_id: &str,
) -> Result<Task, Problem> {
    let Ok(permit) = Arc::clone(&api.submissions).try_acquire_owned() else {
        let detail = format!(
            "{} submissions are in progress, try again",
            api.limits.submissions
        );
        return Err(Problem::new(ProblemCode::Unavailable, detail));
    };
    let (host, name) = (Arc::clone(&api.host), name.to_owned());
    let submission = tokio::spawn(async move {
        let task = host.submit(&name, verb, wanted, received, wait).await;
        drop(permit);
        task
    });
    let about = format!("/v1/tasks/{task_id}");
    tokio::select! {
        ended = submission => ended.unwrap_or_else(|error| {
            tracing::error!(%error, task_id, "submission panicked");
            Err(Problem::new(ProblemCode::Internal, "the submission ended by a defect; its task may go on").about(&about))
        }),
        () = api.stop.cancelled() => {
            let detail = "the agent is stopping; ask for the task again, by the same task id, once it is back";
            Err(Problem::new(ProblemCode::Unavailable, detail).about(about))
        }
    }
}

async fn tasks<H: Host>(State(api): Shared<H>, uri: Uri) -> Response {
    json_or_problem(async { api.host.tasks(query::tasks(&uri)?).await }.await)
}

async fn task<H: Host>(State(api): Shared<H>, Segment(id): Segment, uri: Uri) -> Response {
    json_or_problem(
        async {
            query::no_parameters(&uri)?;
            api.host.task(request::task_id(&id)?).await
        }
        .await,
    )
}

async fn trail<H: Host>(State(api): Shared<H>, Segment(id): Segment, uri: Uri) -> Response {
    json_or_problem(
        async {
            query::no_parameters(&uri)?;
            api.host.trail(request::task_id(&id)?).await
        }
        .await,
    )
}

async fn status<H: Host>(State(api): Shared<H>, uri: Uri) -> Response {
    json_or_problem(
        async {
            query::no_parameters(&uri)?;
            api.host.status().await
        }
        .await,
    )
}

async fn journal<H: Host>(State(api): Shared<H>, uri: Uri) -> Response {
    let answer = async {
        query::no_parameters(&uri)?;
        api.host.journal().await
    };
    json_or_problem(answer.await)
}

async fn accept_journal<H: Host>(State(api): Shared<H>, uri: Uri) -> Response {
    let answer = async {
        query::no_parameters(&uri)?;
        let host = Arc::clone(&api.host);
        to_its_end(tokio::spawn(async move { host.accept_journal().await })).await
    };
    json_or_problem(answer.await)
}

async fn events<H: Host>(State(api): Shared<H>, uri: Uri, headers: HeaderMap) -> Response {
    let app = match query::only_app(&uri) {
        Ok(app) => app.map(|app| app.to_string()),
        Err(problem) => return problem.into_response(),
    };
    let Ok(permit) = Arc::clone(&api.streams).try_acquire_owned() else {
        let detail = format!(
            "{} streams of events are open, try again",
            api.limits.streams
        );
        return Problem::new(ProblemCode::Unavailable, detail).into_response();
    };
    let subscription = api
        .host
        .feed()
        .subscribe(stream::last_event_id(&headers), app);
    stream::answer(subscription, api.limits.heartbeat, api.stop.clone(), permit)
}

async fn log<H: Host>(
    State(api): Shared<H>,
    Extension(exchange): Extension<Arc<Exchange>>,
    Segment(instance): Segment,
    uri: Uri,
) -> Response {
    let answer = async {
        let request = query::log(&uri)?;
        let Ok(permit) = Arc::clone(&api.logs).try_acquire_owned() else {
            let detail = format!("{} logs are being read, try again", api.limits.streams);
            return Err(Problem::new(ProblemCode::Unavailable, detail));
        };
        let log = api.host.log(&instance, request).await?;
        exchange.be_patient(api.limits.log_stall);
        Ok(stream::log(log, api.stop.clone(), permit))
    };
    answer.await.unwrap_or_else(Problem::into_response)
}

async fn processes<H: Host>(
    State(api): Shared<H>,
    Segment(instance): Segment,
    uri: Uri,
) -> Response {
    let answer = async {
        query::no_parameters(&uri)?;
        let Ok(_permit) = api.looks.try_acquire() else {
            let detail = format!(
                "the processes of {} instances are being read, try again",
                api.limits.looks
            );
            return Err(Problem::new(ProblemCode::Unavailable, detail));
        };
        api.host.processes(&instance).await
    };
    json_or_problem(answer.await)
}

async fn execute<H: Host>(
    State(api): Shared<H>,
    Extension(exchange): Extension<Arc<Exchange>>,
    Extension(caller): Extension<Caller>,
    Segment(instance): Segment,
    mut http: Request,
) -> Response {
    let answer = async {
        query::no_parameters(http.uri())?;
        let upgrade = hyper::upgrade::on(&mut http);
        let (parts, body) = http.into_parts();
        let body = body::read(&parts.headers, body, &api.limits).await?;
        exec::check_upgrade(&parts.headers)?;
        let wanted = request::exec_request(&body)?;
        let Ok(permit) = Arc::clone(&api.commands).try_acquire_owned() else {
            let detail = format!("{} commands are running, try again", api.limits.commands);
            return Err(Problem::new(ProblemCode::Unavailable, detail));
        };
        let host = Arc::clone(&api.host);
        let begun = tokio::spawn(async move {
            let caller = caller.to_string();
            host.exec(&instance, wanted, &caller).await
        });
        let session = to_its_end(begun).await?;
        exchange.be_patient(api.limits.log_stall);
        Ok(exec::answer(session, upgrade, api.stop.clone(), permit))
    };
    answer.await.unwrap_or_else(Problem::into_response)
}

async fn apps<H: Host>(State(api): Shared<H>, uri: Uri) -> Response {
    json_or_problem(
        async {
            query::no_parameters(&uri)?;
            api.host.apps().await
        }
        .await,
    )
}

async fn app<H: Host>(State(api): Shared<H>, Segment(app): Segment, uri: Uri) -> Response {
    let answer = async {
        query::no_parameters(&uri)?;
        api.host.app(request::app_name(&app)?.as_str()).await
    };
    json_or_problem(answer.await)
}

async fn apply<H: Host>(State(api): Shared<H>, http: Request) -> Response {
    let answer = async {
        query::no_parameters(http.uri())?;
        let (parts, body) = http.into_parts();
        let manifest = body::read(&parts.headers, body, &api.limits).await?;
        let manifest = std::str::from_utf8(&manifest).map_err(|error| {
            let detail = format!("the manifest is not UTF-8 text: {error}");
            Problem::new(ProblemCode::InvalidManifest, detail)
        })?;
        let (host, manifest) = (Arc::clone(&api.host), manifest.to_owned());
        to_its_end(tokio::spawn(async move { host.apply(&manifest).await })).await
    };
    json_or_problem(answer.await)
}

async fn images<H: Host>(State(api): Shared<H>, uri: Uri) -> Response {
    let answer = async {
        query::no_parameters(&uri)?;
        api.host.images().await
    };
    json_or_problem(answer.await)
}

async fn stable_images<H: Host>(State(api): Shared<H>, uri: Uri) -> Response {
    let answer = async {
        query::no_parameters(&uri)?;
        api.host.stable_images().await
    };
    json_or_problem(answer.await)
}

/// A route that does something with images: it goes on to its end when the client goes away.
fn with_images<H, T, F>(
    method: MethodFilter,
    work: impl Fn(Arc<H>, Bytes) -> F + Clone + Send + Sync + 'static,
) -> MethodRouter<Arc<Api<H>>>
where
    H: Host,
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, Problem>> + Send + 'static,
{
    on(method, async move |api: Shared<H>, http: Request| {
        let answer = async {
            query::no_parameters(http.uri())?;
            let (parts, body) = http.into_parts();
            let body = body::read(&parts.headers, body, &api.limits).await?;
            to_its_end(tokio::spawn(work(Arc::clone(&api.host), body))).await
        };
        json_or_problem(answer.await)
    })
}

/// Ends when its caller goes away: it takes minutes and changes nothing that somebody waits for.
async fn verify_images<H: Host>(api: Shared<H>, http: Request) -> Response {
    let answer = async {
        query::no_parameters(http.uri())?;
        let (parts, body) = http.into_parts();
        let body = body::read(&parts.headers, body, &api.limits).await?;
        api.host.verify_images(wishes::verify_request(&body)?).await
    };
    json_or_problem(answer.await)
}

async fn delete_app<H: Host>(State(api): Shared<H>, Segment(app): Segment, uri: Uri) -> Response {
    let answer = async {
        let deletion = query::deletion(&uri)?;
        let (host, app) = (Arc::clone(&api.host), request::app_name(&app)?.to_string());
        to_its_end(tokio::spawn(async move {
            host.delete_app(&app, deletion).await
        }))
        .await
    };
    json_or_problem(answer.await)
}

/// The answer of work that goes on when its caller goes away.
async fn to_its_end<T>(work: tokio::task::JoinHandle<Result<T, Problem>>) -> Result<T, Problem> {
    match work.await {
        Ok(answer) => answer,
        Err(error) => Err(Problem::new(ProblemCode::Internal, error.to_string())),
    }
}

async fn description(uri: Uri) -> Response {
    json_or_problem(query::no_parameters(&uri).map(|()| openapi()))
}

async fn metrics<H: Host>(State(api): Shared<H>, uri: Uri) -> Response {
    if let Err(problem) = query::no_parameters(&uri) {
        return problem.into_response();
    }
    let mut page = api.host.metrics().await;
    api.requests.render(&mut page);
    let content_type = [(header::CONTENT_TYPE, CONTENT_TYPE)];
    (content_type, page.finish()).into_response()
}

async fn readyz<H: Host>(State(api): Shared<H>) -> Response {
    match api.host.ready() {
        Ok(()) => Body::from("ok\n").into_response(),
        Err(problem) => problem.into_response(),
    }
}

async fn no_such_path<H: Host>(State(api): Shared<H>, uri: Uri) -> Problem {
    api.requests.count(None, StatusCode::NOT_FOUND);
    let detail = format!("{} is not a path of this API", uri.path());
    Problem::new(ProblemCode::NotFound, detail).about(uri.path())
}

async fn no_such_method<H: Host>(State(api): Shared<H>, method: Method, uri: Uri) -> Problem {
    api.requests.count(None, StatusCode::METHOD_NOT_ALLOWED);
    let detail = format!(
        "{method} is not a method of {}; the Allow header lists them",
        uri.path()
    );
    Problem::new(ProblemCode::MethodNotAllowed, detail).about(uri.path())
}
