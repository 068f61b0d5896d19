//! One command as the app, as tini and dumb-init run it: what we were executed with is what it is
//! executed with, and nothing stands between them but the session and the signals.

use core::ffi::{CStr, c_char};
use core::mem::MaybeUninit;

use container_init::command_line::Alone;
use container_init::decimal;
use container_init::plan::{Delivery, Plan, Process, ProcessKind, Processes, Rewrites, Strings};

use super::say::Number;
use super::spawn::{self, EXECUTE, NotSpawned};
use super::sys::{self, Errno, Inherited, Pointers, Terminal, Vfork};

/// More than a service manager hands over variables.
const MAX_ENVIRONMENT: usize = 1024;

/// Room that only socket activation needs.
pub struct Buffers {
    path: [u8; spawn::PATH_SIZE],
    environment: [*const c_char; MAX_ENVIRONMENT],
    listen_pid: [u8; 24],
}

impl Buffers {
    pub const fn new() -> Self {
        Self {
            path: [0; spawn::PATH_SIZE],
            environment: [core::ptr::null(); MAX_ENVIRONMENT],
            listen_pid: [0; 24],
        }
    }
}

/// The command as it stands on the command line.
#[derive(Clone, Copy)]
pub struct Command {
    pub argv: Pointers<'static>,
    pub environment: Pointers<'static>,
    pub terminal: Terminal,
    pub inherited: Inherited,
}

/// A plan of one process, the command, which nobody is asked for.
pub fn plan(
    alone: &'static Alone,
    room: &'static mut MaybeUninit<Process<'static>>,
    name: &'static str,
) -> Plan<'static> {
    let process = room.write(Process {
        delivery: match alone.group {
            true => Delivery::Group,
            false => Delivery::Process,
        },
        ..Process::plain(name, ProcessKind::App, Strings::none())
    });
    Plan {
        container_id: "",
        create_generation: 0,
        ctl_socket: c"",
        run_dir: c"",
        exits: c"",
        stop_grace_ms: alone.grace_ms,
        signals: Rewrites::new(alone.signals.list()),
        exit_codes: Rewrites::new(alone.exit_codes.list()),
        processes: Processes::new(core::slice::from_ref(process)),
        looks: Default::default(),
    }
}

impl Command {
    /// Executes it; returns the pid once the new program is in place.
    pub fn spawn(self, name: &'static str, buffers: &mut Buffers) -> Result<u32, NotSpawned> {
        sys::give_up_terminal(self.terminal);
        let path = self
            .environment
            .iter()
            .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        let mut child = Child {
            command: self,
            path,
            buffers,
            failure: None,
        };
        let pid = sys::vfork(&mut child)
            .map_err(|errno| spawn::not_spawned(name, b"cannot make a process", errno, 0))?;
        match child.failure {
            None => Ok(pid),
            Some((step, errno)) => Err(spawn::not_spawned(name, step, errno, pid)),
        }
    }
}

struct Child<'b> {
    command: Command,
    path: Option<&'static [u8]>,
    buffers: &'b mut Buffers,
    failure: Option<(&'static [u8], Errno)>,
}

impl Vfork for Child<'_> {
    fn run(&mut self) {
        let Command {
            argv,
            environment,
            terminal,
            inherited,
        } = self.command;
        if let Err(errno) = sys::take_terminal(terminal) {
            self.failure = Some((b"cannot begin a session", errno));
            return;
        }
        let Buffers {
            path: room,
            environment: list,
            listen_pid,
        } = &mut *self.buffers;
        let environment = for_sockets(environment, list, listen_pid).unwrap_or(environment);
        inherited.restore();
        let name = argv.iter().next();
        let errno = name.map_or(Errno::ENOENT, |name| {
            spawn::execute(name, argv, environment, self.path, room)
        });
        self.failure = Some((EXECUTE, errno));
    }
}

/// Sockets that were meant for us are meant for the command: `LISTEN_PID` has to be its pid
/// (sd_listen_fds(3)). `None` where there are none.
fn for_sockets<'b>(
    environment: Pointers<'static>,
    list: &'b mut [*const c_char; MAX_ENVIRONMENT],
    listen_pid: &'b mut [u8; 24],
) -> Option<Pointers<'b>> {
    const KEY: &[u8] = b"LISTEN_PID=";
    let is_it = |entry: &&CStr| entry.to_bytes().starts_with(KEY);
    let meant_for = environment.iter().find(is_it)?.to_bytes();
    let meant_for: u32 = decimal::parse(meant_for.get(KEY.len()..)?)?;
    if meant_for != sys::getppid() {
        return None;
    }
    let own = Number::new(sys::getpid().cast_signed());
    let mut length = 0;
    for part in [KEY, own.as_bytes(), b"\0"] {
        listen_pid
            .get_mut(length..)?
            .get_mut(..part.len())?
            .copy_from_slice(part);
        length += part.len();
    }
    let ours = CStr::from_bytes_until_nul(listen_pid).ok()?;
    let entries = environment
        .iter()
        .map(|entry| if is_it(&entry) { ours } else { entry });
    Pointers::collect(list, entries)
}
