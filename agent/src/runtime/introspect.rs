//! What containerd says of itself: its plugins.

use containerd_client::services::v1::PluginsRequest;
use containerd_client::services::v1::introspection_client::IntrospectionClient;

use super::Containerd;
use super::error::RuntimeError;

/// A snapshotter, as containerd loaded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshotter {
    /// Its name: `overlayfs`.
    pub name: String,
    /// Why it was not loaded.
    pub fault: Option<String>,
    /// Its directory on the host, when it says so.
    pub root: Option<String>,
}

impl Containerd {
    /// The snapshotters that containerd has, by name.
    pub async fn snapshotters(&self) -> Result<Vec<Snapshotter>, RuntimeError> {
        let mut client = IntrospectionClient::new(self.connection.channel());
        let request = self.connection.request(PluginsRequest {
            filters: vec!["type==io.containerd.snapshotter.v1".to_owned()],
        });
        let call = client.plugins(request);
        let answer = self.connection.call("list", "plugins", call).await?;
        let mut found: Vec<Snapshotter> = answer
            .plugins
            .into_iter()
            .map(|plugin| Snapshotter {
                fault: plugin.init_err.map(|status| status.message),
                root: plugin.exports.get("root").cloned(),
                name: plugin.id,
            })
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}
