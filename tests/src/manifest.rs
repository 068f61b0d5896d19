//! Manifests of test apps: short bounds, small limits, one field changed at a time.

use serde_json::{Value, json};

use crate::registry::Registry;

/// A manifest in the making; JSON is YAML.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest(Value);

impl Manifest {
    /// An app of the image `image` (`web:1`) in the host's registry, ready when started.
    pub fn new(app: &str, image: &str) -> Self {
        Self(json!({
            "apiVersion": "nodeagent/v1",
            "kind": "App",
            "metadata": { "name": app },
            "spec": {
                "image": Registry::reference(image),
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "resources": { "limits": { "memory": "64Mi", "pids": 32 } },
                "warm": { "armed": 0 },
                "terminationGracePeriodSeconds": 3,
                "drainSeconds": 1,
            },
        }))
    }

    /// The web image, ready when its page answers.
    pub fn web(app: &str) -> Self {
        Self::new(app, "web:1").ready_by_page(10)
    }

    /// The notify image, ready as soon as it says so.
    pub fn notify(app: &str) -> Self {
        let readiness = json!({ "notify": {}, "timeoutSeconds": 10 });
        Self::new(app, "notify:1").with("readiness", readiness)
    }

    /// A shell script in the web image that ends in its httpd: `script` runs before.
    pub fn script(app: &str, script: &str) -> Self {
        Self::new(app, "web:1").with("command", json!(["/bin/sh", "-c", script]))
    }

    /// Ready when its page answers, looked for `seconds` at most.
    pub fn ready_by_page(self, seconds: u32) -> Self {
        let readiness = json!({
            "httpGet": { "path": "/", "port": "http" },
            "periodSeconds": 1,
            "failureThreshold": seconds,
        });
        self.with("readiness", readiness)
    }

    /// Warm containers at the gate.
    pub fn armed(self, armed: u32) -> Self {
        self.with("warm", json!({ "armed": armed }))
    }

    /// Sets one field of `spec`.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.0["spec"][field] = value;
        self
    }

    /// Sets `metadata.labels`.
    pub fn labelled(mut self, labels: Value) -> Self {
        self.0["metadata"]["labels"] = labels;
        self
    }

    /// `metadata.name`.
    pub fn app(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// The text to apply.
    pub fn text(&self) -> String {
        format!("{:#}\n", self.0)
    }
}
