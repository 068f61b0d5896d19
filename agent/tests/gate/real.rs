//! The real container-init, started as pid 1 in a cgroup without a container around it.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use container_init::plan::{
    Looks, MAX_PLAN, Plan, Process, ProcessKind, Processes, Rewrites, Strings,
};

use super::peer::child_of;

/// `NODEAGENT_CONTAINER_INIT`, or built into `target/init` as container-init's own tests do.
fn program() -> PathBuf {
    if let Some(given) = std::env::var_os("NODEAGENT_CONTAINER_INIT") {
        return given.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap();
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let target = workspace.join("target/init");
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "-p",
            "container-init",
            "--features",
            "pid1",
            "--profile",
            "init",
        ])
        .args(["--target", &triple, "--target-dir"])
        .arg(&target)
        .current_dir(&workspace)
        .status()
        .unwrap();
    assert!(built.success(), "container-init does not build");
    target.join(&triple).join("init/container-init")
}

/// A container-init that holds an app which notifies at once and then waits.
pub struct RealInit {
    child: Child,
}

impl RealInit {
    /// Starts it as the init of `container`; its files are in `directory`.
    pub fn start(
        container: &str,
        socket: &Path,
        directory: &Path,
        join: &[PathBuf],
        app: &[&str],
    ) -> Self {
        let c = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        let (socket, run, exits) = (c(socket), c(directory), c(&directory.join("exits")));
        let argv: Vec<CString> = app.iter().map(|arg| CString::new(*arg).unwrap()).collect();
        let argv: Vec<_> = argv.iter().map(CString::as_c_str).collect();
        let sleep = Strings::new(&[c"/bin/sleep", c"1000"]);
        let agent = Process {
            env: Strings::new(&[c"PATH=/usr/bin:/bin"]),
            ..Process::plain("agent", ProcessKind::Agent, sleep)
        };
        let app = Process {
            name: "app",
            kind: ProcessKind::App,
            argv: Strings::new(&argv),
            ..agent
        };
        let processes = [agent, app];
        let plan = Plan {
            container_id: container,
            create_generation: container.rsplit_once(".g").unwrap().1.parse().unwrap(),
            ctl_socket: &socket,
            run_dir: &run,
            exits: &exits,
            stop_grace_ms: 10_000,
            signals: Rewrites::none(),
            exit_codes: Rewrites::none(),
            processes: Processes::new(&processes),
            looks: Looks::default(),
        };
        let mut file = vec![0; MAX_PLAN];
        let length = plan.encode(&mut file).unwrap();
        std::fs::write(directory.join("plan"), &file[..length]).unwrap();
        std::fs::write(
            directory.join("exits"),
            vec![0; container_init::exits::FILE_SIZE],
        )
        .unwrap();
        let joins: String = join
            .iter()
            .map(|file| format!("echo 0 > {} && ", file.display()))
            .collect();
        let child = Command::new("sh")
            .args([
                "-c",
                &format!("{joins}exec unshare --pid --fork --kill-child \"$@\""),
                "sh",
            ])
            .arg(program())
            .arg("--plan")
            .arg(directory.join("plan"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    /// Waits for its end and returns its exit code.
    pub fn ended(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for RealInit {
    fn drop(&mut self) {
        // With pid 1 its whole namespace goes.
        if let Some(init) = child_of(self.child.id()) {
            let init = rustix::process::Pid::from_raw(init as i32).unwrap();
            rustix::process::kill_process(init, rustix::process::Signal::KILL).ok();
        }
        self.child.wait().unwrap();
    }
}
