//! A container without a runtime: the real program as pid 1 of a new pid namespace, and a test
//! that plays the agent from outside of it.

use std::ffi::CString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use container_init::plan::{
    Delivery, Essential, Groups, Limits, Log, Looks, MAX_PLAN, Output, Plan, Ports, Process,
    ProcessKind, Processes, Readiness, Restart, RestartPolicy, Rewrite, Rewrites, Rlimit, Rlimits,
    Strings, after_previous,
};
use container_init::protocol::{EnvList, MAX_FRAME, Report, Request, Start, first_frame};
use rustix::process::{Pid, Signal};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Copies a program to where it is executed, by install(1): a descriptor of ours that writes would
/// be in children that other tests fork meanwhile, and what somebody writes nobody may execute
/// (ETXTBSY).
pub fn install(program: &Path, to: &Path, mode: &str) {
    let mut install = Command::new("install");
    let done = install.args(["-m", mode]).args([program, to]).status();
    assert!(done.expect("install(1)").success(), "{install:?}");
}

/// The program: `NODEAGENT_CONTAINER_INIT`, or built once into `target/init`.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("NODEAGENT_CONTAINER_INIT") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap();
    let (target_dir, triple) = (workspace.join("target/init"), "x86_64-unknown-linux-gnu");
    let built = Command::new(env!("CARGO"))
        .current_dir(&workspace)
        .args([
            "build",
            "-p",
            "container-init",
            "--features",
            "pid1",
            "--profile",
            "init",
            "--target",
            triple,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    target_dir.join(triple).join("init/container-init")
}

/// A process of the plan, with owned parts.
#[derive(Clone)]
pub struct Spec {
    pub name: &'static str,
    pub kind: ProcessKind,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    pub uid: u32,
    pub groups: Vec<u32>,
    pub capabilities: u64,
    pub rlimits: Vec<Rlimit>,
    pub readiness: Readiness<'static>,
    pub essential: Essential,
    pub restart: Restart,
    pub stdout: Option<PathBuf>,
    pub log: Option<LogSpec>,
    pub nice: Option<i8>,
    pub oom_score_adj: Option<i16>,
    pub limits: Option<Limits>,
    /// The agent before it, when nothing is said.
    pub after: Option<u16>,
    pub exit_code: Option<u8>,
    pub stop_grace_ms: u32,
    pub delivery: Delivery,
    pub clean: Vec<CString>,
    pub ports: Vec<u16>,
}

/// Both streams of a process go to a log.
#[derive(Clone, Copy)]
pub struct LogSpec {
    /// From the container's directory.
    pub path: &'static str,
    pub max_bytes: u64,
    pub max_files: u8,
    pub pass_through: bool,
}

/// Stands for a copy of this test program, at a place that every user can reach.
const WORKLOAD: &str = "a copy of this test program";

/// Every capability there is.
pub const ALL_CAPABILITIES: u64 = u64::MAX;

impl Spec {
    fn new(name: &'static str, kind: ProcessKind, argv: &[&str]) -> Self {
        Self {
            name,
            kind,
            argv: argv.iter().map(|arg| CString::new(*arg).unwrap()).collect(),
            env: vec![c"PATH=/usr/bin:/bin".into(), c"FROM_PLAN=plan".into()],
            uid: 0,
            groups: vec![],
            capabilities: ALL_CAPABILITIES,
            rlimits: vec![],
            readiness: Readiness::None,
            essential: Essential::Yes,
            restart: Restart {
                backoff_min_ms: 10,
                backoff_max_ms: 100,
                reset_after_ms: 100,
                ..Restart::NEVER
            },
            stdout: None,
            log: None,
            nice: None,
            oom_score_adj: None,
            limits: None,
            after: None,
            exit_code: None,
            stop_grace_ms: u32::MAX,
            delivery: Delivery::Process,
            clean: vec![],
            ports: vec![],
        }
    }

    /// Optional, and started again after every end.
    pub fn optional(self) -> Self {
        Self {
            essential: Essential::No,
            restart: Restart {
                policy: RestartPolicy::Always,
                max: u32::MAX,
                ..self.restart
            },
            ..self
        }
    }

    pub fn app(argv: &[&str]) -> Self {
        Self::new("app", ProcessKind::App, argv)
    }

    pub fn agent(name: &'static str, argv: &[&str]) -> Self {
        Self::new(name, ProcessKind::Agent, argv)
    }

    pub fn script(self, script: &str) -> Self {
        let argv = ["/bin/busybox", "sh", "-c", script].map(|arg| CString::new(arg).unwrap());
        Self {
            argv: argv.into(),
            ..self
        }
    }

    /// Runs the ignored test `name` of this very test program as the process.
    pub fn workload(self, name: &str) -> Self {
        let argv = [
            WORKLOAD,
            "--exact",
            name,
            "--ignored",
            "--nocapture",
            "--quiet",
        ];
        Self {
            argv: argv.map(|arg| CString::new(arg).unwrap()).into(),
            ..self
        }
    }
}

/// What the runtime leaves to pid 1: the app's (one, for the tests) and DESIGN section 6's.
const CAPABILITIES: &str =
    "-all,+net_bind_service,+kill,+setuid,+setgid,+setpcap,+dac_override,+fowner";

/// A running container; killed when it goes.
pub struct Container {
    unshare: Child,
    pub directory: tempfile::TempDir,
    lines: Receiver<String>,
    pub ctl: PathBuf,
}

/// What a plan says beside its processes.
#[derive(Clone)]
pub struct Settings {
    pub stop_grace_ms: u32,
    pub looks: Looks<'static>,
    pub signals: &'static [Rewrite],
    pub exit_codes: &'static [Rewrite],
    /// Whether the container's own output is read.
    pub is_read: bool,
    /// Whether /proc is that of the container's namespace.
    pub own_proc: bool,
    /// Words before the whole: a program that executes the rest.
    pub wrapper: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stop_grace_ms: 10_000,
            looks: Looks::default(),
            signals: &[],
            exit_codes: &[],
            is_read: true,
            own_proc: false,
            wrapper: Vec::new(),
        }
    }
}

impl Container {
    /// Starts the container; the agent's socket is there before it.
    pub fn run(specs: &[Spec]) -> (Self, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("gate.sock")).unwrap();
        (
            Self::run_in(directory, specs, Settings::default()),
            listener,
        )
    }

    /// Starts the container in a directory that may or may not have the agent's socket.
    pub fn run_in(directory: tempfile::TempDir, specs: &[Spec], settings: Settings) -> Self {
        let plan = directory.path().join("plan");
        let copy = directory.path().join("workload");
        let workload = CString::new(copy.to_str().unwrap()).unwrap();
        let mut specs = specs.to_vec();
        for program in specs.iter_mut().filter_map(|spec| spec.argv.first_mut()) {
            if program.to_bytes() == WORKLOAD.as_bytes() {
                install(&std::env::current_exe().unwrap(), &copy, "0755");
                program.clone_from(&workload);
            }
        }
        let specs = &specs[..];
        std::fs::write(&plan, encode(directory.path(), specs, &settings)).unwrap();
        Self::run_wrapped(directory, &plan, &settings)
    }

    pub fn run_with_plan(directory: tempfile::TempDir, plan: &Path) -> Self {
        Self::run_wrapped(directory, plan, &Settings::default())
    }

    fn run_wrapped(directory: tempfile::TempDir, plan: &Path, settings: &Settings) -> Self {
        // The users of the tests' processes reach the notify sockets.
        std::fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        // Who runs the tests in the background ignores HUP, INT and QUIT, and so would all below.
        let mut unshare = Command::new("env")
            .arg("--default-signal")
            .args(&settings.wrapper)
            .arg("unshare")
            .args(["--pid", "--fork", "--kill-child"])
            .args(settings.own_proc.then_some("--mount-proc"))
            .arg("--")
            .args([
                "setpriv",
                "--no-new-privs",
                "--bounding-set",
                CAPABILITIES,
                "--",
            ])
            .arg(program())
            .arg("--plan")
            .arg(plan)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let mut streams: Vec<Box<dyn Read + Send>> = vec![];
        if settings.is_read {
            streams.push(Box::new(unshare.stdout.take().unwrap()));
            streams.push(Box::new(unshare.stderr.take().unwrap()));
        }
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let ctl = directory.path().join("gate.sock");
        Self {
            unshare,
            directory,
            lines,
            ctl,
        }
    }

    /// The `SigIgn` line of /proc/PID/status that we handed down, and init hands on.
    pub fn ignored_signals(&self) -> String {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.unshare.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("SigIgn:"));
        line.unwrap().to_owned()
    }

    /// The next line that anything in the container wrote.
    pub fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .expect("a line from the container")
    }

    /// Reads lines until this one.
    pub fn wait_for_line(&self, wanted: &str) {
        while self.line() != wanted {}
    }

    /// Nothing is written for so long.
    pub fn assert_silent(&self, window: Duration) {
        assert_eq!(
            self.lines.recv_timeout(window),
            Err(RecvTimeoutError::Timeout)
        );
    }

    /// Nothing more is written: the container has ended.
    #[allow(dead_code, reason = "not every test program asks")]
    pub fn assert_nothing_more(&self) {
        assert_eq!(
            self.lines.recv_timeout(PATIENCE),
            Err(RecvTimeoutError::Disconnected)
        );
    }

    /// Nobody reads what the container writes any more: the readers leave with their next line.
    pub fn close_output(&mut self) {
        self.lines = channel().1;
    }

    /// Waits for the end of pid 1 and returns its exit code.
    pub fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.unshare.try_wait().unwrap() {
                return status
                    .code()
                    .unwrap_or_else(|| panic!("killed by {:?}", status.signal()));
            }
            assert!(Instant::now() < deadline, "the container does not end");
            thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // --kill-child takes the namespace with it.
        self.unshare.kill().ok();
        self.unshare.wait().ok();
    }
}

fn encode(directory: &Path, specs: &[Spec], settings: &Settings) -> Vec<u8> {
    let c = |path: PathBuf| CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
    let (ctl, exits) = (c(directory.join("gate.sock")), c(directory.join("exits")));
    let run_dir = c(directory.to_path_buf());
    let argvs: Vec<Vec<_>> = specs
        .iter()
        .map(|spec| spec.argv.iter().map(CString::as_c_str).collect())
        .collect();
    let envs: Vec<Vec<_>> = specs
        .iter()
        .map(|spec| spec.env.iter().map(CString::as_c_str).collect())
        .collect();
    let cleans: Vec<Vec<_>> = specs
        .iter()
        .map(|spec| spec.clean.iter().map(CString::as_c_str).collect())
        .collect();
    let logs: Vec<Option<CString>> = specs
        .iter()
        .map(|spec| spec.stdout.clone().map(c))
        .collect();
    let captured: Vec<Option<CString>> = specs
        .iter()
        .map(|spec| spec.log.map(|log| c(directory.join(log.path))))
        .collect();
    let mut processes = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        processes.push(Process {
            name: spec.name,
            kind: spec.kind,
            argv: Strings::new(&argvs[index]),
            env: Strings::new(&envs[index]),
            cwd: c"/",
            uid: spec.uid,
            gid: spec.uid,
            groups: Groups::new(&spec.groups),
            capabilities: spec.capabilities,
            rlimits: Rlimits::new(&spec.rlimits),
            nice: spec.nice,
            oom_score_adj: spec.oom_score_adj,
            limits: spec.limits,
            after: spec.after.unwrap_or(after_previous(index, specs.len())),
            readiness: spec.readiness,
            essential: spec.essential,
            exit_code: spec.exit_code,
            restart: spec.restart,
            stop_signal: 15,
            stop_grace_ms: spec.stop_grace_ms,
            delivery: spec.delivery,
            stdout: match (&logs[index], spec.log) {
                (Some(path), _) => Output::File(path),
                (None, Some(_)) => Output::Log,
                (None, None) => Output::Inherit,
            },
            stderr: match spec.log {
                Some(_) => Output::Log,
                None => Output::Inherit,
            },
            log: spec.log.map(|log| Log {
                path: captured[index].as_deref().unwrap(),
                max_bytes: log.max_bytes,
                max_files: log.max_files,
                pass_through: log.pass_through,
            }),
            clean: Strings::new(&cleans[index]),
            ports: Ports::new(&spec.ports),
        });
    }
    let plan = Plan {
        container_id: "web-1.g7",
        create_generation: 7,
        ctl_socket: &ctl,
        run_dir: &run_dir,
        exits: &exits,
        stop_grace_ms: settings.stop_grace_ms,
        signals: Rewrites::new(settings.signals),
        exit_codes: Rewrites::new(settings.exit_codes),
        processes: Processes::new(&processes),
        looks: settings.looks,
    };
    let mut file = vec![0; MAX_PLAN];
    let length = plan.encode(&mut file).unwrap();
    file.truncate(length);
    file
}

/// The agent's end of one connection.
pub struct Agent {
    pub stream: UnixStream,
    received: Vec<u8>,
    /// Pid of container-init, outside.
    pub pid: Pid,
}

/// A report in words, so that it outlives the buffer.
pub type Said = String;

impl Agent {
    /// Waits for container-init to dial.
    pub fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let pid = rustix::net::sockopt::socket_peercred(&stream).unwrap().pid;
        Self {
            stream,
            received: vec![],
            pid,
        }
    }

    /// The next report, handed to `look`; `None` at the end of the stream.
    pub fn next<R>(&mut self, look: impl FnOnce(Report<'_>) -> R) -> Option<R> {
        loop {
            if let Some(frame) = first_frame(&self.received).unwrap() {
                let result = look(Report::decode(frame.body).unwrap());
                let length = frame.length;
                self.received.drain(..length);
                return Some(result);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(length) => self.received.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no report from container-init: {error}"),
            }
        }
    }

    /// The next report as Debug text without its sequence number.
    pub fn said(&mut self) -> Option<Said> {
        self.next(|report| match report {
            Report::Event(event) => format!("{:?}", event.kind),
            other => format!("{other:?}"),
        })
    }

    /// Reads until a report that begins like this, and returns it.
    pub fn wait_for(&mut self, beginning: &str) -> Said {
        loop {
            let said = self
                .said()
                .unwrap_or_else(|| panic!("the stream ended before {beginning}"));
            if said.starts_with(beginning) {
                return said;
            }
        }
    }

    pub fn ask(&mut self, request: Request<'_>) {
        let mut buf = vec![0; MAX_FRAME];
        let length = request.encode(&mut buf).unwrap();
        self.stream.write_all(&buf[..length]).unwrap();
    }

    pub fn start(&mut self, generation: u64) {
        self.start_with(generation, &[]);
    }

    pub fn start_with(&mut self, generation: u64, env: &[(&str, &str)]) {
        let (task_id, traceparent) = (
            "peak-7",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        );
        self.ask(Request::Start(Start {
            generation,
            task_id,
            traceparent,
            env: EnvList::new(env),
        }));
    }

    pub fn kill(&self, signal: Signal) {
        rustix::process::kill_process(self.pid, signal).unwrap();
    }
}

/// The children of a process, as we see them; zombies too.
pub fn children(parent: u32) -> Vec<u32> {
    let list = format!("/proc/{parent}/task/{parent}/children");
    let list = std::fs::read_to_string(list).unwrap_or_default();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Waits until it is true.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}
