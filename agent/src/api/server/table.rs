//! The one table of routes: path, method, and the role that it needs.
//!
//! The router is built from it, the description of the API is generated from it, and a test walks
//! it with every role. What is not in it cannot be served.

use std::fmt;

use crate::api::Role;

/// Method of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// Reads (`HEAD` too).
    Get,
    /// Submits.
    Post,
    /// Replaces.
    Put,
    /// Removes.
    Delete,
}

impl Method {
    /// As in a request.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a route does. Each stands in [`ROUTES`] once, which a test compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Submit an activation.
    Activate,
    /// Submit a deactivation.
    Deactivate,
    /// Submit a target.
    Scale,
    /// Submit a roll.
    Roll,
    /// Submit a restart.
    Restart,
    /// List tasks.
    ListTasks,
    /// One task.
    ShowTask,
    /// One task's steps.
    ShowTrail,
    /// The host and its pools.
    ShowStatus,
    /// Stream of events.
    WatchEvents,
    /// A process's log.
    ReadLog,
    /// What runs in an instance.
    ListProcesses,
    /// A command in an instance.
    Exec,
    /// Images and pulls.
    ListImages,
    /// Make an image ready.
    PullImage,
    /// Keep an image.
    PinImage,
    /// Keep an image no longer.
    UnpinImage,
    /// Hash blobs again.
    VerifyImages,
    /// Evict images that nobody needs.
    EvictImages,
    /// Stable images.
    ListStableImages,
    /// Which image of an app is stable.
    SetStableImage,
    /// Make the images of an archive ready.
    ImportImages,
    /// Write images to a file.
    ExportImages,
    /// The journal, and whether one was lost.
    ShowJournal,
    /// Accept the loss of a journal.
    AcceptJournal,
    /// List apps.
    ListApps,
    /// Apply a manifest.
    ApplyApp,
    /// One app.
    ShowApp,
    /// Delete an app.
    DeleteApp,
    /// The description of the API.
    ShowOpenapi,
    /// Metrics.
    ShowMetrics,
    /// Whether the server answers.
    ShowHealth,
    /// Whether the host was observed.
    ShowReadiness,
}

impl Operation {
    /// A task is submitted, and may be waited for.
    pub fn submits(self) -> bool {
        matches!(
            self,
            Self::Activate | Self::Deactivate | Self::Scale | Self::Roll | Self::Restart
        )
    }
}

/// One route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What it does.
    pub operation: Operation,
    /// Method.
    pub method: Method,
    /// Path; `{app}`, `{id}` and `{name}` stand for one segment.
    pub path: &'static str,
    /// The least role that may; `None`: everybody who can connect.
    pub needs: Option<Role>,
    /// What it does, for people.
    pub summary: &'static str,
}

/// Every route of the API.
pub const ROUTES: &[Route] = &{
    use Method::{Delete, Get, Post, Put};
    use Operation::*;
    use Role::{Admin, Operate, View};
    const fn route(
        operation: Operation,
        method: Method,
        path: &'static str,
        needs: Option<Role>,
        summary: &'static str,
    ) -> Route {
        Route {
            operation,
            method,
            path,
            needs,
            summary,
        }
    }
    [
        route(
            Activate,
            Post,
            "/v1/apps/{app}/activate",
            Some(Operate),
            "Bring instances into service until at least `to` are active",
        ),
        route(
            Deactivate,
            Post,
            "/v1/apps/{app}/deactivate",
            Some(Operate),
            "Take instances out of service until at most `to` are active",
        ),
        route(
            Scale,
            Post,
            "/v1/apps/{app}/scale",
            Some(Operate),
            "Set the number of active instances",
        ),
        route(
            Roll,
            Post,
            "/v1/apps/{app}/roll",
            Some(Operate),
            "Replace instances in service by ones of the current revision, `step` at a time",
        ),
        route(
            Restart,
            Post,
            "/v1/instances/{name}/restart",
            Some(Operate),
            "Start the app of an instance, or one of its in-container agents, again in its container",
        ),
        route(
            ListTasks,
            Get,
            "/v1/tasks",
            Some(View),
            "The newest tasks, newest first",
        ),
        route(
            ShowTask,
            Get,
            "/v1/tasks/{id}",
            Some(View),
            "A task and its instances",
        ),
        route(
            ShowTrail,
            Get,
            "/v1/tasks/{id}/trail",
            Some(View),
            "Where the milliseconds of a task went",
        ),
        route(
            ShowStatus,
            Get,
            "/v1/status",
            Some(View),
            "The host, its pools and alarms",
        ),
        route(
            WatchEvents,
            Get,
            "/v1/events",
            Some(View),
            "What is true and then what changes, as server-sent events",
        ),
        route(
            ReadLog,
            Get,
            "/v1/instances/{name}/logs",
            Some(View),
            "What a process in an instance has written",
        ),
        route(
            ListProcesses,
            Get,
            "/v1/instances/{name}/processes",
            Some(View),
            "What runs in an instance, as a tree",
        ),
        route(
            Exec,
            Post,
            "/v1/instances/{name}/exec",
            Some(Admin),
            "Execute a command in an instance, as its app's user",
        ),
        route(
            ListImages,
            Get,
            "/v1/images",
            Some(View),
            "Images that were made ready on this host, and pulls under way",
        ),
        route(
            PullImage,
            Post,
            "/v1/images/pull",
            Some(Admin),
            "Make an image ready: pulled, verified, unpacked and kept",
        ),
        route(
            PinImage,
            Post,
            "/v1/images/pin",
            Some(Admin),
            "Keep an image, whatever happens",
        ),
        route(
            UnpinImage,
            Post,
            "/v1/images/unpin",
            Some(Admin),
            "Let an image be evicted again",
        ),
        route(
            VerifyImages,
            Post,
            "/v1/images/verify",
            Some(Admin),
            "Look at what lies on the disk: layers, and what was unpacked of them; what is damaged goes",
        ),
        route(
            EvictImages,
            Post,
            "/v1/images/evict",
            Some(Admin),
            "Evict images that nobody needs, or say which would go",
        ),
        route(
            ListStableImages,
            Get,
            "/v1/images/stable",
            Some(View),
            "Which images belong on this host, and which one scale-out uses",
        ),
        route(
            SetStableImage,
            Post,
            "/v1/images/stable",
            Some(Admin),
            "Say which image of an app is stable, or that coverage decides",
        ),
        route(
            ImportImages,
            Post,
            "/v1/images/import",
            Some(Admin),
            "Make the images of an archive ready",
        ),
        route(
            ExportImages,
            Post,
            "/v1/images/export",
            Some(Admin),
            "Write images to a file",
        ),
        route(
            ShowJournal,
            Get,
            "/v1/journal",
            Some(View),
            "The journal, and whether the one before was lost",
        ),
        route(
            AcceptJournal,
            Post,
            "/v1/journal/accept",
            Some(Admin),
            "Accept the loss of a journal",
        ),
        route(ListApps, Get, "/v1/apps", Some(View), "All apps by name"),
        route(ApplyApp, Put, "/v1/apps", Some(Admin), "Apply a manifest"),
        route(
            ShowApp,
            Get,
            "/v1/apps/{app}",
            Some(View),
            "An app with its manifest",
        ),
        route(
            DeleteApp,
            Delete,
            "/v1/apps/{app}",
            Some(Admin),
            "Delete an app",
        ),
        route(
            ShowOpenapi,
            Get,
            "/v1/openapi.json",
            Some(View),
            "The description of this API",
        ),
        route(
            ShowMetrics,
            Get,
            "/metrics",
            Some(View),
            "Metrics in Prometheus' text format",
        ),
        route(
            ShowHealth,
            Get,
            "/healthz",
            None,
            "Whether the agent's API answers",
        ),
        route(
            ShowReadiness,
            Get,
            "/readyz",
            Some(View),
            "Whether the journal is loaded and the host was observed",
        ),
    ]
};

/// Whether a caller without any role may ask for this path.
pub(super) fn is_open(path: &str) -> bool {
    ROUTES
        .iter()
        .any(|route| route.needs.is_none() && route.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_and_every_operation_stands_once() {
        let places: BTreeSet<_> = ROUTES.iter().map(|r| (r.path, r.method)).collect();
        let operations: BTreeSet<_> = ROUTES.iter().map(|r| r.operation).collect();
        assert_eq!(places.len(), ROUTES.len());
        assert_eq!(operations.len(), ROUTES.len());
    }

    #[test]
    fn only_health_is_open_and_what_changes_something_needs_more_than_view() {
        for route in ROUTES {
            let open = route.path == "/healthz";
            assert_eq!(route.needs.is_none(), open, "{}", route.path);
            assert_eq!(is_open(route.path), open);
            if route.method != Method::Get {
                assert!(route.needs > Some(Role::View), "{}", route.path);
            }
        }
    }
}
