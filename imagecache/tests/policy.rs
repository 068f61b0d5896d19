//! Rules, keys and signatures, made with the machine's openssl.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imagecache::policy::{
    Allowed, Default as ByDefault, Found, Key, Policy, PolicySettings, Refusal, RuleSettings,
    Signature, SignatureSource, Verdict, check, judge,
};
use imagecache::{Descriptor, Digest, Reference, Retry};
use proptest::prelude::*;
use serde_json::{Value, json};

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const REPOSITORY: &str = "registry.test:5000/team/web";

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
    output.stdout
}

/// Keys in a directory, and a registry with signatures.
struct Workshop {
    place: tempfile::TempDir,
    registry: Registry,
}

#[derive(Default)]
struct Registry {
    manifests: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    is_away: bool,
    asked: Mutex<Vec<String>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the registry is away")]
struct Away;

impl SignatureSource for Registry {
    type Error = Away;

    async fn signature_manifest(
        &self,
        reference: &Reference,
        tag: &str,
    ) -> Result<Option<Vec<u8>>, Away> {
        let name = format!("{}/{}:{tag}", reference.registry(), reference.repository());
        self.asked.lock().unwrap().push(name.clone());
        match self.is_away {
            true => Err(Away),
            false => Ok(self.manifests.get(&name).cloned()),
        }
    }

    async fn payload(&self, _: &Reference, blob: &Descriptor) -> Result<Vec<u8>, Away> {
        let blob = blob.digest.as_str();
        self.asked.lock().unwrap().push(blob.to_owned());
        self.blobs.get(blob).cloned().ok_or(Away)
    }

    fn retry(_: &Away) -> Retry {
        Retry::Later
    }
}

fn digest() -> Digest {
    Digest::of(b"the image")
}

fn payload_of(kind: &str, digest: &str, reference: &str) -> Vec<u8> {
    json!({
        "critical": {
            "identity": {"docker-reference": reference},
            "image": {"docker-manifest-digest": digest},
            "type": kind,
        },
        "optional": null,
    })
    .to_string()
    .into_bytes()
}

/// As cosign writes it.
fn payload() -> Vec<u8> {
    payload_of(
        "cosign container image signature",
        digest().as_str(),
        REPOSITORY,
    )
}

impl Workshop {
    fn new() -> Self {
        Self {
            place: tempfile::tempdir().unwrap(),
            registry: Registry::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// A pair of keys on this curve; the path is the public one's.
    fn key_on(&self, name: &str, curve: &str) -> PathBuf {
        let private = self.path(&format!("{name}.key"));
        let public = self.path(&format!("{name}.pub"));
        let private_text = private.to_str().unwrap();
        openssl(
            &[
                "ecparam",
                "-name",
                curve,
                "-genkey",
                "-noout",
                "-out",
                private_text,
            ],
            b"",
        );
        let pem = openssl(&["ec", "-in", private_text, "-pubout"], b"");
        fs::write(&public, pem).unwrap();
        public
    }

    fn key(&self, name: &str) -> PathBuf {
        self.key_on(name, "prime256v1")
    }

    fn sign(&self, name: &str, payload: &[u8]) -> String {
        let private = self.path(&format!("{name}.key"));
        STANDARD.encode(openssl(
            &["dgst", "-sha256", "-sign", private.to_str().unwrap()],
            payload,
        ))
    }

    /// Puts signatures where cosign does.
    fn publish(&mut self, signatures: &[(&[u8], Option<&str>)]) {
        let layers: Vec<Value> = signatures
            .iter()
            .map(|(payload, signature)| {
                let digest = Digest::of(payload);
                self.registry
                    .blobs
                    .insert(digest.to_string(), payload.to_vec());
                let mut layer = json!({"mediaType": PAYLOAD, "digest": digest.as_str(),
                    "size": payload.len()});
                if let Some(signature) = signature {
                    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
                }
                layer
            })
            .collect();
        self.publish_layers(layers);
    }

    fn publish_layers(&mut self, layers: Vec<Value>) {
        let manifest = json!({"schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(b"{}").as_str(), "size": 2},
            "layers": layers});
        self.publish_bytes(manifest.to_string().into_bytes());
    }

    fn publish_bytes(&mut self, manifest: Vec<u8>) {
        self.registry
            .manifests
            .insert(format!("{REPOSITORY}:{}", tag()), manifest);
    }

    async fn check(&self, policy: &Policy) -> Result<Allowed, Refusal> {
        check(policy, &web(), &digest(), &self.registry).await
    }

    /// The sentence behind `wants DIGEST signed: `.
    async fn why(&self, policy: &Policy) -> String {
        let refusal = self.check(policy).await.unwrap_err();
        assert!(matches!(refusal, Refusal::Unsigned { .. }), "{refusal}");
        assert_eq!(refusal.retry(), Retry::Never);
        let begin = format!(
            "the image policy refuses {REPOSITORY}:1: the rule for registry.test:5000/team wants {} signed: ",
            digest()
        );
        let said = refusal.to_string();
        said.strip_prefix(&begin).expect(&said).to_owned()
    }
}

fn tag() -> String {
    format!("sha256-{}.sig", digest().hex())
}

fn reference(name: &str) -> Reference {
    name.parse().unwrap()
}

fn web() -> Reference {
    reference(&format!("{REPOSITORY}:1"))
}

fn policy(default: Option<ByDefault>, rules: Vec<RuleSettings>) -> Policy {
    Policy::new(&PolicySettings { default, rules }).unwrap()
}

fn rule(scope: &str) -> RuleSettings {
    RuleSettings {
        scope: scope.to_owned(),
        ..RuleSettings::default()
    }
}

fn signed_by(keys: &[&Path]) -> Policy {
    let keys = keys.iter().map(|key| key.to_path_buf()).collect();
    policy(
        None,
        vec![RuleSettings {
            require_signature: keys,
            ..rule("registry.test:5000/team")
        }],
    )
}

fn judged(policy: &Policy, name: &str) -> Result<Allowed, String> {
    judge(policy, &reference(name), &digest(), &Found::default()).map_err(|r| r.to_string())
}

#[test]
fn without_rules_everything_is_allowed_unless_the_default_is_deny() {
    assert_eq!(
        judged(&policy(None, vec![]), "busybox"),
        Ok(Allowed::ByDefault)
    );
    assert_eq!(
        judged(&policy(Some(ByDefault::Deny), vec![]), "busybox"),
        Err(
            "the image policy refuses docker.io/library/busybox:latest: no rule is for it, \
             and the default is deny; there are rules for nothing"
                .to_owned()
        )
    );
}

#[test]
fn with_rules_what_they_do_not_name_is_refused_unless_the_default_is_allow() {
    let rules = vec![rule("ghcr.io/team"), rule("docker.io/library")];
    let listed = policy(None, rules.clone());
    for name in [
        "ghcr.io/team/web:1",
        "ghcr.io/team",
        "ghcr.io/team/a/b",
        "busybox",
        "index.docker.io/library/x",
    ] {
        assert!(
            matches!(judged(&listed, name), Ok(Allowed::ByRule(_))),
            "{name}"
        );
    }
    for name in ["ghcr.io/teams/web", "ghcr.io:443/team/web", "team/web"] {
        let refused = judged(&listed, name).unwrap_err();
        assert!(
            refused.ends_with(
                "no rule is for it, and the default is deny; there are rules for ghcr.io/team, docker.io/library"
            ),
            "{refused}"
        );
    }
    let open = policy(Some(ByDefault::Allow), rules);
    assert_eq!(judged(&open, "ghcr.io/teams/web"), Ok(Allowed::ByDefault));
}

#[test]
fn the_first_rule_that_fits_counts() {
    let denied = RuleSettings {
        verdict: Verdict::Deny,
        ..rule("ghcr.io/team/secret")
    };
    let pinned = RuleSettings {
        require_digest: true,
        ..rule("ghcr.io/team")
    };
    let policy = policy(None, vec![denied, pinned, rule("*")]);
    assert_eq!(
        judged(&policy, "ghcr.io/team/secret/x:1").unwrap_err(),
        "the image policy refuses ghcr.io/team/secret/x:1: the rule for ghcr.io/team/secret denies it"
    );
    assert_eq!(
        judged(&policy, "ghcr.io/team/web:1").unwrap_err(),
        "the image policy refuses ghcr.io/team/web:1: the rule for ghcr.io/team wants a digest \
         (NAME@sha256:…), and none was given"
    );
    let by_digest = format!("ghcr.io/team/web:1@{}", digest());
    assert_eq!(
        judged(&policy, &by_digest),
        Ok(Allowed::ByRule("ghcr.io/team".to_owned()))
    );
    assert_eq!(
        judged(&policy, "quay.io/web"),
        Ok(Allowed::ByRule("*".to_owned()))
    );
}

#[test]
fn rules_that_cannot_be_meant_are_refused_with_field_and_value() {
    let keys = vec![PathBuf::from("/etc/key.pub")];
    let refused = |rules: Vec<RuleSettings>| {
        let settings = PolicySettings {
            default: None,
            rules,
        };
        Policy::new(&settings).unwrap_err().to_string()
    };
    assert_eq!(
        refused(vec![
            rule("quay.io"),
            rule("ghcr.io/team"),
            rule("ghcr.io/team/web")
        ]),
        "rule 3 of the image policy: scope ghcr.io/team/web is never reached: \
         rule 2 for ghcr.io/team comes first, and the first that fits counts"
    );
    assert!(refused(vec![rule("*"), rule("quay.io")]).contains("never reached: rule 1 for *"));
    let deny = RuleSettings {
        verdict: Verdict::Deny,
        require_digest: true,
        ..rule("*")
    };
    assert_eq!(
        refused(vec![deny]),
        "rule 1 of the image policy: verdict is deny, so require_digest and require_signature \
         mean nothing: allow, or leave them out"
    );
    let relative = RuleSettings {
        require_signature: vec![PathBuf::from("key.pub")],
        ..rule("*")
    };
    assert_eq!(
        refused(vec![relative]),
        "rule 1 of the image policy: require_signature \"key.pub\" is not an absolute path"
    );
    let unsigned = RuleSettings {
        signed_as: Some("ghcr.io".to_owned()),
        ..rule("*")
    };
    assert_eq!(
        refused(vec![unsigned]),
        "rule 1 of the image policy: signed_as means nothing without require_signature"
    );
    let other = RuleSettings {
        require_signature: keys,
        signed_as: Some("team/web".to_owned()),
        ..rule("*")
    };
    assert!(refused(vec![other]).starts_with("rule 1 of the image policy: signed_as \"team/web\""));
    for bad in [
        "",
        "team/web",
        "ghcr.io/",
        "ghcr.io/team/",
        "ghcr.io/team*",
        "ghcr.io/*",
        "ghcr.io/Team",
        "ghcr.io/team/web:1",
        "ghcr.io//web",
        "https://ghcr.io/team",
        "ghcr.io/team web",
    ] {
        let said = refused(vec![rule(bad)]);
        assert!(
            said.starts_with(&format!(
                "rule 1 of the image policy: scope {bad:?} is no scope ("
            )) && said.contains("are allowed, for example ghcr.io/team"),
            "{said}"
        );
    }
    for good in [
        "localhost",
        "localhost:5000",
        "127.0.0.1:5000/a/b",
        "ghcr.io",
        "*",
    ] {
        policy(None, vec![rule(good)]);
    }
}

#[tokio::test]
async fn a_signature_by_any_key_of_the_rule_is_enough() {
    let mut workshop = Workshop::new();
    let (first, second) = (workshop.key("first"), workshop.key("second"));
    let policy = signed_by(&[&first, &second]);
    for (name, path) in [("first", &first), ("second", &second)] {
        let signature = workshop.sign(name, &payload());
        workshop.publish(&[(&payload(), Some(&signature))]);
        let allowed = workshop.check(&policy).await.unwrap();
        let Allowed::BySignature { scope, key, .. } = allowed else {
            panic!("{allowed:?}");
        };
        assert_eq!((scope.as_str(), &key), ("registry.test:5000/team", path));
    }
}

#[tokio::test]
async fn one_right_signature_among_many_wrong_ones_is_enough() {
    let mut workshop = Workshop::new();
    let ours = workshop.key("ours");
    workshop.key("theirs");
    let (wrong, right) = (
        workshop.sign("theirs", &payload()),
        workshop.sign("ours", &payload()),
    );
    workshop.publish(&[
        (&payload(), Some(&wrong)),
        (&payload(), None),
        (b"not json", Some(&right)),
        (&payload(), Some(&right)),
    ]);
    let policy = signed_by(&[&ours]);
    assert!(workshop.check(&policy).await.is_ok());
}

#[test]
fn a_key_of_another_rule_does_not_count() {
    let workshop = Workshop::new();
    let (ours, theirs) = (workshop.key("ours"), workshop.key("theirs"));
    let found = |names: &[&PathBuf]| Found {
        keys: names.iter().map(|path| Key::read(path)).collect(),
        signatures: vec![Signature {
            payload: Ok(payload()),
            base64: Some(workshop.sign("theirs", &payload())),
        }],
    };
    let policy = signed_by(&[&ours]);
    let refused = judge(&policy, &web(), &digest(), &found(&[&theirs, &ours])).unwrap_err();
    assert!(
        refused
            .to_string()
            .ends_with("it was not made with any of the keys"),
        "{refused}"
    );
    let policy = signed_by(&[&theirs]);
    assert!(judge(&policy, &web(), &digest(), &found(&[&theirs])).is_ok());
}

#[tokio::test]
async fn what_is_not_signed_is_refused() {
    let mut workshop = Workshop::new();
    let ours = workshop.key("ours");
    let policy = signed_by(&[&ours]);
    assert_eq!(
        workshop.why(&policy).await,
        format!("there is no signature (tag {})", tag())
    );
    workshop.publish(&[]);
    assert_eq!(
        workshop.why(&policy).await,
        format!("there is no signature (tag {})", tag())
    );
    // Asked once each, where cosign puts it, and nothing else.
    assert_eq!(
        *workshop.registry.asked.lock().unwrap(),
        [
            format!("{REPOSITORY}:{}", tag()),
            format!("{REPOSITORY}:{}", tag())
        ]
    );
}

#[tokio::test]
async fn every_flaw_of_a_signature_has_its_sentence() {
    let mut workshop = Workshop::new();
    let ours = workshop.key("ours");
    workshop.key("theirs");
    let policy = signed_by(&[&ours]);
    let other = Digest::of(b"another image");
    let kind = "cosign container image signature";
    let signed = |workshop: &Workshop, payload: &[u8]| workshop.sign("ours", payload);

    let theirs = workshop.sign("theirs", &payload());
    let own = signed(&workshop, &payload());
    let mut bent = STANDARD.decode(&own).unwrap();
    *bent.last_mut().unwrap() ^= 1;
    let bent = STANDARD.encode(bent);
    let raw = STANDARD.encode([7; 64]);
    let cases: Vec<(Vec<u8>, Option<String>, String)> = vec![
        (payload(), Some(theirs), "it was not made with any of the keys".to_owned()),
        (payload(), Some(bent), "it was not made with any of the keys".to_owned()),
        (payload(), Some(raw), "it was not made with any of the keys".to_owned()),
        (
            payload(),
            Some(format!("{own}?")),
            format!("its signature is not base64: Invalid symbol 63, offset {}.", own.len()),
        ),
        (
            payload(),
            None,
            "it has no annotation dev.cosignproject.cosign/signature".to_owned(),
        ),
        (
            payload_of(kind, other.as_str(), REPOSITORY),
            None,
            format!("it is for {other}"),
        ),
        (
            payload_of("atomic container signature", digest().as_str(), REPOSITORY),
            None,
            "it is of type \"atomic container signature\", not \"cosign container image signature\""
                .to_owned(),
        ),
        (
            payload_of(kind, digest().as_str(), "registry.test:5000/team/web2"),
            None,
            format!("it is for an image of \"registry.test:5000/team/web2\", not of {REPOSITORY}"),
        ),
        (
            payload_of(kind, digest().as_str(), ""),
            None,
            format!("it is for an image of \"\", not of {REPOSITORY}"),
        ),
        (
            b"{}".to_vec(),
            None,
            "its payload is not understood: missing field `critical` at line 1 column 2".to_owned(),
        ),
        (
            String::from_utf8(payload())
                .unwrap()
                .replace("\"type\"", "\"kind\"")
                .into_bytes(),
            None,
            "its payload is not understood: unknown field `kind`".to_owned(),
        ),
    ];
    for (index, (payload, signature, why)) in cases.into_iter().enumerate() {
        // Those that say nothing of a signature are rightly signed, but the fifth.
        let signature = match signature {
            None if index == 4 => None,
            None => Some(signed(&workshop, &payload)),
            some => some,
        };
        workshop.publish(&[(&payload, signature.as_deref())]);
        let said = workshop.why(&policy).await;
        let said = said.strip_prefix("signature 1 of 1: ").unwrap();
        assert!(said.starts_with(&why), "{said}\nexpected {why}");
    }
}

#[tokio::test]
async fn all_flaws_are_told_in_order() {
    let mut workshop = Workshop::new();
    let ours = workshop.key("ours");
    let policy = signed_by(&[&ours, Path::new("/nowhere/key.pub")]);
    workshop.publish(&[(&payload(), None), (&payload(), Some("AAAA"))]);
    assert_eq!(
        workshop.why(&policy).await,
        "key /nowhere/key.pub cannot be read: No such file or directory (os error 2); \
         signature 1 of 2: it has no annotation dev.cosignproject.cosign/signature; \
         signature 2 of 2: it was not made with any of the keys"
    );
}

#[tokio::test]
async fn a_file_that_is_no_key_has_its_sentence() {
    let mut workshop = Workshop::new();
    workshop.key("ours");
    let right = workshop.sign("ours", &payload());
    workshop.publish(&[(&payload(), Some(&right))]);

    let write = |name: &str, bytes: &[u8]| {
        let path = workshop.path(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let pem = |arguments: &[&str]| {
        let private = openssl(arguments, b"");
        openssl(&["pkey", "-pubout"], &private)
    };
    let only = "; an ECDSA key on P-256 is allowed, not compressed";
    let rsa = write("rsa", &pem(&["genrsa", "2048"]));
    let ed25519 = write("ed25519", &pem(&["genpkey", "-algorithm", "ED25519"]));
    let p384 = workshop.key_on("p384", "secp384r1");
    let p521 = workshop.key_on("p521", "secp521r1");
    let k256 = workshop.key_on("k256", "secp256k1");
    let private = fs::read(workshop.path("ours.key")).unwrap();
    let compressed = write(
        "compressed",
        &openssl(&["ec", "-pubout", "-conv_form", "compressed"], &private),
    );
    let private = workshop.path("ours.key");
    let empty = write("empty", b"");
    let text = write("text", b"no key at all\n");
    let cut = write("cut", &fs::read(workshop.path("ours.pub")).unwrap()[..100]);
    let large = write("large", &[b'\n'; 70_000]);
    let pipe = workshop.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let directory = workshop.place.path().to_owned();
    let cases = [
        (&rsa, format!("is an RSA key{only}")),
        (&ed25519, format!("is an Ed25519 key{only}")),
        (&p384, format!("is an ECDSA key on P-384{only}")),
        (&p521, format!("is an ECDSA key on P-521{only}")),
        (&k256, format!("is a key of a kind that is not known{only}")),
        (
            &compressed,
            format!("is a damaged or compressed key on P-256{only}"),
        ),
        (
            &private,
            "has no block `BEGIN PUBLIC KEY`: no items found".to_owned(),
        ),
        (
            &empty,
            "has no block `BEGIN PUBLIC KEY`: no items found".to_owned(),
        ),
        (
            &text,
            "has no block `BEGIN PUBLIC KEY`: no items found".to_owned(),
        ),
        (&cut, "has no block `BEGIN PUBLIC KEY`: ".to_owned()),
        (
            &large,
            "cannot be read: it has 70000 bytes, at most 65536 are allowed".to_owned(),
        ),
        (&pipe, "cannot be read: it is not a plain file".to_owned()),
        (
            &directory,
            "cannot be read: it is not a plain file".to_owned(),
        ),
    ];
    for (path, why) in cases {
        let said = workshop.why(&signed_by(&[path])).await;
        let expected = format!("key {} {why}", path.display());
        assert!(said.starts_with(&expected), "{said}\nexpected {expected}");
        assert!(
            said.ends_with("; signature 1 of 1: it was not made with any of the keys"),
            "{said}"
        );
        // Beside one that can be used it does no harm.
        let both = signed_by(&[path, &workshop.path("ours.pub")]);
        assert!(workshop.check(&both).await.is_ok());
    }
}

#[tokio::test]
async fn copies_may_be_signed_as_what_they_were_copied_from() {
    let mut workshop = Workshop::new();
    let ours = workshop.key("ours");
    let elsewhere = payload_of(
        "cosign container image signature",
        digest().as_str(),
        "ghcr.io/team/web",
    );
    let signature = workshop.sign("ours", &elsewhere);
    workshop.publish(&[(&elsewhere, Some(&signature))]);
    let signed_as = |scope: &str| {
        let rule = RuleSettings {
            require_signature: vec![ours.clone()],
            signed_as: Some(scope.to_owned()),
            ..rule("registry.test:5000/team")
        };
        policy(None, vec![rule])
    };
    for scope in ["ghcr.io/team", "ghcr.io", "*"] {
        let allowed = workshop.check(&signed_as(scope)).await;
        assert!(allowed.is_ok(), "{scope}");
    }
    assert_eq!(
        workshop.why(&signed_as("ghcr.io/teams")).await,
        "signature 1 of 1: it is for an image of \"ghcr.io/team/web\", not of ghcr.io/teams"
    );
}

#[tokio::test]
async fn what_is_no_list_of_signatures_is_refused() {
    let mut workshop = Workshop::new();
    let ours = workshop.key("ours");
    let policy = signed_by(&[&ours]);
    let begin = format!("what is at tag {} is no list of signatures: ", tag());
    workshop.publish_bytes(b"<html>".to_vec());
    assert_eq!(
        workshop.why(&policy).await,
        format!("{begin}expected value at line 1 column 1")
    );
    let index = json!({"schemaVersion": 2, "manifests": [],
        "mediaType": "application/vnd.oci.image.index.v1+json"});
    workshop.publish_bytes(index.to_string().into_bytes());
    assert!(workshop.why(&policy).await.starts_with(&begin));

    let digest = Digest::of(&payload());
    let layer =
        |kind: &str, size: u64| json!({"mediaType": kind, "digest": digest.as_str(), "size": size});
    workshop.publish_layers(vec![
        layer("application/vnd.dsse.envelope.v1+json", 5),
        layer(PAYLOAD, 70_000),
    ]);
    assert_eq!(
        workshop.why(&policy).await,
        "signature 1 of 2: it is of media type \"application/vnd.dsse.envelope.v1+json\", \
         not a simple signing payload; \
         signature 2 of 2: its payload has 70000 bytes, at most 65536 are allowed"
    );
    workshop.publish_layers(vec![layer(PAYLOAD, 5); 129]);
    assert_eq!(
        workshop.why(&policy).await,
        "there are 129 signatures, at most 128 are looked at"
    );
    workshop.publish_layers(vec![layer(PAYLOAD, 5)]);
    let blobs = &mut workshop.registry.blobs;
    blobs.insert(digest.to_string(), b"something else".to_vec());
    assert_eq!(
        workshop.why(&policy).await,
        format!(
            "signature 1 of 1: its payload is damaged: it has digest {}, the manifest says {digest}",
            Digest::of(b"something else")
        )
    );
}

#[tokio::test]
async fn a_registry_that_is_away_is_a_refusal_that_can_be_tried_again() {
    let mut workshop = Workshop::new();
    let ours = workshop.key("ours");
    let policy = signed_by(&[&ours]);
    workshop.registry.is_away = true;
    let refusal = workshop.check(&policy).await.unwrap_err();
    assert_eq!(refusal.retry(), Retry::Later);
    assert_eq!(
        refusal.to_string(),
        format!(
            "the image policy refuses {REPOSITORY}:1: the rule for registry.test:5000/team wants {} \
             signed, and the signatures at tag {} could not be fetched",
            digest(),
            tag()
        )
    );
    workshop.registry.is_away = false;
    let signature = workshop.sign("ours", &payload());
    workshop.publish(&[(&payload(), Some(&signature))]);
    workshop.registry.blobs.clear();
    let refusal = workshop.check(&policy).await.unwrap_err();
    assert!(
        matches!(&refusal, Refusal::Unavailable { what, retry: Retry::Later, .. }
            if *what == format!("payload {}", Digest::of(&payload()))),
        "{refusal}"
    );
}

#[tokio::test]
async fn no_registry_is_asked_where_no_signature_is_wanted() {
    let workshop = Workshop::new();
    for policy in [
        policy(None, vec![]),
        policy(None, vec![rule("*")]),
        policy(None, vec![rule("quay.io")]),
    ] {
        drop(workshop.check(&policy).await);
    }
    assert!(workshop.registry.asked.lock().unwrap().is_empty());
}

fn any_rule() -> impl Strategy<Value = RuleSettings> {
    let scope = prop::sample::select(vec![
        "*",
        "registry.test:5000",
        "registry.test:5000/team",
        "registry.test:5000/team/web",
        "ghcr.io",
        "docker.io/library",
    ]);
    (scope, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(scope, is_deny, require_digest, is_signed)| RuleSettings {
            verdict: if is_deny {
                Verdict::Deny
            } else {
                Verdict::Allow
            },
            require_digest: require_digest && !is_deny,
            require_signature: if is_signed && !is_deny {
                vec![PathBuf::from("/etc/key.pub")]
            } else {
                vec![]
            },
            ..rule(scope)
        },
    )
}

proptest! {
    /// Said once more, in the simplest way: what is allowed has a rule that allows it, whose
    /// conditions are met, and no rule before it that fits.
    #[test]
    fn nothing_is_allowed_that_no_rule_allows(
        rules in proptest::collection::vec(any_rule(), 0..5),
        default in prop::sample::select(vec![None, Some(ByDefault::Allow), Some(ByDefault::Deny)]),
        repository in prop::sample::select(vec![
            "registry.test:5000/team/web", "registry.test:5000/web", "ghcr.io/a/b",
            "docker.io/library/x", "quay.io/x",
        ]),
        by_digest: bool,
        base64 in proptest::option::of("[A-Za-z0-9+/]{0,96}"),
        payload in prop_oneof![Just(payload()), any::<Vec<u8>>()],
    ) {
        let settings = PolicySettings { default, rules: rules.clone() };
        let Ok(policy) = Policy::new(&settings) else { return Ok(()) };
        let name = match by_digest {
            true => format!("{repository}@{}", digest()),
            false => format!("{repository}:1"),
        };
        // Made up, by nobody who has a key.
        let found = Found {
            keys: vec![Key::read(Path::new("/etc/key.pub"))],
            signatures: vec![Signature { payload: Ok(payload), base64 }],
        };
        let allowed = judge(&policy, &reference(&name), &digest(), &found).is_ok();
        let fits = |scope: &str| scope == "*" || repository == scope
            || repository.starts_with(&format!("{scope}/"));
        let expected = match rules.iter().find(|rule| fits(&rule.scope)) {
            None => default == Some(ByDefault::Allow) || (default.is_none() && rules.is_empty()),
            Some(rule) => rule.verdict == Verdict::Allow
                && (by_digest || !rule.require_digest)
                && rule.require_signature.is_empty(),
        };
        prop_assert_eq!(allowed, expected);
    }
}
