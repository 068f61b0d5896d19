//! The walls around a container, looked at from inside, with real runc.
//!
//! Needs root, runc and busybox-static. The container's first process is a shell script in the
//! place of container-init; what it prints is what is asserted.
// A panic is the report of a test; clippy knows that only of functions marked as tests.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nodeagent::app::{App, CapabilitySet, parse};
use nodeagent::instance::spec::{
    CgroupVersion, HostFacts, RaisesLimits, SpecError, SpecInput, SwapAccounting, build,
};
use nodeagent::instance::{ContainerId, ImageConfig};
use tempfile::TempDir;

fn app(network: &str) -> App {
    parse(&format!(
        "{{apiVersion: nodeagent/v1, kind: App, metadata: {{name: web}}, spec: {{\
         image: 'web:1', ports: [{{containerPort: 80}}], network: {network}, \
         resources: {{limits: {{cpu: 500m, memory: 64Mi, pids: 48}}}}}}}}"
    ))
    .unwrap()
}

/// A bundle, a cgroup of its own and a network namespace; gone when dropped.
struct Container {
    dir: TempDir,
    cgroup: String,
    id: ContainerId,
    netns: Child,
}

impl Container {
    fn new(name: &str, script: &str) -> Self {
        assert!(is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        for sub in [
            "bundle/rootfs/bin",
            "bundle/rootfs/tmp",
            "bin",
            "log",
            "ctl",
            "runc",
        ] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        fs::copy("/bin/busybox", dir.path().join("bundle/rootfs/bin/busybox")).unwrap();
        executable(&dir.path().join("bin/container-init"), script.as_bytes());
        // Its /proc/PID/ns/net is the instance's network namespace.
        let netns = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let container = Self {
            dir,
            cgroup: format!("/nodeagent-spectest-{}-{name}", std::process::id()),
            id: "web-0.g1".parse().unwrap(),
            netns,
        };
        container.wait_for_own_netns();
        container
    }

    fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    fn netns(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.netns.id()))
    }

    /// unshare(1) has a moment in which it is still in our namespace.
    fn wait_for_own_netns(&self) {
        let ours = fs::read_link("/proc/self/ns/net").unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while fs::read_link(self.netns()).is_ok_and(|its| its == ours) {
            assert!(
                std::time::Instant::now() < deadline,
                "unshare --net took 10 s"
            );
            std::thread::yield_now();
        }
    }

    /// Runs the script to its end and returns its `key=value` lines.
    fn run(&self) -> BTreeMap<String, String> {
        let app = app("routed");
        let netns = self.netns();
        let spec = build(&SpecInput {
            app: &app,
            image: &ImageConfig::default(),
            id: &self.id,
            hostname: "web-0",
            netns: Some(&netns),
            cgroup_path: format!("{}/{}", self.cgroup, self.id),
            bin_dir: &self.path("bin"),
            log_dir: &self.path("log"),
            ctl_dir: &self.path("ctl"),
            volumes: &[],
            seccomp_profile: None,
            host: HostFacts::detect(),
        })
        .unwrap();
        spec.save(self.path("bundle/config.json")).unwrap();
        let output = self
            .runc()
            .args(["run", "--bundle"])
            .arg(self.path("bundle"))
            .arg(self.id.to_string())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "runc: {}\n{text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        text.lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect()
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.path("runc"));
        command
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self
            .runc()
            .args(["delete", "--force"])
            .arg(self.id.to_string())
            .stderr(Stdio::null())
            .status();
        let _ = self.netns.kill();
        let _ = self.netns.wait();
        let name = self.cgroup.trim_start_matches('/');
        let hierarchies = fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten();
        for root in hierarchies
            .map(|entry| entry.path())
            .chain([PathBuf::from("/sys/fs/cgroup")])
        {
            let _ = fs::remove_dir(root.join(name).join(self.id.to_string()));
            let _ = fs::remove_dir(root.join(name));
        }
    }
}

fn is_root() -> bool {
    fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

fn executable(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn capabilities_privileges_and_limits_are_those_of_the_spec() {
    let container = Container::new(
        "limits",
        r#"#!/bin/busybox sh
b=/bin/busybox
$b awk -F'[:\t ]+' '/^(NoNewPrivs|Cap...|Seccomp):/ {print $1 "=" $2}' /proc/self/status
echo "args=$0 $*"
echo "hostname=$($b hostname)"
echo "env=$PATH $HOSTNAME"
echo "links=$($b ls /sys/class/net | $b tr '\n' ' ')"
echo "soft=$(ulimit -Sn)"
echo "hard=$(ulimit -Hn)"
c=/sys/fs/cgroup
if [ -e $c/memory ]; then
  echo "memory=$($b cat $c/memory/memory.limit_in_bytes)"
  echo "swap=$($b cat $c/memory/memory.memsw.limit_in_bytes 2>/dev/null)"
  echo "pids=$($b cat $c/pids/pids.max)"
  echo "quota=$($b cat $c/cpu/cpu.cfs_quota_us)"
  echo "path=$($b sed -n 's/.*:pids://p' /proc/self/cgroup)"
else
  echo "memory=$($b cat $c/memory.max)"
  echo "pids=$($b cat $c/pids.max)"
  echo "quota=$($b cut -d' ' -f1 $c/cpu.max)"
fi
"#,
    );
    let seen = container.run();
    let is = |key: &str, value: &str| assert_eq!(seen[key], value, "{key} in {seen:#?}");
    is("NoNewPrivs", "1");
    // The fourteen of the standard set, as `capsh --decode=00000000a80425fb` spells them.
    is("CapBnd", "00000000a80425fb");
    is("CapPrm", "00000000a80425fb");
    is("CapEff", "00000000a80425fb");
    is("CapInh", "0000000000000000");
    is("CapAmb", "0000000000000000");
    is("Seccomp", "2");
    is(
        "args",
        "/.nodeagent/bin/container-init --plan /.nodeagent/bin/plan",
    );
    is("hostname", "web-0");
    is(
        "env",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin web-0",
    );
    is("links", "lo");
    is("soft", "1024");
    is(
        "hard",
        &HostFacts::detect().nofile_hard.min(1_048_576).to_string(),
    );
    is("memory", &(64 << 20).to_string());
    is("pids", "48");
    is("quota", "50000");
    if HostFacts::detect().cgroup == CgroupVersion::V1 {
        is("path", &format!("{}/{}", container.cgroup, container.id));
        if HostFacts::detect().swap == SwapAccounting::Present {
            is("swap", &(64 << 20).to_string());
        }
    }
}

#[test]
fn what_is_masked_or_read_only_stays_so_for_root() {
    let container = Container::new(
        "walls",
        r#"#!/bin/busybox sh
b=/bin/busybox
for f in timer_list kcore keys; do echo "$f=$($b head -c 1 /proc/$f | $b wc -c)"; done
echo "firmware=$($b ls /sys/firmware | $b wc -l)"
try() { name=$1; shift; echo "$name=$("$@" 2>&1 && echo done)"; }
write() { echo x > "$1"; }
try bin write /.nodeagent/bin/x
try ctl write /.nodeagent/ctl/x
try log write /.nodeagent/log/x
try run write /.nodeagent/run/x
try sysctl write /proc/sys/kernel/hostname
try irq write /proc/irq/default_smp_affinity
try sys write /sys/class/net/lo/mtu
try cgroup $b mkdir /sys/fs/cgroup/pids/x
try remount $b mount -o remount,rw /proc/sys
try umount $b umount /.nodeagent/ctl
try big $b dd if=/dev/zero of=/.nodeagent/run/big bs=1024 count=2048
$b cp $b /.nodeagent/log/busybox && $b chmod 755 /.nodeagent/log/busybox
try exec /.nodeagent/log/busybox true
$b mknod /tmp/disk b 7 0 && echo mknod=done
try disk $b head -c 1 /tmp/disk
try null $b head -c 1 /dev/null
echo "runmode=$($b stat -c %a /.nodeagent/run)"
"#,
    );
    let seen = container.run();
    for empty in ["timer_list", "kcore", "keys", "firmware"] {
        assert_eq!(seen[empty], "0", "{empty}");
    }
    let timers = fs::read_to_string("/proc/timer_list").unwrap();
    assert!(
        !timers.is_empty(),
        "the host's own list is readable, so the mask is what hides it"
    );
    let refused = |key: &str, why: &str| {
        assert!(
            seen[key].ends_with(why),
            "{key} should say {why}: {}",
            seen[key]
        );
    };
    for read_only in ["bin", "ctl", "sysctl", "irq", "sys", "cgroup"] {
        refused(read_only, "Read-only file system");
    }
    refused("remount", "permission denied (are you root?)");
    refused("umount", "Operation not permitted");
    refused("exec", "Permission denied");
    refused("disk", "Operation not permitted");
    for (key, value) in [
        ("log", "done"),
        ("run", "done"),
        ("mknod", "done"),
        ("null", "done"),
        ("runmode", "755"),
    ] {
        assert_eq!(seen[key], value, "{key}");
    }
    assert!(
        !seen["big"].ends_with("done"),
        "a tmpfs of 1 MiB took 2 MiB: {}",
        seen["big"]
    );
    assert_eq!(fs::read_to_string(container.path("log/x")).unwrap(), "x\n");
    assert!(!container.path("ctl/x").exists());
}

/// A static program of one system call that exits with its errno, 0 on success.
#[cfg(target_arch = "x86_64")]
fn one_call(number: u32, first: u32, second: u32) -> Vec<u8> {
    let mut code = vec![0xb8]; // mov eax, number
    code.extend(number.to_le_bytes());
    code.push(0xbf); // mov edi, first
    code.extend(first.to_le_bytes());
    code.push(0xbe); // mov esi, second
    code.extend(second.to_le_bytes());
    code.extend([0x31, 0xd2, 0x45, 0x31, 0xd2, 0x0f, 0x05]); // edx = r10d = 0; syscall
    code.extend([0x31, 0xff, 0x85, 0xc0, 0x79, 0x04]); // edi = 0; unless eax >= 0:
    code.extend([0xf7, 0xd8, 0x89, 0xc7]); // edi = -eax
    code.extend([0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05]); // exit(edi)

    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64
    for field in [BASE + HEADERS, 64, 0] {
        elf.extend(field.to_le_bytes()); // entry, program headers, no sections
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // load, read and execute
    for field in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(field.to_le_bytes());
    }
    elf.extend(code);
    elf
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_system_calls_of_a_breakout_are_refused() {
    const NEWUSER: u32 = 0x1000_0000;
    const EPERM: u32 = 1;
    const ENOSYS: u32 = 38;
    // Numbers of asm/unistd_64.h. Without seccomp none of these would say EPERM to root with its
    // capabilities cut, but mount, bpf and setns.
    let calls = [
        ("keyctl", 250, 0, 0, EPERM),
        ("add_key", 248, 0, 0, EPERM),
        ("unshare_user", 272, NEWUSER, 0, EPERM),
        ("clone_user", 56, NEWUSER | 17, 0, EPERM),
        ("clone3", 435, 0, 0, ENOSYS),
        ("mount", 165, 0, 0, EPERM),
        ("setns", 308, 0, 0, EPERM),
        ("bpf", 321, 0, 0, EPERM),
        ("io_uring_setup", 425, 1, 0, EPERM),
        ("userfaultfd", 323, 0, 0, EPERM),
        ("open_by_handle_at", 304, 0, 0, EPERM),
        ("personality_randomize", 135, 0x004_0000, 0, EPERM),
        ("personality_query", 135, 0xffff_ffff, 0, 0),
        ("socket_alg", 41, 38, 5, EPERM),
        ("socket_vsock", 41, 40, 1, EPERM),
        ("socket_inet", 41, 2, 1, 0),
        ("getpid", 39, 0, 0, 0),
        ("chroot", 161, 0, 0, 14), // allowed by CAP_SYS_CHROOT: EFAULT
    ];
    let names: Vec<&str> = calls.iter().map(|call| call.0).collect();
    let script = format!(
        "#!/bin/busybox sh\nfor c in {}; do /.nodeagent/bin/$c; echo \"$c=$?\"; done\n",
        names.join(" ")
    );
    let container = Container::new("calls", &script);
    for (name, number, first, second, _) in calls {
        executable(
            &container.path("bin").join(name),
            &one_call(number, first, second),
        );
    }
    let seen = container.run();
    for (name, _, _, _, errno) in calls {
        assert_eq!(seen[name], errno.to_string(), "{name}");
    }
}

#[test]
fn a_mixed_up_input_is_refused_and_says_what() {
    let routed = app("routed");
    let host = app("host");
    let image = ImageConfig::default();
    let id: ContainerId = "web-0.g1".parse().unwrap();
    let good = SpecInput {
        app: &host,
        image: &image,
        id: &id,
        hostname: "web-0",
        netns: None,
        cgroup_path: "/nodeagent/web-0.g1".into(),
        bin_dir: Path::new("/s/bin"),
        log_dir: Path::new("/s/log"),
        ctl_dir: Path::new("/r/ctl"),
        volumes: &[],
        seccomp_profile: None,
        host: HostFacts {
            cgroup: CgroupVersion::V2,
            swap: SwapAccounting::Present,
            nofile_hard: 512,
            inherited: [512; 16],
            raises: RaisesLimits::No,
            gives: CapabilitySet::NONE,
        },
    };
    let spec = build(&good).unwrap();
    let limits = spec.process().as_ref().unwrap().rlimits().as_ref().unwrap()[0];
    assert_eq!((limits.soft(), limits.hard()), (512, 512));

    let error = build(&SpecInput {
        app: &routed,
        ..good.clone()
    })
    .unwrap_err();
    assert!(matches!(error, SpecError::Network { netns: None, .. }));
    assert_eq!(
        error.to_string(),
        "app web has network Routed, but its network namespace is None"
    );

    let error = build(&SpecInput {
        hostname: "a b",
        ..good.clone()
    })
    .unwrap_err();
    assert!(matches!(error, SpecError::Hostname { .. }));

    let error = build(&SpecInput {
        bin_dir: Path::new("bin"),
        ..good.clone()
    })
    .unwrap_err();
    assert!(matches!(
        error,
        SpecError::Path {
            what: "bin directory",
            ..
        }
    ));

    let error = build(&SpecInput {
        cgroup_path: "/nodeagent/web-0.g2".into(),
        ..good.clone()
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cgroup path /nodeagent/web-0.g2 does not end in the container id web-0.g1"
    );

    let error = build(&SpecInput {
        cgroup_path: "/a/../web-0.g1".into(),
        ..good
    })
    .unwrap_err();
    assert!(matches!(
        error,
        SpecError::Path {
            what: "cgroup path",
            ..
        }
    ));
}

#[test]
fn path_comes_from_the_image_and_the_last_one_wins() {
    let host = app("host");
    let image = ImageConfig {
        env: vec![
            ("PATH".into(), "/a".into()),
            ("PATH".into(), "/opt/bin:/b".into()),
        ],
        ..ImageConfig::default()
    };
    let spec = build(&SpecInput {
        app: &host,
        image: &image,
        id: &"web-0.g1".parse().unwrap(),
        hostname: "web-0",
        netns: None,
        cgroup_path: "/nodeagent/web-0.g1".into(),
        bin_dir: Path::new("/s/bin"),
        log_dir: Path::new("/s/log"),
        ctl_dir: Path::new("/r/ctl"),
        volumes: &[],
        seccomp_profile: None,
        host: HostFacts::detect(),
    })
    .unwrap();
    let env = spec.process().as_ref().unwrap().env().as_ref().unwrap();
    assert_eq!(env, &["PATH=/opt/bin:/b", "HOSTNAME=web-0"]);
}
