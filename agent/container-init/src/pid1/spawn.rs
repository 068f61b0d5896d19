//! Executing a process of the plan: everything is prepared here, the child only makes calls.
//! What the child does to itself and how it executes is shared with [`super::prepared`].

use core::ffi::{CStr, c_char};

use container_init::plan::{MAX_GROUPS, MAX_STRINGS, Output, Process, ProcessKind, Strings};
use container_init::protocol::Start;

use super::cgroup::Cgroups;
use super::disk::Pipes;
use super::environment::{Environment, Room};
use super::say::{Number, say};
use super::sys::{self, Errno, Fd, Inherited, Open, Pointers, Vfork};

/// PATH of execvp(3) when there is none.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// PATH_MAX
pub const PATH_SIZE: usize = 4096;

/// Room for one execution, used again for the next.
pub struct Buffers {
    argv: [*const c_char; MAX_STRINGS + 1],
    environment: Room,
    path: [u8; PATH_SIZE],
}

impl Buffers {
    pub const fn new() -> Self {
        Self {
            argv: [core::ptr::null(); MAX_STRINGS + 1],
            environment: Room::new(),
            path: [0; PATH_SIZE],
        }
    }
}

/// What differs between a process, its start and its probe.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    pub argv: Strings<'static>,
    pub start: Option<Start<'a>>,
    pub notify: Option<&'a CStr>,
    /// This descriptor of ours as that number of the process.
    pub newline: Option<(&'a Fd, u32)>,
    /// Where its log is read from.
    pub log: Option<&'a Pipes>,
    pub purpose: Purpose,
    pub inherited: Inherited,
    /// Where the process has a cgroup of its own.
    pub cgroups: Option<Cgroups>,
}

/// Whether the process itself is executed or a look at it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Run,
    Probe,
    /// As a probe; the agent is told what fails, and nobody else.
    Look,
}

/// Why a process does not run.
pub struct NotSpawned {
    /// 0 when there was none.
    pub pid: u32,
    /// 127 when the command was not found, 126 for everything else.
    pub code: u8,
    pub errno: Errno,
}

/// Executes; returns the pid once the new program is in place.
pub fn spawn(
    process: &Process<'static>,
    order: Order<'_>,
    buffers: &mut Buffers,
) -> Result<u32, NotSpawned> {
    let not = |step: &[u8], errno: Errno, pid: u32| {
        if order.purpose == Purpose::Look {
            let code = exit_code(step, errno);
            return NotSpawned { pid, code, errno };
        }
        not_spawned(process.name, step, errno, pid)
    };
    let program = Program::collect(process, &order, buffers)
        .ok_or_else(|| not(b"arguments and environment do not fit", Errno(7), 0))?;
    let mut child = Child {
        process,
        order,
        program,
        failure: None,
    };
    let pid = sys::vfork(&mut child).map_err(|errno| not(b"cannot make a process", errno, 0))?;
    match child.failure {
        None => Ok(pid),
        Some((step, errno)) => Err(not(step, errno, pid)),
    }
}

/// The last step, whose error tells more than that it failed.
pub const EXECUTE: &[u8] = b"cannot execute";

/// Says why a process does not run.
pub fn not_spawned(name: &str, step: &[u8], errno: Errno, pid: u32) -> NotSpawned {
    say(&[
        name.as_bytes(),
        b": ",
        step,
        b": errno ",
        Number::new(errno.0).as_bytes(),
    ]);
    NotSpawned {
        pid,
        code: exit_code(step, errno),
        errno,
    }
}

/// As a shell says it.
fn exit_code(step: &[u8], errno: Errno) -> u8 {
    match step == EXECUTE && errno == Errno::ENOENT {
        true => 127,
        false => 126,
    }
}

struct Child<'a> {
    process: &'a Process<'static>,
    order: Order<'a>,
    program: Program<'a>,
    failure: Option<(&'static [u8], Errno)>,
}

impl Vfork for Child<'_> {
    fn run(&mut self) {
        self.failure = match become_process(self.process, &self.order) {
            Ok(()) => Some((EXECUTE, self.program.execute())),
            Err(failure) => Some(failure),
        };
    }
}

/// What the child does to itself before it executes. In this order: limits before ids (raising
/// needs root), the bounding set while SETPCAP is there, groups before uid, the directory with the
/// process's own rights.
pub fn become_process(
    process: &Process<'_>,
    order: &Order<'_>,
) -> Result<(), (&'static [u8], Errno)> {
    let step = |name: &'static [u8]| move |errno| (name, errno);
    if let Some(cgroups) = order.cgroups {
        cgroups
            .enter(process.name)
            .map_err(step(b"cannot enter its cgroup"))?;
    }
    sys::setsid().map_err(step(b"cannot begin a session"))?;
    if let Some(score) = process.oom_score_adj {
        set_oom_score_adj(score).map_err(step(b"cannot set oom_score_adj"))?;
    }
    if let Some(nice) = process.nice {
        sys::set_nice(nice).map_err(step(b"cannot set its nice value"))?;
    }
    streams(process, order).map_err(step(b"cannot set up its streams"))?;
    if let Some((fd, number)) = order.newline {
        sys::place(fd, number).map_err(step(b"cannot hand over its notification descriptor"))?;
    }
    for limit in process.rlimits.iter() {
        sys::set_limit(limit).map_err(step(b"cannot set a resource limit"))?;
    }
    sys::drop_from_bounding_set(process.capabilities)
        .map_err(step(b"cannot drop the bounding set"))?;
    sys::clear_ambient().map_err(step(b"cannot clear ambient capabilities"))?;
    let mut groups = [0; MAX_GROUPS];
    let mut count = 0;
    for (room, group) in groups.iter_mut().zip(process.groups.iter()) {
        *room = group;
        count += 1;
    }
    sys::set_groups(groups.get(..count).unwrap_or_default()).map_err(step(b"cannot set groups"))?;
    sys::set_gid(process.gid).map_err(step(b"cannot set gid"))?;
    sys::set_uid(process.uid).map_err(step(b"cannot set uid"))?;
    let kept = if process.uid == 0 {
        process.capabilities
    } else {
        0
    };
    sys::limit_capabilities(kept).map_err(step(b"cannot limit capabilities"))?;
    sys::chdir(process.cwd).map_err(step(b"cannot enter its working directory"))?;
    order.inherited.restore();
    Ok(())
}

fn set_oom_score_adj(score: i16) -> sys::Result<()> {
    let file = sys::open(c"/proc/self/oom_score_adj", Open::Device)?;
    let digits = Number::new(i32::from(score.unsigned_abs()));
    let mut text = [b'-'; 6];
    let mut length = usize::from(score < 0);
    for digit in digits.as_bytes() {
        if let Some(room) = text.get_mut(length) {
            *room = *digit;
            length += 1;
        }
    }
    sys::pwrite(&file, text.get(..length).unwrap_or_default(), 0).map(drop)
}

fn streams(process: &Process<'_>, order: &Order<'_>) -> sys::Result<()> {
    let purpose = order.purpose;
    let app = process.kind == ProcessKind::App && purpose == Purpose::Run;
    if !app {
        // Without a /dev/null it keeps ours: there is nothing better to give.
        if let Ok(null) = sys::open(c"/dev/null", Open::Device) {
            sys::place(&null, 0)?;
            if purpose != Purpose::Run {
                sys::place(&null, 1)?;
                sys::place(&null, 2)?;
            }
        }
    }
    if purpose == Purpose::Run {
        let pipe = |of: fn(&Pipes) -> Option<&Fd>| order.log.and_then(of);
        output(
            process,
            process.stdout,
            pipe(|pipes| pipes.stdout.as_ref()),
            1,
        )?;
        output(
            process,
            process.stderr,
            pipe(|pipes| pipes.stderr.as_ref()),
            2,
        )?;
    }
    Ok(())
}

/// What is executed: its strings are in place.
pub struct Program<'a> {
    name: Option<&'a CStr>,
    argv: Pointers<'a>,
    environment: Environment<'a>,
    path: &'a mut [u8; PATH_SIZE],
}

impl<'a> Program<'a> {
    /// `None` when arguments or environment are larger than there is room for.
    pub fn collect(
        process: &Process<'a>,
        order: &Order<'_>,
        buffers: &'a mut Buffers,
    ) -> Option<Self> {
        Some(Self {
            name: order.argv.iter().next(),
            argv: Pointers::collect(&mut buffers.argv, order.argv.iter())?,
            environment: buffers
                .environment
                .build(process, order.start, order.notify)?,
            path: &mut buffers.path,
        })
    }

    /// Executes; comes back to say why not.
    pub fn execute(&mut self) -> Errno {
        let Some(name) = self.name else {
            return Errno::EINVAL;
        };
        let Environment { list, path } = self.environment;
        execute(name, self.argv, list, path, self.path)
    }
}

/// Executes by path, or looks the name up in `search` as execvp(3) does; comes back to say why not.
pub fn execute(
    name: &CStr,
    argv: Pointers<'_>,
    environment: Pointers<'_>,
    search: Option<&[u8]>,
    room: &mut [u8; PATH_SIZE],
) -> Errno {
    // An empty name is no directory of the search: ENOENT.
    if name.is_empty() || name.to_bytes().contains(&b'/') {
        return sys::execve(name, argv, environment);
    }
    let mut answer = Errno::ENOENT;
    let search = search.unwrap_or(DEFAULT_PATH);
    for directory in search.split(|byte| *byte == b':') {
        let directory = match directory {
            b"" => b".",
            directory => directory,
        };
        let Some(path) = join(room, directory, name) else {
            continue;
        };
        match sys::execve(path, argv, environment) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => answer = Errno::EACCES,
            errno => return errno,
        }
    }
    answer
}

fn output(
    process: &Process<'_>,
    output: Output<'_>,
    pipe: Option<&Fd>,
    number: u32,
) -> sys::Result<()> {
    let path = match (output, pipe) {
        (Output::Inherit, _) => return Ok(()),
        (Output::Log, Some(pipe)) => {
            sys::wait_for_writers(pipe);
            return sys::place(pipe, number);
        }
        (Output::Log, None) => process.log.map(|log| log.path),
        (Output::File(path), _) => Some(path),
    };
    let file = sys::open(path.ok_or(Errno::EINVAL)?, Open::Append)?;
    // It lies where the container can write: what is not a plain file of ours is not written to.
    if !sys::facts(&file)?.is_own_regular {
        return Err(Errno::EACCES);
    }
    sys::place(&file, number)
}

fn join<'b>(room: &'b mut [u8], directory: &[u8], name: &CStr) -> Option<&'b CStr> {
    let mut length = 0;
    for part in [directory, b"/", name.to_bytes_with_nul()] {
        room.get_mut(length..)?
            .get_mut(..part.len())?
            .copy_from_slice(part);
        length += part.len();
    }
    CStr::from_bytes_with_nul(room.get(..length)?).ok()
}
