//! Import of what containerd exports, and export for containerd to import. Starts the machine's
//! containerd in a directory of its own, without CRI.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod archives;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use archives::{Files, layout};
use imagecache::blobs::Blobs;
use imagecache::memory::MemoryStore;
use imagecache::transfer::{Export, import};

const NAME: &str = "r.example/web:1";
/// How long containerd may take to answer.
const START: Duration = Duration::from_secs(30);

struct Containerd {
    directory: tempfile::TempDir,
    process: Child,
}

impl Containerd {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let config = directory.path().join("config.toml");
        let text = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{at}/socket\"\n"
        );
        fs::write(&config, text).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let process = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd, which tests/peers/install installs");
        let containerd = Self { directory, process };
        let deadline = Instant::now() + START;
        while !containerd.ctr(&["version"]).0 {
            let log = containerd.path("log");
            let log = || fs::read_to_string(&log).unwrap_or_default();
            assert!(Instant::now() < deadline, "containerd: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        containerd
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ctr(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.path("socket"))
            .args(arguments)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Our own child, not yet waited for: the pid is its.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn blobs(path: &Path) -> Blobs {
    Blobs::open_in_boot(path, "boot-1").unwrap()
}

#[tokio::test]
async fn containerd_imports_our_export_and_we_import_its_own() {
    let containerd = Containerd::start();
    let mut files = Files::default();
    files.add("etc/file", b"content");
    let layer = files.tar();
    let directory = containerd.path("layout");
    layout(&[NAME], &[&layer], true).write_below(&directory);
    let (ours, store) = (blobs(&containerd.path("a")), MemoryStore::default());
    let images = import(&directory, None, &ours, &store).await.unwrap();

    let archive = containerd.path("ours.tar");
    let export = Export::of(&images, &ours, &store).await.unwrap();
    export.write(File::create(&archive).unwrap()).unwrap();
    let path = archive.display().to_string();
    let (done, said) = containerd.ctr(&["images", "import", "--no-unpack", &path]);
    assert!(done, "{said}");
    let (_, listed) = containerd.ctr(&["images", "ls"]);
    let target = images[0].target.digest.as_str();
    assert!(listed.contains(NAME) && listed.contains(target), "{listed}");

    let archive = containerd.path("its.tar");
    let path = archive.display().to_string();
    let (done, said) = containerd.ctr(&["images", "export", &path, NAME]);
    assert!(done, "{said}");
    let (theirs, store) = (blobs(&containerd.path("b")), MemoryStore::default());
    let again = import(&archive, None, &theirs, &store).await.unwrap();
    assert_eq!(again, images);
}
