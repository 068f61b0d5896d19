//! Room on the disks, and how fast the journal's disk makes a write durable.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, StatVfs, fdatasync, open, statvfs};

use super::facts::{nearest, writable};
use super::finding::Finding;
use crate::config::Settings;

/// Writes that are measured, at most.
const WRITES: usize = 64;
/// One block: about what the journal writes for a task.
const BLOCK: usize = 4096;
/// The measurement ends after this, however few writes were done.
const BOUND: Duration = Duration::from_secs(2);
/// A commit this fast is not what an activation waits for.
const FAST: Duration = Duration::from_millis(2);

/// The disks.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub places: Vec<Place>,
    /// The state directory, and whether it can be written to.
    pub state: (PathBuf, Result<(), String>),
    /// Durable small writes there; or why they could not be measured.
    pub writes: Result<Writes, String>,
}

impl Default for Disk {
    fn default() -> Self {
        let none = "the measurement ended by a panic";
        Self {
            places: Vec::new(),
            state: (PathBuf::new(), Err(none.to_owned())),
            writes: Err(none.to_owned()),
        }
    }
}

/// A directory that fills up.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// What lies there: `state`, `runtime`, `containerd`.
    pub name: &'static str,
    pub path: PathBuf,
    /// Or why it is not known.
    pub room: Result<Room, String>,
}

/// What is left on a file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub free_bytes: u64,
    pub free_inodes: u64,
    /// 0 where the file system makes inodes as it needs them.
    pub inodes: u64,
}

/// How long durable writes took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writes {
    pub count: usize,
    pub p50: Duration,
    pub longest: Duration,
}

pub(super) fn read(settings: &Settings, containerd: Option<PathBuf>) -> Disk {
    let state = &settings.paths.state;
    let place = |name, path: &Path| Place {
        name,
        path: path.to_owned(),
        room: room(path),
    };
    let mut places = vec![
        place("state", state),
        place("runtime", &settings.paths.runtime),
    ];
    places.extend(containerd.map(|path| place("containerd", &path)));
    Disk {
        places,
        state: (state.clone(), writable(state)),
        writes: measure(&nearest(state)).map_err(|error| error.to_string()),
    }
}

fn room(path: &Path) -> Result<Room, String> {
    let StatVfs {
        f_frsize,
        f_bavail,
        f_favail,
        f_files,
        ..
    } = statvfs(nearest(path)).map_err(|errno| std::io::Error::from(errno).to_string())?;
    Ok(Room {
        free_bytes: f_bavail.saturating_mul(f_frsize),
        free_inodes: f_favail,
        inodes: f_files,
    })
}

/// Appends blocks to a file without a name, each made durable: nothing stays, whatever happens.
fn measure(directory: &Path) -> std::io::Result<Writes> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = File::from(open(directory, flags, Mode::RUSR | Mode::WUSR)?);
    let begin = Instant::now();
    let mut took = Vec::with_capacity(WRITES);
    while took.len() < WRITES && begin.elapsed() < BOUND {
        let start = Instant::now();
        file.write_all(&[0x6e; BLOCK])?;
        fdatasync(&file)?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    let none = || std::io::Error::other("not one write ended");
    Ok(Writes {
        count: took.len(),
        p50: *took.get(took.len() / 2).ok_or_else(none)?,
        longest: *took.last().ok_or_else(none)?,
    })
}

pub(super) fn judge(disk: &Disk) -> Vec<Finding> {
    let (state, writable) = &disk.state;
    let check = "disk.state";
    let mut findings = vec![match writable {
        Ok(()) => Finding::full(check, format!("{} can be written to", state.display())),
        Err(why) => Finding::not(
            check,
            format!("{} cannot be written to: {why}", state.display()),
            "no journal: the agent does not start",
            "run as root; mount it writable; or another directory: paths.state",
        ),
    }];
    findings.push(speed(&disk.writes));
    findings.extend(disk.places.iter().map(space));
    findings
}

fn speed(writes: &Result<Writes, String>) -> Finding {
    let check = "disk.speed";
    let writes = match writes {
        Ok(writes) => writes,
        Err(why) => {
            return Finding::part(
                check,
                format!("not measured: {why}"),
                "how long each task waits for the disk is not known",
                "run as root, with a state directory that can be written to",
            );
        }
    };
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let found = format!(
        "p50 {:.2} ms, longest {:.2} ms ({} durable writes of 4 KiB)",
        ms(writes.p50),
        ms(writes.longest),
        writes.count
    );
    if writes.p50 <= FAST {
        return Finding::full(check, found);
    }
    Finding::part(
        check,
        found,
        format!(
            "each activation waits for two of them: {:.0} ms",
            2.0 * ms(writes.p50)
        ),
        "a disk with a write cache that survives power loss; another directory: paths.state",
    )
}

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// Below the first number of bytes it works in part, below the second not at all.
fn wanted(name: &str) -> (u64, u64) {
    match name {
        "containerd" => (5 * GIB, 256 * MIB),
        "state" => (GIB, 64 * MIB),
        // Sockets, namespaces and discovery files.
        _ => (16 * MIB, MIB),
    }
}

fn space(place: &Place) -> Finding {
    let check = format!("disk.{}_space", place.name);
    let at = place.path.display();
    let room = match &place.room {
        Ok(room) => room,
        Err(why) => {
            return Finding::part(
                &check,
                format!("{at}: {why}"),
                "how much room is left is not known",
                "run as root",
            );
        }
    };
    let (enough, least) = wanted(place.name);
    let means = match place.name {
        "containerd" => "images cannot be unpacked, and containers cannot write",
        "state" => "tasks are refused when the journal cannot grow, and logs are lost",
        _ => "registrations cannot be written",
    };
    let mend = match place.name {
        "containerd" => {
            "remove images that nobody uses (ctr -n nodeagent images), or a larger disk"
        }
        _ => "make room, or a larger file system",
    };
    let inodes = match room.inodes {
        0 => String::new(),
        _ => format!(", {} inodes", room.free_inodes),
    };
    let found = format!("{} free{inodes} at {at}", size(room.free_bytes));
    // A container needs some thousand files at most; an image some ten thousand.
    let few = room.inodes > 0 && room.free_inodes < 10_000 && place.name != "runtime";
    let none = room.inodes > 0 && room.free_inodes < 100;
    if room.free_bytes < least || none {
        Finding::not(&check, found, means, mend)
    } else if room.free_bytes < enough || few {
        Finding::part(&check, found, format!("soon: {means}"), mend)
    } else {
        Finding::full(&check, found)
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        GIB.. => format!("{} GiB", bytes / GIB),
        MIB.. => format!("{} MiB", bytes / MIB),
        _ => format!("{} KiB", bytes / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    fn place(name: &'static str, free_bytes: u64, free_inodes: u64, inodes: u64) -> Place {
        Place {
            name,
            path: "/x".into(),
            room: Ok(Room {
                free_bytes,
                free_inodes,
                inodes,
            }),
        }
    }

    #[test]
    fn a_disk_that_fills_up_is_said_before_and_when_it_is_full() {
        let works = |bytes, inodes| space(&place("state", bytes, inodes, 1_000_000)).works;
        assert_eq!(works(2 * GIB, 500_000), Works::Full);
        assert_eq!(works(500 * MIB, 500_000), Works::Part);
        assert_eq!(works(10 * MIB, 500_000), Works::Not);
        assert_eq!(works(2 * GIB, 5_000), Works::Part);
        assert_eq!(works(2 * GIB, 3), Works::Not);
        let btrfs = space(&place("containerd", 9 * GIB, 0, 0));
        assert_eq!(
            (btrfs.works, btrfs.found.as_str()),
            (Works::Full, "9 GiB free at /x")
        );
    }

    #[test]
    fn a_slow_disk_is_told_in_what_an_activation_waits() {
        let of = |ms| {
            speed(&Ok(Writes {
                count: 64,
                p50: Duration::from_millis(ms),
                longest: Duration::from_millis(ms),
            }))
        };
        assert_eq!(of(1).works, Works::Full);
        let slow = of(12);
        assert_eq!(slow.works, Works::Part);
        assert_eq!(
            slow.means.as_deref(),
            Some("each activation waits for two of them: 24 ms")
        );
    }

    #[test]
    fn measuring_leaves_nothing_and_ends() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let writes = measure(directory.path()).unwrap();
        assert!(writes.count >= 1 && writes.p50 <= writes.longest);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
