//! Archives of images, right and wrong, made in memory.

#![allow(dead_code, reason = "each test that includes it uses some of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use imagecache::Digest;
use serde_json::{Value, json};

/// This host, as OCI spells it.
pub const HERE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// Files by name.
#[derive(Debug, Clone, Default)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

impl Files {
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        self.0.insert(name.to_owned(), bytes.to_vec());
    }

    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.add(&format!("blobs/sha256/{}", digest.hex()), bytes);
        json!({"mediaType": media_type, "digest": digest.as_str(), "size": bytes.len()})
    }

    /// The name of the first `config`, `layer` or `manifest` of a layout with one manifest.
    pub fn of(&self, what: &str) -> String {
        let index: Value = serde_json::from_slice(&self.0["index.json"]).unwrap();
        let name = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap())
        };
        let manifest = name(&index["manifests"][0]);
        let parsed: Value = serde_json::from_slice(&self.0[&manifest]).unwrap();
        match what {
            "config" => name(&parsed["config"]),
            "layer" => name(&parsed["layers"][0]),
            _ => manifest,
        }
    }

    /// Takes the images of another layout in.
    pub fn merge(&mut self, other: Self) {
        let read =
            |files: &Self| -> Value { serde_json::from_slice(&files.0["index.json"]).unwrap() };
        let (mut ours, theirs) = (read(self), read(&other));
        let manifests = ours["manifests"].as_array_mut().unwrap();
        manifests.extend(theirs["manifests"].as_array().unwrap().clone());
        self.0.extend(other.0);
        self.add("index.json", ours.to_string().as_bytes());
    }

    pub fn tar(&self) -> Vec<u8> {
        self.tar_with(|_| ())
    }

    /// With something more behind the files.
    pub fn tar_with(&self, more: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut tar = Vec::new();
        for (name, bytes) in &self.0 {
            file(&mut tar, name.as_bytes(), bytes);
        }
        more(&mut tar);
        tar.extend([0; 1024]);
        tar
    }

    pub fn write_below(&self, directory: &Path) {
        for (name, bytes) in &self.0 {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

/// A layout with one image; `name` is what its annotation says.
pub fn oci_files(name: &str, layers: &[&[u8]]) -> Files {
    layout(&[name], layers, false)
}

/// A layout with one image of several names; in an index of its own when `nested`.
pub fn layout(names: &[&str], layers: &[&[u8]], nested: bool) -> Files {
    let mut files = Files::default();
    let target = image(&mut files, layers, HERE, nested);
    index(&mut files, &target, names);
    files
}

/// A layout with an image whose config is for another architecture.
pub fn for_platform(name: &str, architecture: &str) -> Files {
    let mut files = Files::default();
    let target = image(&mut files, &[b"layer"], architecture, false);
    index(&mut files, &target, &[name]);
    files
}

/// The same, and its index says so.
pub fn listed_for_platform(name: &str, architecture: &str) -> Files {
    let mut files = Files::default();
    let mut target = image(&mut files, &[b"layer"], architecture, false);
    target["platform"] = json!({"os": "linux", "architecture": architecture});
    index(&mut files, &target, &[name]);
    files
}

fn config(architecture: &str, layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(layer).to_string())
        .collect();
    json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
    .into_bytes()
}

fn image(files: &mut Files, layers: &[&[u8]], architecture: &str, nested: bool) -> Value {
    let config = config(architecture, layers);
    let config = files.blob("application/vnd.oci.image.config.v1+json", &config);
    let of = |layer: &&[u8]| files.blob("application/vnd.oci.image.layer.v1.tar", layer);
    let layers: Vec<Value> = layers.iter().map(of).collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let mut manifest = files.blob(media_type, manifest.to_string().as_bytes());
    if !nested {
        return manifest;
    }
    manifest["platform"] = json!({"os": "linux", "architecture": architecture});
    // Of which nothing is in the layout.
    let other = json!({"mediaType": media_type, "digest": Digest::of(b"other").as_str(), "size": 5,
        "platform": {"os": "linux", "architecture": "s390x"}});
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index =
        json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [other, manifest]});
    files.blob(media_type, index.to_string().as_bytes())
}

fn index(files: &mut Files, target: &Value, names: &[&str]) {
    let entry = |name: &&str| {
        let mut entry = target.clone();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entry
    };
    let manifests: Vec<Value> = names.iter().map(entry).collect();
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    files.add("index.json", index.to_string().as_bytes());
    files.add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
}

/// What docker before 25 saves.
pub fn docker_archive(tags: &[&str], layers: &[&[u8]]) -> Files {
    let mut files = Files::default();
    let config = config(HERE, layers);
    let config_name = format!("{}.json", Digest::of(&config).hex());
    files.add(&config_name, &config);
    let mut names = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let name = format!("layer{at}/layer.tar");
        files.add(&name, layer);
        files.add(&format!("layer{at}/VERSION"), b"1.0");
        names.push(name);
    }
    let saved = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    files.add("manifest.json", saved.to_string().as_bytes());
    files.add("repositories", b"{}");
    files
}

pub fn file(tar: &mut Vec<u8>, name: &[u8], bytes: &[u8]) {
    entry(tar, name, b"", tar::EntryType::Regular, bytes);
}

pub fn link(tar: &mut Vec<u8>, name: &[u8], target: &[u8]) {
    entry(tar, name, target, tar::EntryType::Symlink, b"");
}

pub fn special(tar: &mut Vec<u8>, name: &[u8], kind: tar::EntryType) {
    entry(tar, name, b"", kind, b"");
}

/// Header and data as told, also what no program would write.
fn entry(tar: &mut Vec<u8>, name: &[u8], target: &[u8], kind: tar::EntryType, bytes: &[u8]) {
    if name.len() > 100 {
        entry(
            tar,
            b"././@LongLink",
            b"",
            tar::EntryType::GNULongName,
            name,
        );
    }
    let mut header = tar::Header::new_gnu();
    let short = name.len().min(100);
    header.as_old_mut().name[..short].copy_from_slice(&name[..short]);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(bytes);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
