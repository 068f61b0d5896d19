//! Tables, and how an older journal becomes a present one.

use rusqlite::Connection;

/// Version of the tables below; `PRAGMA user_version` of the file.
pub(super) const VERSION: i64 = 7;

pub(super) const V1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE apps (
  name TEXT PRIMARY KEY, revision TEXT NOT NULL, target INTEGER NOT NULL, seq INTEGER NOT NULL,
  deleting INTEGER NOT NULL, applied_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE revisions (
  app TEXT NOT NULL, id TEXT NOT NULL, manifest TEXT NOT NULL, image TEXT NOT NULL,
  applied_ms INTEGER NOT NULL, PRIMARY KEY (app, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE instances (
  app TEXT NOT NULL, ordinal INTEGER NOT NULL, generation INTEGER NOT NULL,
  create_generation INTEGER NOT NULL, revision TEXT NOT NULL, phase TEXT NOT NULL,
  serving INTEGER NOT NULL, warmth TEXT, task_id TEXT, traceparent TEXT, address TEXT,
  registered INTEGER NOT NULL, urgency TEXT NOT NULL, released_ms INTEGER,
  PRIMARY KEY (app, ordinal)
) STRICT, WITHOUT ROWID;
CREATE TABLE tasks (
  task_id TEXT PRIMARY KEY, app TEXT NOT NULL, verb TEXT NOT NULL, wanted INTEGER NOT NULL,
  hash TEXT NOT NULL, traceparent TEXT NOT NULL, target INTEGER NOT NULL, seq INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, deadline_ms INTEGER NOT NULL, finished_ms INTEGER, outcome TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX tasks_by_time ON tasks (created_ms);
CREATE TABLE trails (task_id TEXT PRIMARY KEY, trail TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE operations (
  id INTEGER PRIMARY KEY AUTOINCREMENT, app TEXT NOT NULL, changes INTEGER NOT NULL
) STRICT;
";

/// Rootfs that outlive their container; open tasks are found without reading the ended ones.
const V2: &str = "
ALTER TABLE instances ADD COLUMN rootfs_generation INTEGER NOT NULL DEFAULT 0;
UPDATE instances SET rootfs_generation = create_generation;
ALTER TABLE tasks ADD COLUMN revision TEXT;
CREATE INDEX tasks_open ON tasks (seq) WHERE outcome IS NULL;
";

/// Host ports of an instance, as JSON.
const V3: &str = "ALTER TABLE instances ADD COLUMN host_ports TEXT;";

/// Rolls: how many instances at a time; `revision` is the one that they lead to.
const V4: &str = "ALTER TABLE tasks ADD COLUMN step INTEGER;";

/// When a task was accepted by the clock that nobody sets.
const V5: &str = "ALTER TABLE tasks ADD COLUMN steady_ms INTEGER;";

/// Restarts in place: how often a container was reused, and what a task restarts, as JSON.
const V6: &str = "
ALTER TABLE instances ADD COLUMN reuses INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN restart TEXT;
";

/// Stable images of apps; tasks that say which image they mean.
const V7: &str = "
CREATE TABLE stable (
  app TEXT PRIMARY KEY, revision TEXT NOT NULL, evidence TEXT NOT NULL, since_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
ALTER TABLE tasks ADD COLUMN image TEXT;
";

/// What leads from each version to the next, the first from nothing.
const STEPS: [&str; VERSION as usize] = [V1, V2, V3, V4, V5, V6, V7];

/// What is wrong with a journal's version.
#[derive(Debug)]
pub(super) enum Version {
    /// Present, or brought up to date.
    Current,
    /// Made by a newer nodeagent.
    Newer(i64),
}

/// The schema of a file that a newer nodeagent made.
pub(super) fn newer(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok((found > VERSION).then_some(found))
}

/// Brings the tables to [`VERSION`], in one transaction, and gives a new journal its agent id.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let missing = STEPS.iter().skip(usize::try_from(found).unwrap_or(0));
    if found < VERSION {
        let transaction = connection.transaction()?;
        for step in missing {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()?;
    }
    name_the_agent(connection)
}

/// A journal has an agent id from its first opening on.
fn name_the_agent(connection: &Connection) -> rusqlite::Result<()> {
    connection
        .execute(
            "INSERT OR IGNORE INTO meta (key, value) VALUES ('agent_id', lower(hex(randomblob(16))))",
            [],
        )
        .map(drop)
}
