//! Rows into tables.

use rusqlite::{Connection, params};

use super::rows::{InstanceRow, Write};
use crate::instance::Urgency;

/// Something that cannot be written; the transaction is rolled back.
pub(super) type Result<T> = std::result::Result<T, Unwritable>;

/// Why a row could not be written.
#[derive(Debug)]
pub(super) enum Unwritable {
    Sql(rusqlite::Error),
    Json(serde_json::Error),
}

impl From<rusqlite::Error> for Unwritable {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<serde_json::Error> for Unwritable {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

/// SQLite's integers are signed; ours never reach the sign bit.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn write(db: &Connection, change: &Write) -> Result<()> {
    match change {
        Write::Revision(revision, applied_ms) => {
            let app = revision.app.name.as_str();
            db.prepare_cached(
                "INSERT INTO revisions (app, id, manifest, image, applied_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (app, id) DO UPDATE SET manifest = ?3, image = ?4, applied_ms = ?5",
            )?
            .execute(params![app, revision.id, revision.manifest, serde_json::to_string(&revision.image)?, signed(*applied_ms)])?;
            db.prepare_cached(
                "INSERT INTO apps (name, revision, target, seq, deleting, applied_ms) VALUES (?1, ?2, 0, 0, 0, ?3)
                 ON CONFLICT (name) DO UPDATE SET revision = ?2, applied_ms = ?3",
            )?
            .execute(params![app, revision.id, signed(*applied_ms)])?;
        }
        Write::Deleting(app) => {
            db.prepare_cached(
                "UPDATE apps SET deleting = 1, target = 0, seq = seq + 1 WHERE name = ?1",
            )?
            .execute([app.as_str()])?;
        }
        Write::AppGone(app) => {
            for table in [
                "DELETE FROM apps WHERE name = ?1",
                "DELETE FROM revisions WHERE app = ?1",
                "DELETE FROM stable WHERE app = ?1",
            ] {
                db.prepare_cached(table)?.execute([app.as_str()])?;
            }
            // Generations and addresses outlive the app: an app of that name may come again.
        }
        Write::Stable(app, None) => {
            db.prepare_cached("DELETE FROM stable WHERE app = ?1")?
                .execute([app.as_str()])?;
        }
        Write::Stable(app, Some(row)) => {
            db.prepare_cached(
                "INSERT OR REPLACE INTO stable (app, revision, evidence, since_ms) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                app.as_str(),
                row.revision,
                serde_json::to_string(&row.evidence)?,
                signed(row.since_ms)
            ])?;
        }
        Write::Target { app, target, seq } => {
            db.prepare_cached("UPDATE apps SET target = ?2, seq = ?3 WHERE name = ?1")?
                .execute(params![app.as_str(), target, signed(*seq)])?;
        }
        Write::Instance(row) => instance(db, row)?,
        Write::InstanceGone {
            instance,
            generation,
            released_ms,
        } => {
            db.prepare_cached(
                "UPDATE instances SET generation = ?3, released_ms = ?4, serving = 0, registered = 0, task_id = NULL,
                   traceparent = NULL WHERE app = ?1 AND ordinal = ?2",
            )?
            .execute(params![instance.app.as_str(), instance.ordinal, signed(*generation), signed(*released_ms)])?;
        }
        Write::TaskOpened(task) => {
            let restart = task.restart.as_ref().map(serde_json::to_string);
            let restart = restart.transpose()?;
            db.prepare_cached(
                "INSERT INTO tasks (task_id, app, verb, wanted, hash, traceparent, target, seq, created_ms, deadline_ms,
                   step, revision, steady_ms, restart, image)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            )?
            .execute(params![
                task.context.task_id.as_str(),
                task.app.as_str(),
                task.verb.as_str(),
                task.to,
                task.hash,
                task.context.traceparent,
                task.target,
                signed(task.seq),
                signed(task.created_ms),
                signed(task.deadline_ms),
                task.roll.as_ref().map(|roll| roll.step),
                task.roll.as_ref().map(|roll| roll.revision.as_str()),
                signed(task.steady_ms),
                restart,
                task.image.as_str(),
            ])?;
        }
        Write::TaskClosed {
            task_id,
            outcome,
            finished_ms,
        } => {
            db.prepare_cached(
                "UPDATE tasks SET outcome = ?2, finished_ms = ?3 WHERE task_id = ?1",
            )?
            .execute(params![
                task_id.as_str(),
                serde_json::to_string(outcome)?,
                signed(*finished_ms)
            ])?;
        }
        Write::Trail(task_id, trail) => {
            db.prepare_cached("INSERT INTO trails (task_id, trail) VALUES (?1, ?2) ON CONFLICT (task_id) DO UPDATE SET trail = ?2")?
                .execute(params![task_id.as_str(), serde_json::to_string(trail)?])?;
        }
        Write::Boot {
            id,
            clock_offset_ms,
        } => {
            meta(db, "boot_id", id)?;
            meta(db, "clock_offset_ms", &clock_offset_ms.to_string())?;
        }
        Write::Loss(loss) => meta(db, "loss", &serde_json::to_string(loss)?)?,
        Write::Accepted => {
            db.execute("DELETE FROM meta WHERE key = 'loss'", [])?;
        }
        Write::Floor(floor) => meta(db, "floor", &floor.to_string())?,
        Write::Operation { app, changes } => {
            db.prepare_cached("INSERT INTO operations (app, changes) VALUES (?1, ?2)")?
                .execute(params![app.as_str(), changes])?;
        }
    }
    Ok(())
}

pub(super) fn meta(db: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    let sql =
        "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
    db.prepare_cached(sql)?.execute([key, value]).map(drop)
}

fn instance(db: &Connection, row: &InstanceRow) -> Result<()> {
    let urgency = match row.urgency {
        Urgency::Drain => "drain",
        Urgency::Now => "now",
        Urgency::Force => "force",
    };
    let host_ports = match row.host_ports[..] {
        [] => None,
        _ => Some(serde_json::to_string(&row.host_ports)?),
    };
    db.prepare_cached(
        "INSERT OR REPLACE INTO instances (app, ordinal, generation, create_generation, revision, phase, serving,
           warmth, task_id, traceparent, address, registered, urgency, released_ms, rootfs_generation, host_ports,
           reuses)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
    )?
    .execute(params![
        row.instance.app.as_str(),
        row.instance.ordinal,
        signed(row.generation),
        signed(row.create_generation),
        row.revision,
        row.phase.as_str(),
        row.serving,
        row.from.map(|warmth| warmth.as_str()),
        row.task.as_ref().map(|task| task.task_id.as_str()),
        row.task.as_ref().map(|task| task.traceparent.as_str()),
        row.address.map(|address| address.to_string()),
        row.registered,
        urgency,
        row.released_ms.map(signed),
        signed(row.rootfs_generation),
        host_ports,
        row.reuses,
    ])?;
    Ok(())
}
