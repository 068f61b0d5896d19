//! The documents of an image: index, manifest, config. Reads, checks, converts; fetches nothing.

use oci_spec::image::{Arch, Config, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde_json::Value;

use crate::digest::{Descriptor, Digest};
use crate::error::PullError;

/// Largest index or manifest, bytes (containerd's and distribution's limit).
pub(crate) const MANIFEST_LIMIT: u64 = 4 << 20;
/// Largest config, bytes.
pub(crate) const CONFIG_LIMIT: u64 = 8 << 20;

/// Most layers of an image: overlayfs takes no more (OVL_MAX_STACK of the kernel).
const MOST_LAYERS: usize = 500;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Media types asked for and accepted where a manifest is expected.
pub(crate) const ACCEPTED: &[&str] = &[OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST];

const CONFIGS: &[&str] = &[
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// What containerd's differ unpacks since 1.6.
const LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// What a reference can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// A list of manifests, one a platform; this is the one for this host.
    Index(Descriptor),
    /// One image.
    Manifest(Manifest),
}

/// The parts of a manifest that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// The parts of a config that matter here.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImageSettings {
    pub diff_ids: Vec<Digest>,
    pub run: Config,
}

/// `architecture` of this host as Go and OCI spell it.
pub(crate) fn host_architecture() -> Arch {
    Arch::default()
}

/// Media type of an index or manifest: the one that it claims, else by its shape.
pub(crate) fn media_type(object: &str, bytes: &[u8]) -> Result<String, PullError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| malformed(object, error))?;
    // A document that is both could mean one image to us and another to whoever signed it
    // (CVE-2021-41190).
    let shape = match (
        value.get("manifests").is_some(),
        value.get("layers").is_some(),
    ) {
        (true, false) => OCI_INDEX,
        (false, true) => OCI_MANIFEST,
        (true, true) => {
            return Err(malformed(object, "it has both `manifests` and `layers`"));
        }
        (false, false) if value.get("fsLayers").is_some() => {
            "application/vnd.docker.distribution.manifest.v1+json"
        }
        (false, false) => return Err(malformed(object, "it has neither `manifests` nor `layers`")),
    };
    let claimed = value
        .get("mediaType")
        .and_then(Value::as_str)
        .unwrap_or(shape);
    let agrees = match claimed {
        OCI_INDEX | DOCKER_INDEX => shape == OCI_INDEX,
        OCI_MANIFEST | DOCKER_MANIFEST => shape == OCI_MANIFEST,
        other => {
            return Err(PullError::UnsupportedMediaType {
                object: object.to_owned(),
                media_type: other.to_owned(),
                allowed: "an OCI or Docker v2 manifest or index",
            });
        }
    };
    if agrees {
        Ok(claimed.to_owned())
    } else {
        Err(malformed(
            object,
            format!("it claims to be {claimed} and does not look like it"),
        ))
    }
}

/// Reads an index or a manifest. `reference` is for the answer about platforms.
pub(crate) fn document(reference: &str, object: &str, bytes: &[u8]) -> Result<Document, PullError> {
    match media_type(object, bytes)?.as_str() {
        OCI_INDEX | DOCKER_INDEX => {
            let index: ImageIndex =
                serde_json::from_slice(bytes).map_err(|error| malformed(object, error))?;
            Ok(Document::Index(for_this_host(reference, object, &index)?))
        }
        _ => Ok(Document::Manifest(manifest(object, bytes)?)),
    }
}

fn for_this_host(
    reference: &str,
    object: &str,
    index: &ImageIndex,
) -> Result<Descriptor, PullError> {
    let wanted = host_architecture();
    let fits = |entry: &&oci_spec::image::Descriptor| {
        entry.platform().as_ref().is_some_and(|platform| {
            *platform.os() == Os::Linux && *platform.architecture() == wanted
        })
    };
    match index.manifests().iter().find(fits) {
        Some(entry) => descriptor(object, entry),
        None => {
            let offered: Vec<String> = index
                .manifests()
                .iter()
                .filter_map(|entry| entry.platform().as_ref())
                .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
                .collect();
            Err(PullError::UnsupportedPlatform {
                reference: reference.to_owned(),
                wanted: format!("linux/{wanted}"),
                offered: if offered.is_empty() {
                    "no platform".to_owned()
                } else {
                    offered.join(", ")
                },
            })
        }
    }
}

fn manifest(object: &str, bytes: &[u8]) -> Result<Manifest, PullError> {
    let parsed: ImageManifest =
        serde_json::from_slice(bytes).map_err(|error| malformed(object, error))?;
    let config = descriptor(object, parsed.config())?;
    if !CONFIGS.contains(&config.media_type.as_str()) {
        return Err(PullError::UnsupportedMediaType {
            object: format!("config of {object}"),
            media_type: config.media_type,
            allowed: "an OCI or Docker image config",
        });
    }
    if config.size > CONFIG_LIMIT {
        return Err(malformed(
            object,
            format!(
                "its config has {} bytes, {CONFIG_LIMIT} are allowed",
                config.size
            ),
        ));
    }
    bound_layers(parsed.layers().len()).map_err(|why| malformed(object, why))?;
    let mut layers = Vec::with_capacity(parsed.layers().len());
    for layer in parsed.layers() {
        let layer = descriptor(object, layer)?;
        if !LAYERS.contains(&layer.media_type.as_str()) {
            return Err(PullError::UnsupportedMediaType {
                object: format!("layer {} of {object}", layer.digest),
                media_type: layer.media_type,
                allowed: "a tar layer, plain, gzip or zstd",
            });
        }
        layers.push(layer);
    }
    if layers.is_empty() {
        return Err(malformed(
            object,
            "it has no layers, so there is nothing to run",
        ));
    }
    Ok(Manifest { config, layers })
}

/// Refuses more layers than an image may have; says how many there are, and may be.
pub(crate) fn bound_layers(layers: usize) -> Result<(), String> {
    match layers > MOST_LAYERS {
        true => Err(format!("it has {layers} layers; at most {MOST_LAYERS}")),
        false => Ok(()),
    }
}

/// Reads a config and checks it against the manifest's number of layers.
pub(crate) fn settings(
    reference: &str,
    object: &str,
    bytes: &[u8],
    layers: usize,
) -> Result<ImageSettings, PullError> {
    let parsed: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| malformed(object, error))?;
    let wanted = host_architecture();
    if *parsed.os() != Os::Linux || *parsed.architecture() != wanted {
        return Err(PullError::UnsupportedPlatform {
            reference: reference.to_owned(),
            wanted: format!("linux/{wanted}"),
            offered: format!("{}/{}", parsed.os(), parsed.architecture()),
        });
    }
    let diff_ids = parsed
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse().map_err(|error| malformed(object, error)))
        .collect::<Result<Vec<Digest>, PullError>>()?;
    if diff_ids.len() != layers {
        return Err(malformed(
            object,
            format!(
                "it names {} diff ids, the manifest {layers} layers",
                diff_ids.len()
            ),
        ));
    }
    Ok(ImageSettings {
        diff_ids,
        run: parsed.config().clone().unwrap_or_default(),
    })
}

pub(crate) fn descriptor(
    object: &str,
    from: &oci_spec::image::Descriptor,
) -> Result<Descriptor, PullError> {
    Ok(Descriptor {
        media_type: from.media_type().to_string(),
        digest: from
            .digest()
            .to_string()
            .parse()
            .map_err(|error| malformed(object, error))?,
        size: from.size(),
    })
}

fn malformed(object: &str, why: impl ToString) -> PullError {
    PullError::Malformed {
        object: object.to_owned(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn entry(os: &str, architecture: &str, of: &str) -> Value {
        json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(of.as_bytes()).as_str(), "size": 7,
            "platform": {"os": os, "architecture": architecture}})
    }

    fn image_manifest(layer_type: &str) -> Value {
        json!({"schemaVersion": 2,
            "config": {"mediaType": CONFIGS[0], "digest": Digest::of(b"c").as_str(), "size": 1},
            "layers": [{"mediaType": layer_type, "digest": Digest::of(b"l").as_str(), "size": 2}]})
    }

    fn read(value: &Value) -> Result<Document, PullError> {
        document("r/web:1", "manifest 1", value.to_string().as_bytes())
    }

    #[test]
    fn an_index_gives_the_manifest_for_this_host() {
        let here = host_architecture().to_string();
        let index = json!({"schemaVersion": 2, "manifests":
            [entry("windows", &here, "w"), entry("linux", "s390x", "s"), entry("linux", &here, "l")]});
        let Document::Index(chosen) = read(&index).unwrap() else {
            panic!("no index")
        };
        assert_eq!(chosen.digest, Digest::of(b"l"));
    }

    #[test]
    fn an_index_without_this_host_says_what_it_offers() {
        let index = json!({"schemaVersion": 2, "manifests": [entry("linux", "s390x", "s")]});
        let refused = read(&index).unwrap_err();
        assert!(
            matches!(&refused, PullError::UnsupportedPlatform { offered, .. } if offered == "linux/s390x"),
            "{refused}"
        );
    }

    #[test]
    fn a_manifest_gives_config_and_layers() {
        let Document::Manifest(manifest) = read(&image_manifest(LAYERS[1])).unwrap() else {
            panic!("no manifest")
        };
        assert_eq!(manifest.config.digest, Digest::of(b"c"));
        assert_eq!((manifest.layers.len(), manifest.layers[0].size), (1, 2));
    }

    #[test]
    fn an_image_has_no_more_layers_than_can_lie_on_one_another() {
        let with = |layers: usize| {
            let mut manifest = image_manifest(LAYERS[1]);
            let layer = manifest["layers"][0].clone();
            manifest["layers"] = vec![layer; layers].into();
            read(&manifest)
        };
        assert!(matches!(with(500), Ok(Document::Manifest(_))));
        let refused = with(501).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "manifest 1 is malformed: it has 501 layers; at most 500"
        );
    }

    #[test]
    fn what_cannot_be_unpacked_is_refused_with_its_media_type() {
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let refused = read(&image_manifest(foreign)).unwrap_err();
        assert!(
            matches!(&refused, PullError::UnsupportedMediaType { media_type, .. } if media_type == foreign),
            "{refused}"
        );
        let old = json!({"schemaVersion": 1, "fsLayers": []});
        assert!(
            matches!(read(&old), Err(PullError::UnsupportedMediaType { media_type, .. })
            if media_type.contains("manifest.v1"))
        );
        let mut chart = image_manifest(LAYERS[0]);
        chart["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        assert!(
            matches!(read(&chart), Err(PullError::UnsupportedMediaType { object, .. })
            if object.starts_with("config"))
        );
    }

    #[test]
    fn a_document_that_is_two_things_is_refused() {
        let mut both = image_manifest(LAYERS[0]);
        both["manifests"] = json!([]);
        let mut liar = image_manifest(LAYERS[0]);
        liar["mediaType"] = json!(OCI_INDEX);
        for (bad, why) in [
            (both, "both"),
            (liar, "does not look like"),
            (json!({}), "neither"),
        ] {
            let refused = read(&bad).unwrap_err();
            assert!(
                matches!(&refused, PullError::Malformed { why: said, .. } if said.contains(why)),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_config_must_fit_the_manifest_and_the_host() {
        let config = |architecture: &str, diff_ids: &[&str]| {
            json!({"architecture": architecture, "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": diff_ids}})
            .to_string()
        };
        let here = host_architecture().to_string();
        let diff_id = Digest::of(b"d");
        let read = |text: String| settings("r/web:1", "config c", text.as_bytes(), 1);
        assert_eq!(
            read(config(&here, &[diff_id.as_str()])).unwrap().diff_ids,
            [diff_id]
        );
        assert!(
            matches!(read(config(&here, &[])), Err(PullError::Malformed { why, .. })
            if why.contains("0 diff ids"))
        );
        assert!(matches!(
            read(config("s390x", &["x"])),
            Err(PullError::UnsupportedPlatform { .. })
        ));
        assert!(
            matches!(read(config(&here, &["x"])), Err(PullError::Malformed { why, .. })
            if why.contains("not a digest"))
        );
    }

    /// JSON that has the keys that are looked at, right and wrong.
    fn json_value() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            Just(OCI_INDEX.to_owned()),
            Just(OCI_MANIFEST.to_owned()),
            Just(CONFIGS[0].to_owned()),
            Just(LAYERS[1].to_owned()),
            Just(Digest::of(b"x").to_string()),
            Just("linux".to_owned()),
            Just("amd64".to_owned()),
            "\\PC{0,12}",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        let keys = proptest::sample::select(vec![
            "schemaVersion",
            "mediaType",
            "manifests",
            "layers",
            "config",
            "digest",
            "size",
            "platform",
            "os",
            "architecture",
            "rootfs",
            "diff_ids",
            "type",
            "fsLayers",
            "urls",
        ]);
        leaf.prop_recursive(4, 48, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((keys.clone(), inner), 0..6).prop_map(|entries| {
                    let entries = entries
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), value));
                    Value::Object(entries.collect())
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_document_breaks_the_decoder(value in json_value(), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            drop(read(&value));
            drop(settings("r/web:1", "config c", value.to_string().as_bytes(), 1));
            drop(document("r/web:1", "manifest 1", &bytes));
        }

        #[test]
        fn a_manifest_is_decoded_as_it_was_written(
            config in 0..=CONFIG_LIMIT,
            layers in proptest::collection::vec((any::<u64>(), 0..LAYERS.len()), 1..6),
        ) {
            // Sizes are signed where descriptors are made by Go.
            let layers: Vec<Descriptor> = layers.into_iter().enumerate().map(|(n, (size, kind))| Descriptor {
                media_type: LAYERS[kind].to_owned(),
                digest: Digest::of(&n.to_le_bytes()),
                size: size >> 1,
            }).collect();
            let describe = |of: &Descriptor| json!({"mediaType": of.media_type,
                "digest": of.digest.as_str(), "size": of.size, "urls": ["https://evil.example/"]});
            let config = Descriptor {
                media_type: CONFIGS[1].to_owned(),
                digest: Digest::of(b"config"),
                size: config,
            };
            let written = json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
                "config": describe(&config), "layers": layers.iter().map(describe).collect::<Vec<_>>()});
            let Document::Manifest(manifest) = read(&written).unwrap() else {
                panic!("no manifest")
            };
            prop_assert_eq!(manifest, Manifest { config, layers });
        }
    }
}
