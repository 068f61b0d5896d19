//! Real etcd 3.6.6 (`tests/peers/build etcd-3.6.6`) in a host's own network: one member or several.
//!
//! Keys are looked at through etcd's own JSON gateway, so that what the agent writes is read by
//! another client than the agent's.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::ground::Ground;
use crate::http;
use crate::netns::Netns;
use crate::peers;
use crate::process::Process;
use crate::wait::{Look, until};

/// The peer's folder below `tests/peers` and below the cache of what was built.
const PEER: &str = "etcd-3.6.6";
/// A member that has to replay or to find its others takes a while on a busy machine.
const STARTS: Duration = Duration::from_secs(60);
/// Time for a lease to expire and for an agent to notice.
const SETTLES: Duration = Duration::from_secs(30);
/// Port of the first member for clients; the next member has the next but one.
const FIRST_PORT: u16 = 2379;

/// The etcd program: below `NODEAGENT_PEERS`, else where `tests/peers/build` puts it.
pub fn program() -> Result<PathBuf> {
    // Go names a program after its import path, `go.etcd.io/etcd/server/v3`.
    let program = peers::programs(PEER).join("server");
    program.canonicalize().with_context(|| {
        format!(
            "{} is missing; build it by `tests/peers/build {PEER}`",
            program.display()
        )
    })
}

/// One key with what etcd knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The key.
    pub key: String,
    /// Its value; every value of the agent is JSON.
    pub value: Value,
    /// Revision of the put that made the key: it changes when the key was gone in between.
    pub created: i64,
    /// Revision of the last put.
    pub modified: i64,
    /// Its lease; 0 without one.
    pub lease: i64,
}

#[derive(Debug)]
struct Member {
    name: String,
    port: u16,
    process: Option<Process>,
    paused: bool,
}

/// An etcd; dropped, its members are killed. Their data stays until the host goes.
#[derive(Debug)]
pub struct Etcd {
    netns: Netns,
    directory: PathBuf,
    listen: Ipv4Addr,
    members: Vec<Member>,
    token: Option<String>,
    flags: Vec<String>,
}

impl Etcd {
    /// One member on loopback of the host's network, ready to answer.
    pub fn start(ground: &Ground) -> Result<Self> {
        Self::start_on(ground, Ipv4Addr::LOCALHOST, 1, &[])
    }

    /// Three members that have found each other.
    pub fn cluster(ground: &Ground) -> Result<Self> {
        Self::start_on(ground, Ipv4Addr::LOCALHOST, 3, &[])
    }

    /// `members` of them that listen for clients at `listen`, with more flags of etcd's.
    pub fn start_on(
        ground: &Ground,
        listen: Ipv4Addr,
        members: u16,
        flags: &[&str],
    ) -> Result<Self> {
        let mut etcd = Self::prepare(ground, listen, members, flags)?;
        for member in 0..etcd.members.len() {
            etcd.launch(ground, member)?;
        }
        etcd.wait_until_serving()?;
        Ok(etcd)
    }

    /// The same without starting them.
    pub fn prepare(
        ground: &Ground,
        listen: Ipv4Addr,
        members: u16,
        flags: &[&str],
    ) -> Result<Self> {
        let directory = ground.path("etcd");
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let member = |n: u16| Member {
            name: format!("etcd-{n}"),
            port: FIRST_PORT + 2 * n,
            process: None,
            paused: false,
        };
        Ok(Self {
            netns: ground.netns().clone(),
            directory,
            listen,
            members: (0..members).map(member).collect(),
            token: None,
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        })
    }

    /// Starts one member and does not wait.
    pub fn launch(&mut self, ground: &Ground, member: usize) -> Result<()> {
        let cluster: Vec<String> = self
            .members
            .iter()
            .map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.port + 1))
            .collect();
        let listen = self.listen;
        let Some(it) = self.members.get_mut(member) else {
            bail!("there is no member {member}");
        };
        ensure!(it.process.is_none(), "{} runs already", it.name);
        let peer = format!("http://127.0.0.1:{}", it.port + 1);
        let clients = format!("http://{listen}:{}", it.port);
        let mut command = Command::new(program()?);
        command
            .args(["--name", &it.name])
            .arg("--data-dir")
            .arg(self.directory.join(&it.name))
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--log-level", "warn"])
            .args(&self.flags);
        it.process = Some(Process::start(ground, &it.name, command)?);
        it.paused = false;
        Ok(())
    }

    /// Waits until every running member answers and has a leader.
    pub fn wait_until_serving(&mut self) -> Result<()> {
        until("every member of etcd to answer", STARTS, || {
            for member in &mut self.members {
                if let Some(process) = &mut member.process
                    && let Some(status) = process.ended()?
                {
                    bail!("{} ended ({status}):\n{}", member.name, process.tail(20));
                }
            }
            for member in &self.members {
                if member.process.is_none() || member.paused {
                    continue;
                }
                match http::get(&self.netns, self.address(member), "/health") {
                    Ok(answer) if answer.status == 200 => {}
                    Ok(answer) => {
                        return Ok(Look::NotYet(format!("{}: {}", member.name, answer.text())));
                    }
                    Err(error) => return Ok(Look::NotYet(format!("{}: {error:#}", member.name))),
                }
            }
            Ok(Look::Seen(()))
        })
    }

    fn address(&self, member: &Member) -> SocketAddr {
        (self.listen, member.port).into()
    }

    /// Where clients find the members, in their order.
    pub fn endpoints(&self) -> Vec<String> {
        let url = |member| format!("http://{}", self.address(member));
        self.members.iter().map(url).collect()
    }

    /// Ends one member by SIGKILL; its data stays.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        match self.members.get_mut(member).and_then(|m| m.process.take()) {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Ends all members by SIGKILL.
    pub fn kill_all(&mut self) -> Result<()> {
        (0..self.members.len()).try_for_each(|member| self.kill(member))
    }

    /// Starts those that do not run and waits until all answer.
    pub fn start_again(&mut self, ground: &Ground) -> Result<()> {
        for member in 0..self.members.len() {
            if self.members[member].process.is_none() {
                self.launch(ground, member)?;
            }
        }
        self.wait_until_serving()
    }

    /// Stops one member where it is: connections stay, nothing is answered.
    pub fn pause(&mut self, member: usize) -> Result<()> {
        self.signal(member, Signal::STOP, true)
    }

    /// Lets it go on.
    pub fn resume(&mut self, member: usize) -> Result<()> {
        self.signal(member, Signal::CONT, false)
    }

    fn signal(&mut self, member: usize, signal: Signal, paused: bool) -> Result<()> {
        let it = self.members.get_mut(member);
        let it = it.with_context(|| format!("there is no member {member}"))?;
        let process = it.process.as_ref();
        let process = process.with_context(|| format!("{} does not run", it.name))?;
        let pid = i32::try_from(process.pid()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a pid")?, signal)
            .with_context(|| format!("signal {}", it.name))?;
        it.paused = paused;
        Ok(())
    }

    /// The member that leads.
    pub fn leader(&self) -> Result<usize> {
        for (index, member) in self.members.iter().enumerate() {
            if member.process.is_none() || member.paused {
                continue;
            }
            let status = self.post_to(member, "/v3/maintenance/status", &json!({}))?;
            if status["leader"] == status["header"]["member_id"] {
                return Ok(index);
            }
        }
        bail!("no member leads")
    }

    /// One request of the JSON gateway to the first member that runs.
    pub fn post(&self, target: &str, body: &Value) -> Result<Value> {
        let running = |m: &&Member| m.process.is_some() && !m.paused;
        let member = self.members.iter().find(running);
        self.post_to(member.context("no member of etcd runs")?, target, body)
    }

    fn post_to(&self, member: &Member, target: &str, body: &Value) -> Result<Value> {
        let mut headers = vec![("Content-Type", "application/json")];
        if let Some(token) = &self.token {
            headers.push(("Authorization", token));
        }
        let address = self.address(member);
        let body = body.to_string();
        let answer = http::request(
            &self.netns,
            "POST",
            address,
            target,
            &headers,
            body.as_bytes(),
        )?;
        let text = answer.text();
        ensure!(answer.status == 200, "{target}: {} {text}", answer.status);
        serde_json::from_str(&text).with_context(|| format!("{target}: read {text}"))
    }

    /// All keys below `prefix`, in order.
    pub fn keys(&self, prefix: &str) -> Result<Vec<Key>> {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let range = json!({ "key": BASE64.encode(prefix), "range_end": BASE64.encode(end) });
        let answer = self.post("/v3/kv/range", &range)?;
        let found = answer["kvs"].as_array().map_or(&[][..], Vec::as_slice);
        found.iter().map(key).collect()
    }

    /// The agent's instance keys below `/nodeagent`, without what is only the agents' own.
    pub fn instances(&self) -> Result<Vec<Key>> {
        let mut keys = self.keys("/nodeagent/")?;
        keys.retain(|key| !key.key.contains("/_hosts/"));
        Ok(keys)
    }

    /// Waits until there are `count` instance keys.
    pub fn wait_for_instances(&self, count: usize) -> Result<Vec<Key>> {
        self.wait_for(&format!("{count} keys"), |keys| keys.len() == count)
    }

    /// Waits until the instance keys are as `wanted` says.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&[Key]) -> bool) -> Result<Vec<Key>> {
        until(&format!("{what} in etcd"), SETTLES, || {
            let keys = self.instances()?;
            Ok(if wanted(&keys) {
                Look::Seen(keys)
            } else {
                Look::NotYet(format!("{keys:?}"))
            })
        })
    }

    /// Puts a key without a lease.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        let put = json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) });
        self.post("/v3/kv/put", &put).map(drop)
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.post("/v3/kv/deleterange", &json!({ "key": BASE64.encode(key) }))
            .map(drop)
    }

    /// Revokes a lease: its keys go with it.
    pub fn revoke(&self, lease: i64) -> Result<()> {
        self.post("/v3/lease/revoke", &json!({ "ID": lease.to_string() }))
            .map(drop)
    }

    /// Compacts everything before the present revision.
    pub fn compact(&self) -> Result<()> {
        let status = self.post("/v3/maintenance/status", &json!({}))?;
        let revision = number(&status["header"]["revision"])?;
        let compact = json!({ "revision": revision.to_string(), "physical": true });
        self.post("/v3/kv/compaction", &compact).map(drop)
    }

    /// Switches authentication on: `root` with password `root`, and a user who may read and write
    /// below `prefix`.
    pub fn require_users(&mut self, user: &str, password: &str, prefix: &str) -> Result<()> {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        self.add_user(user, password)?;
        let permission = json!({
            "permType": "READWRITE",
            "key": BASE64.encode(prefix),
            "range_end": BASE64.encode(end),
        });
        self.post(
            "/v3/auth/role/grant",
            &json!({ "name": user, "perm": permission }),
        )?;
        self.require_root()
    }

    /// Adds a user with a role of the same name.
    fn add_user(&self, name: &str, password: &str) -> Result<()> {
        let new = json!({ "name": name, "password": password });
        self.post("/v3/auth/user/add", &new)?;
        self.post("/v3/auth/role/add", &json!({ "name": name }))?;
        let grant = json!({ "user": name, "role": name });
        self.post("/v3/auth/user/grant", &grant).map(drop)
    }

    /// Switches authentication on, with `root` and password `root` beside the users that there are.
    pub fn require_root(&mut self) -> Result<()> {
        self.add_user("root", "root")?;
        self.post("/v3/auth/enable", &json!({}))?;
        let root = json!({ "name": "root", "password": "root" });
        let answer = self.post("/v3/auth/authenticate", &root)?;
        self.token = Some(answer["token"].as_str().context("a token")?.to_owned());
        Ok(())
    }

    /// The last `lines` of what the members said.
    pub fn tail(&self, lines: usize) -> String {
        let processes = self.members.iter().filter_map(|m| m.process.as_ref());
        processes.map(|process| process.tail(lines)).collect()
    }
}

fn key(found: &Value) -> Result<Key> {
    let bytes = |field: &str| -> Result<String> {
        let text = found[field].as_str().unwrap_or_default();
        Ok(String::from_utf8(BASE64.decode(text)?)?)
    };
    let (key, value) = (bytes("key")?, bytes("value")?);
    Ok(Key {
        value: serde_json::from_str(&value).unwrap_or(Value::String(value)),
        created: number(&found["create_revision"])?,
        modified: number(&found["mod_revision"])?,
        // proto3's JSON leaves out what is 0.
        lease: number(&found["lease"]).unwrap_or(0),
        key,
    })
}

/// proto3's JSON spells 64 bit integers as text.
fn number(value: &Value) -> Result<i64> {
    let text = value.as_str();
    let text = text.with_context(|| format!("{value} is no number"))?;
    text.parse().with_context(|| format!("{text} is no number"))
}
