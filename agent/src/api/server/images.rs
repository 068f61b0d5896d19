//! Requests about images, as they come.

use crate::api::v1::{
    EvictRequest, ExportRequest, Finding, ImageRequest, ImportRequest, Problem, StableRequest,
    VerifyRequest,
};

use super::request::{Fields, refusal, unknown};

const REFERENCE_RULE: &str = "the name of an image like registry.lan/web:1";

/// The body of a request that names an image.
pub(super) fn image_request(body: &[u8]) -> Result<ImageRequest, Problem> {
    let fields = Fields::of(body, r#"{"reference": "registry.lan/web:1"}"#)?;
    let mut request = ImageRequest::default();
    let mut findings = fields.each(|name, value| {
        match name {
            "reference" => request.reference = value.as_str().ok_or(REFERENCE_RULE)?.to_owned(),
            "pin" => request.pin = value.as_bool().ok_or("true or false")?,
            _ => return Err(unknown(name, "fields", &["reference", "pin"])),
        }
        Ok(())
    });
    if !fields.has("reference") {
        let rule = format!("required: {REFERENCE_RULE}");
        findings.push(Finding::missing("reference", rule));
    }
    done(request, findings)
}

/// The body of a verification.
pub(super) fn verify_request(body: &[u8]) -> Result<VerifyRequest, Problem> {
    let fields = Fields::of(body, r#"{}"#)?;
    let mut request = VerifyRequest::default();
    let findings = fields.each(|name, value| {
        match name {
            "reference" if value.is_null() => {}
            "reference" => {
                request.reference = Some(value.as_str().ok_or(REFERENCE_RULE)?.to_owned());
            }
            _ => return Err(unknown(name, "fields", &["reference"])),
        }
        Ok(())
    });
    done(request, findings)
}

/// The body of an eviction.
pub(super) fn evict_request(body: &[u8]) -> Result<EvictRequest, Problem> {
    let fields = Fields::of(body, r#"{"bytes": 1073741824, "dryRun": true}"#)?;
    let mut request = EvictRequest::default();
    let findings = fields.each(|name, value| {
        match name {
            "bytes" if value.is_null() => {}
            "bytes" => request.bytes = Some(value.as_u64().ok_or("a whole number of bytes")?),
            "dryRun" => request.dry_run = value.as_bool().ok_or("true or false")?,
            _ => return Err(unknown(name, "fields", &["bytes", "dryRun"])),
        }
        Ok(())
    });
    done(request, findings)
}

/// The body of a request that says what is stable.
pub(super) fn stable_request(body: &[u8]) -> Result<StableRequest, Problem> {
    let fields = Fields::of(body, r#"{"app": "web", "image": "registry.lan/web:1"}"#)?;
    let mut request = StableRequest::default();
    let mut findings = fields.each(|name, value| {
        match name {
            "app" => request.app = value.as_str().ok_or("the name of an app")?.to_owned(),
            "image" if value.is_null() => {}
            "image" => {
                let image = value.as_str().filter(|image| !image.is_empty());
                request.image = Some(image.ok_or(REFERENCE_RULE)?.to_owned());
            }
            _ => return Err(unknown(name, "fields", &["app", "image"])),
        }
        Ok(())
    });
    if !fields.has("app") {
        findings.push(Finding::missing(
            "app",
            "required: the name of an app".to_owned(),
        ));
    }
    done(request, findings)
}

const PATH_RULE: &str = "an absolute path on the host of the agent";

fn path(value: &serde_json::Value) -> Result<String, &'static str> {
    let path = value.as_str().ok_or(PATH_RULE)?;
    let is_path = path.starts_with('/') && !path.contains('\0');
    is_path.then(|| path.to_owned()).ok_or(PATH_RULE)
}

/// The body of an import.
pub(super) fn import_request(body: &[u8]) -> Result<ImportRequest, Problem> {
    let fields = Fields::of(body, r#"{"path": "/srv/web.tar", "pin": true}"#)?;
    let mut request = ImportRequest::default();
    let mut findings = fields.each(|name, value| {
        match name {
            "path" => request.path = path(value)?,
            "reference" if value.is_null() => {}
            "reference" => {
                request.reference = Some(value.as_str().ok_or(REFERENCE_RULE)?.to_owned());
            }
            "pin" => request.pin = value.as_bool().ok_or("true or false")?,
            _ => return Err(unknown(name, "fields", &["path", "reference", "pin"])),
        }
        Ok(())
    });
    if !fields.has("path") {
        findings.push(Finding::missing("path", format!("required: {PATH_RULE}")));
    }
    done(request, findings)
}

/// The body of an export.
pub(super) fn export_request(body: &[u8]) -> Result<ExportRequest, Problem> {
    let example = r#"{"references": ["registry.lan/web:1"], "path": "/srv/web.tar"}"#;
    let fields = Fields::of(body, example)?;
    let mut request = ExportRequest::default();
    let rule = "at least one name of an image like registry.lan/web:1";
    let mut findings = fields.each(|name, value| {
        match name {
            "references" => {
                let names = value.as_array().filter(|names| !names.is_empty());
                let names = names.ok_or(rule)?.iter();
                let names: Option<Vec<_>> =
                    names.map(|name| Some(name.as_str()?.to_owned())).collect();
                request.references = names.ok_or(rule)?;
            }
            "path" => request.path = path(value)?,
            "overwrite" => request.overwrite = value.as_bool().ok_or("true or false")?,
            _ => {
                return Err(unknown(
                    name,
                    "fields",
                    &["references", "path", "overwrite"],
                ));
            }
        }
        Ok(())
    });
    for (name, rule) in [("references", rule), ("path", PATH_RULE)] {
        if !fields.has(name) {
            findings.push(Finding::missing(name, format!("required: {rule}")));
        }
    }
    done(request, findings)
}

fn done<T>(request: T, findings: Vec<Finding>) -> Result<T, Problem> {
    match findings.is_empty() {
        true => Ok(request),
        false => Err(refusal(findings)),
    }
}
