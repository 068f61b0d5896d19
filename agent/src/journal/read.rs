//! Tables into rows.

use std::collections::BTreeMap;
use std::str::FromStr;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row};

use super::loss::Loss;
use super::rows::{InstanceRow, StableRow, StoredTask, TaskQuery, TaskRow};
use crate::instance::{AppName, InstanceName, Phase, Urgency, Warmth};
use crate::runtime::Image;
use crate::task::{EndState, Roll, ScaleImage, TaskContext, TaskId, Trail, Verb};

/// A pool's durable part.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolRow {
    /// The app.
    pub app: AppName,
    /// Id of the current revision.
    pub revision: String,
    /// Instances wanted in service.
    pub target: u32,
    /// Sequence number of the target.
    pub seq: u64,
    /// The app is being deleted.
    pub deleting: bool,
    /// Unix milliseconds of the last application.
    pub applied_ms: u64,
}

/// A revision that instances may have been made from.
#[derive(Debug, Clone, PartialEq)]
pub struct RevisionRow {
    /// The app.
    pub app: AppName,
    /// Its id.
    pub id: String,
    /// The manifest's text.
    pub manifest: String,
    /// The image, as resolved.
    pub image: Image,
}

/// Everything that a starting agent continues from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovered {
    /// Pools.
    pub pools: Vec<PoolRow>,
    /// Revisions of all pools.
    pub revisions: Vec<RevisionRow>,
    /// What is stable, by app.
    pub stable: BTreeMap<AppName, StableRow>,
    /// Instances, also those of which only generation and address are left.
    pub instances: Vec<InstanceRow>,
    /// Tasks without an outcome.
    pub open_tasks: Vec<TaskRow>,
    /// Boot of which everything was observed last.
    pub boot_id: Option<String>,
    /// Steady time of that boot less its boot time, in milliseconds ([`crate::pool::Now`]).
    pub clock_offset_ms: Option<i64>,
    /// The agent's own id, made with the journal: tells it from another agent with its host id.
    pub agent_id: String,
    /// Counts the journals of this host that were lost, from 1.
    pub epoch: u64,
    /// Generations and sequence numbers of this epoch are greater than this.
    pub floor: u64,
    /// The journal before this one was lost, and nobody has accepted it yet.
    pub loss: Option<Loss>,
}

pub(super) fn recover(db: &Connection) -> rusqlite::Result<Recovered> {
    let loss = meta(db, "loss")?.map(|text| serde_json::from_str(&text));
    let numbers = |key| -> rusqlite::Result<Option<u64>> {
        let text = meta(db, key)?;
        text.map(|text| text.parse().map_err(|e| conversion(0, e)))
            .transpose()
    };
    Ok(Recovered {
        boot_id: meta(db, "boot_id")?,
        clock_offset_ms: meta(db, "clock_offset_ms")?
            .map(|text| text.parse().map_err(|e| conversion(0, e)))
            .transpose()?,
        agent_id: meta(db, "agent_id")?.unwrap_or_default(),
        epoch: numbers("epoch")?.unwrap_or(1),
        floor: numbers("floor")?.unwrap_or(0),
        loss: loss.transpose().map_err(|e| conversion(0, e))?,
        pools: pools(db)?,
        revisions: revisions(db)?,
        stable: stable(db)?,
        instances: instances(db)?,
        open_tasks: all(
            db,
            &format!("{TASK} WHERE outcome IS NULL ORDER BY seq"),
            |row| Ok(task(row)?.row),
        )?,
    })
}

fn meta(db: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
        row.get(0)
    })
    .optional()
}

pub(super) fn pools(db: &Connection) -> rusqlite::Result<Vec<PoolRow>> {
    let sql = "SELECT name, revision, target, seq, deleting, applied_ms FROM apps ORDER BY name";
    all(db, sql, |row| {
        Ok(PoolRow {
            app: parsed(row, 0)?,
            revision: row.get(1)?,
            target: row.get(2)?,
            seq: unsigned(row, 3)?,
            deleting: row.get(4)?,
            applied_ms: unsigned(row, 5)?,
        })
    })
}

pub(super) fn revisions(db: &Connection) -> rusqlite::Result<Vec<RevisionRow>> {
    let sql = "SELECT app, id, manifest, image FROM revisions ORDER BY app, id";
    all(db, sql, |row| {
        Ok(RevisionRow {
            app: parsed(row, 0)?,
            id: row.get(1)?,
            manifest: row.get(2)?,
            image: json(row, 3)?,
        })
    })
}

fn stable(db: &Connection) -> rusqlite::Result<BTreeMap<AppName, StableRow>> {
    let sql = "SELECT app, revision, evidence, since_ms FROM stable";
    let rows = all(db, sql, |row| {
        let stable = StableRow {
            revision: row.get(1)?,
            evidence: json(row, 2)?,
            since_ms: unsigned(row, 3)?,
        };
        Ok((parsed(row, 0)?, stable))
    })?;
    Ok(rows.into_iter().collect())
}

pub(super) fn instances(db: &Connection) -> rusqlite::Result<Vec<InstanceRow>> {
    all(db, &format!("{INSTANCE} ORDER BY app, ordinal"), instance)
}

const INSTANCE: &str =
    "SELECT app, ordinal, generation, create_generation, revision, phase, serving, warmth, task_id,
   traceparent, address, registered, urgency, released_ms, rootfs_generation, host_ports, reuses FROM instances";

const TASK: &str =
    "SELECT task_id, app, verb, wanted, hash, traceparent, target, seq, created_ms, deadline_ms,
   finished_ms, outcome, step, revision, coalesce(steady_ms, created_ms), restart, image FROM tasks";

pub(super) fn find_task(db: &Connection, id: &TaskId) -> rusqlite::Result<Option<StoredTask>> {
    db.prepare_cached(&format!("{TASK} WHERE task_id = ?1"))?
        .query_row([id.as_str()], task)
        .optional()
}

pub(super) fn newest_tasks(
    db: &Connection,
    query: &TaskQuery,
) -> rusqlite::Result<Vec<StoredTask>> {
    let sql = format!(
        "{TASK} WHERE created_ms >= ?1 AND (?2 IS NULL OR app = ?2)
         AND (?3 = '[]' OR coalesce(outcome ->> '$.state', '') IN (SELECT value FROM json_each(?3)))
         ORDER BY created_ms DESC, task_id LIMIT ?4"
    );
    let since = i64::try_from(query.since_ms).unwrap_or(i64::MAX);
    let app = query.app.as_ref().map(AppName::as_str);
    let states = query.states.iter();
    let states: Vec<&str> = states.map(|s| s.map_or("", EndState::as_str)).collect();
    let states = serde_json::Value::from(states).to_string();
    db.prepare_cached(&sql)?
        .query_map((since, app, states, query.limit), task)?
        .collect()
}

pub(super) fn find_trail(db: &Connection, id: &TaskId) -> rusqlite::Result<Option<Trail>> {
    db.prepare_cached("SELECT trail FROM trails WHERE task_id = ?1")?
        .query_row([id.as_str()], |row| json(row, 0))
        .optional()
}

pub(super) fn left_behind(db: &Connection, app: &AppName) -> rusqlite::Result<Vec<InstanceRow>> {
    db.prepare_cached(&format!("{INSTANCE} WHERE app = ?1 ORDER BY ordinal"))?
        .query_map([app.as_str()], instance)?
        .collect()
}

fn all<T>(
    db: &Connection,
    sql: &str,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    db.prepare(sql)?.query_map([], read)?.collect()
}

fn instance(row: &Row<'_>) -> rusqlite::Result<InstanceRow> {
    let warmth: Option<String> = row.get(7)?;
    let task_id: Option<String> = row.get(8)?;
    let traceparent: Option<String> = row.get(9)?;
    let address: Option<String> = row.get(10)?;
    let urgency: String = row.get(12)?;
    let task = match (task_id, traceparent) {
        (Some(id), Some(traceparent)) => Some(TaskContext {
            task_id: parse(&id, 8)?,
            traceparent,
        }),
        _ => None,
    };
    Ok(InstanceRow {
        instance: InstanceName::new(parsed(row, 0)?, row.get(1)?),
        generation: unsigned(row, 2)?,
        create_generation: unsigned(row, 3)?,
        rootfs_generation: unsigned(row, 14)?,
        revision: row.get(4)?,
        phase: word(row, 5, Phase::from_name)?,
        serving: row.get(6)?,
        from: warmth.as_deref().and_then(Warmth::from_name),
        task,
        address: address.map(|text| parse(&text, 10)).transpose()?,
        host_ports: match row.get::<_, Option<String>>(15)? {
            Some(_) => json(row, 15)?,
            None => Vec::new(),
        },
        reuses: row.get(16)?,
        registered: row.get(11)?,
        urgency: match urgency.as_str() {
            "now" => Urgency::Now,
            "force" => Urgency::Force,
            _ => Urgency::Drain,
        },
        released_ms: row.get::<_, Option<i64>>(13)?.map(i64::unsigned_abs),
    })
}

fn task(row: &Row<'_>) -> rusqlite::Result<StoredTask> {
    let finished_ms: Option<i64> = row.get(10)?;
    let outcome: Option<String> = row.get(11)?;
    let ended = match (finished_ms, outcome) {
        (Some(at), Some(_)) => Some((at.unsigned_abs(), json(row, 11)?)),
        _ => None,
    };
    let (step, revision): (Option<u32>, Option<String>) = (row.get(12)?, row.get(13)?);
    Ok(StoredTask {
        row: TaskRow {
            context: TaskContext {
                task_id: parsed(row, 0)?,
                traceparent: row.get(5)?,
            },
            app: parsed(row, 1)?,
            verb: word(row, 2, Verb::from_name)?,
            to: row.get(3)?,
            roll: step
                .zip(revision)
                .map(|(step, revision)| Roll { step, revision }),
            restart: match row.get::<_, Option<String>>(15)? {
                Some(_) => Some(json(row, 15)?),
                None => None,
            },
            image: match row.get::<_, Option<String>>(16)? {
                Some(_) => word(row, 16, ScaleImage::from_name)?,
                None => ScaleImage::Stable,
            },
            hash: row.get(4)?,
            target: row.get(6)?,
            seq: unsigned(row, 7)?,
            created_ms: unsigned(row, 8)?,
            steady_ms: unsigned(row, 14)?,
            deadline_ms: unsigned(row, 9)?,
        },
        ended,
    })
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|error| conversion(column, error))
}

fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    parse(&text, column)
}

fn parse<T>(text: &str, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    text.parse().map_err(|error| conversion(column, error))
}

fn word<T>(row: &Row<'_>, column: usize, named: impl Fn(&str) -> Option<T>) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    named(&text).ok_or_else(|| {
        conversion(
            column,
            std::io::Error::other(format!("unknown word {text:?}")),
        )
    })
}

fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| conversion(column, error))
}

fn conversion(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
