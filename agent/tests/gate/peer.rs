//! A process that dials the gate as told: this test binary again, in the cgroup and pid namespace
//! that the test chose. Commands come on its stdin, what it receives goes to its stderr.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use container_init::protocol::{
    Event, EventKind, Hello, MAX_FRAME, Report, Request, VERSION, first_frame,
};

/// Longest wait for anything from the other side.
pub const PATIENCE: Duration = Duration::from_secs(20);

const SOCKET: &str = "GATETEST_SOCKET";

/// Where in the tree of pid namespaces a peer is.
#[derive(Clone, Copy)]
pub enum Depth {
    /// In ours.
    Same,
    /// Pid 1 one level below.
    Init,
    /// Pid 1 two levels below.
    InitOfInit,
    /// One level below, but the child of pid 1.
    ChildOfInit,
}

/// A peer and its connections, numbered from 0 in the order of `dial`.
pub struct Peer {
    child: Child,
    stdin: ChildStdin,
    received: Receiver<(u8, Vec<u8>)>,
    inbox: Vec<Vec<u8>>,
}

impl Peer {
    /// Starts the peer in the cgroups whose `cgroup.procs` are given.
    pub fn start(socket: &Path, join: &[std::path::PathBuf], depth: Depth) -> Self {
        let mut script = String::new();
        for file in join {
            script.push_str(&format!("echo 0 > {} && ", file.display()));
        }
        script.push_str(match depth {
            Depth::Same => "exec \"$@\"",
            Depth::Init => "exec unshare --pid --fork --kill-child \"$@\"",
            Depth::InitOfInit => {
                "exec unshare --pid --fork --kill-child unshare --pid --fork --kill-child \"$@\""
            }
            // The shell is pid 1, and `wait` keeps it from becoming the peer.
            Depth::ChildOfInit => {
                "exec unshare --pid --fork --kill-child sh -c '\"$@\" <&3 & wait' sh \"$@\" 3<&0"
            }
        });
        let own = std::env::current_exe().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(own)
            .args(["--exact", "peer::as_told", "--ignored", "--nocapture"])
            .env(SOCKET, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let (sender, received) = channel();
        std::thread::spawn(move || {
            let mut head = [0; 5];
            while stderr.read_exact(&mut head).is_ok() {
                let length = u32::from_le_bytes(head[1..].try_into().unwrap());
                let mut bytes = vec![0; length as usize];
                if stderr.read_exact(&mut bytes).is_err() || sender.send((head[0], bytes)).is_err()
                {
                    return;
                }
            }
        });
        Self {
            child,
            stdin,
            received,
            inbox: Vec::new(),
        }
    }

    /// Connects once more and makes this the connection that `say` uses.
    pub fn dial(&mut self) {
        self.inbox.push(Vec::new());
        self.command(b'c', &[]);
    }

    /// As [`Peer::dial`], with a connection that is never read.
    pub fn dial_deaf(&mut self) {
        self.inbox.push(Vec::new());
        self.command(b'd', &[]);
    }

    /// Sends a report.
    pub fn say(&mut self, report: Report<'_>) {
        let mut frame = vec![0; MAX_FRAME];
        let length = report.encode(&mut frame).unwrap();
        self.command(b'w', &frame[..length]);
    }

    /// Sends bytes.
    pub fn say_bytes(&mut self, bytes: &[u8]) {
        self.command(b'w', bytes);
    }

    /// Says hello as the init of this container.
    pub fn hello(&mut self, container_id: &str, first_unacked_seq: u64) {
        self.hello_of(VERSION, container_id, first_unacked_seq);
    }

    /// The same in this version of the protocol.
    pub fn hello_of(&mut self, version: u16, container_id: &str, first_unacked_seq: u64) {
        let create_generation = container_id.rsplit_once(".g").unwrap().1.parse().unwrap();
        self.say(Report::Hello(Hello {
            version,
            container_id,
            create_generation,
            generation: create_generation,
            started: false,
            first_unacked_seq,
        }));
    }

    /// Sends an event.
    pub fn event(&mut self, seq: u64, kind: EventKind<'_>) {
        self.say(Report::Event(Event { seq, kind }));
    }

    /// The next request on a connection, as text.
    pub fn heard(&mut self, connection: usize) -> String {
        loop {
            if let Some(frame) = first_frame(&self.inbox[connection]).unwrap() {
                let text = format!("{:?}", Request::decode(frame.body).unwrap());
                let length = frame.length;
                self.inbox[connection].drain(..length);
                return text;
            }
            assert!(
                self.receive(connection),
                "connection {connection} was closed"
            );
        }
    }

    /// Waits until the gate has closed the connection.
    pub fn is_turned_away(&mut self, connection: usize) {
        while self.receive(connection) {}
    }

    /// Receives something; whether it was more than the end of `connection`.
    fn receive(&mut self, connection: usize) -> bool {
        let (on, bytes) = self
            .received
            .recv_timeout(PATIENCE)
            .expect("nothing came from the peer");
        if bytes.is_empty() {
            return usize::from(on) != connection;
        }
        self.inbox[usize::from(on)].extend_from_slice(&bytes);
        true
    }

    /// Ends once it has done what it was told.
    pub fn leave(&mut self) {
        self.command(b'x', &[]);
        self.child.wait().unwrap();
    }

    fn command(&mut self, kind: u8, bytes: &[u8]) {
        let mut message = vec![kind];
        message.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        message.extend_from_slice(bytes);
        self.stdin.write_all(&message).unwrap();
    }
}

impl Drop for Peer {
    /// Ends the innermost process and waits for all of them: their cgroups are empty then.
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let mut innermost = self.child.id();
        while let Some(child) = child_of(innermost) {
            innermost = child;
        }
        let pid = rustix::process::Pid::from_raw(innermost as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        self.child.wait().unwrap();
    }
}

/// The only child of a process that we started.
pub fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}

#[test]
#[ignore = "the other tests run it as a peer"]
fn as_told() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let mut connections: Vec<UnixStream> = Vec::new();
    let mut head = [0; 5];
    let mut stdin = std::io::stdin().lock();
    while stdin.read_exact(&mut head).is_ok() {
        let length = u32::from_le_bytes(head[1..].try_into().unwrap());
        let mut bytes = vec![0; length as usize];
        stdin.read_exact(&mut bytes).unwrap();
        match head[0] {
            b'x' => return,
            b'w' => {
                // The gate may have closed it; the reader reports that.
                connections.last_mut().unwrap().write_all(&bytes).ok();
            }
            kind => {
                let number = connections.len() as u8;
                let stream = UnixStream::connect(&socket).unwrap();
                if kind == b'c' {
                    let reader = stream.try_clone().unwrap();
                    std::thread::spawn(move || report_all(reader, number));
                }
                connections.push(stream);
            }
        }
    }
}

/// Passes on what a connection brings, and its end as a message without bytes.
fn report_all(mut stream: UnixStream, number: u8) {
    let mut bytes = [0; 65536];
    loop {
        let length = stream.read(&mut bytes).unwrap_or(0);
        let mut message = vec![number];
        message.extend_from_slice(&(length as u32).to_le_bytes());
        message.extend_from_slice(&bytes[..length]);
        std::io::stderr().write_all(&message).unwrap();
        if length == 0 {
            return;
        }
    }
}
