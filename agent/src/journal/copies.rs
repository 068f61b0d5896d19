//! A copy of each applied manifest, as a file beside the journal: what a lost journal takes with it
//! that cannot be observed on the host.
//!
//! Written behind the commit that applies or deletes an app and before its answer, compared with the
//! journal at every start. The journal is the truth as long as there is one.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::loss::{replace, sync_directory};
use super::read::{self, PoolRow, RevisionRow};
use crate::instance::AppName;
use crate::runtime::Image;

/// `<state>/apps`.
#[derive(Debug, Clone)]
pub(super) struct Copies {
    directory: PathBuf,
}

/// `<state>/apps/<app>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Copy {
    app: String,
    current: String,
    applied_ms: u64,
    /// Those that instances may have been made from, the current one among them.
    revisions: Vec<CopiedRevision>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct CopiedRevision {
    id: String,
    manifest: String,
    image: Image,
}

/// What cannot be copied.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error("the copy of a manifest cannot be written")]
    Write(#[from] io::Error),
    #[error("the journal cannot be read for the copy of a manifest")]
    Read(#[from] rusqlite::Error),
    #[error("the copy of a manifest cannot be encoded")]
    Encode(#[from] serde_json::Error),
}

impl Copies {
    pub fn open(state: &Path) -> io::Result<Self> {
        let directory = state.join("apps");
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    fn file(&self, app: &str) -> PathBuf {
        self.directory.join(format!("{app}.json"))
    }

    /// Makes the copy of one app what the journal says.
    pub fn refresh(&self, db: &Connection, app: &AppName) -> Result<(), CopyError> {
        let pools = read::pools(db)?;
        let revisions = read::revisions(db)?;
        let pool = pools.iter().find(|pool| pool.app == *app);
        self.write(app.as_str(), pool, &revisions)
    }

    /// Makes all copies what the journal says.
    pub fn reconcile(&self, pools: &[PoolRow], revisions: &[RevisionRow]) -> Result<(), CopyError> {
        for pool in pools {
            self.write(pool.app.as_str(), Some(pool), revisions)?;
        }
        for app in self.apps()? {
            if !pools.iter().any(|pool| pool.app.as_str() == app) {
                self.write(&app, None, &[])?;
            }
        }
        Ok(())
    }

    fn write(
        &self,
        app: &str,
        pool: Option<&PoolRow>,
        revisions: &[RevisionRow],
    ) -> Result<(), CopyError> {
        let file = self.file(app);
        let Some(pool) = pool else {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => return Ok(sync_directory(&self.directory)?),
            }
        };
        let of_app = revisions.iter().filter(|row| row.app.as_str() == app);
        let copy = Copy {
            app: app.to_owned(),
            current: pool.revision.clone(),
            applied_ms: pool.applied_ms,
            revisions: of_app
                .map(|row| CopiedRevision {
                    id: row.id.clone(),
                    manifest: row.manifest.clone(),
                    image: row.image.clone(),
                })
                .collect(),
        };
        let text = serde_json::to_vec_pretty(&copy)?;
        if fs::read(&file).ok().as_ref() != Some(&text) {
            replace(&file, &text)?;
        }
        Ok(())
    }

    /// Names of the apps that have a copy.
    fn apps(&self) -> io::Result<Vec<String>> {
        let mut apps = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            if let Some(app) = name.to_str().and_then(|name| name.strip_suffix(".json")) {
                apps.push(app.to_owned());
            }
        }
        apps.sort();
        Ok(apps)
    }

    /// Whether there is any.
    pub fn any(&self) -> io::Result<bool> {
        Ok(!self.apps()?.is_empty())
    }

    /// All that can be read, with no target: what serves is observed.
    pub fn read(&self) -> io::Result<(Vec<PoolRow>, Vec<RevisionRow>)> {
        let mut pools = Vec::new();
        let mut revisions = Vec::new();
        for app in self.apps()? {
            let text = fs::read(self.file(&app))?;
            let read = serde_json::from_slice::<Copy>(&text).ok();
            let named = app.parse::<AppName>().ok();
            let (Some(copy), Some(name)) = (read.filter(|copy| copy.app == app), named) else {
                tracing::error!(app, "the copy of the manifest is damaged; apply it again");
                continue;
            };
            pools.push(PoolRow {
                app: name.clone(),
                revision: copy.current,
                target: 0,
                seq: 0,
                deleting: false,
                applied_ms: copy.applied_ms,
            });
            revisions.extend(copy.revisions.into_iter().map(|revision| RevisionRow {
                app: name.clone(),
                id: revision.id,
                manifest: revision.manifest,
                image: revision.image,
            }));
        }
        Ok((pools, revisions))
    }
}
