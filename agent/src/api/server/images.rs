//! Requests about images, as they come.

use crate::api::v1::{EvictRequest, Finding, ImageRequest, Problem, VerifyRequest};

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

fn done<T>(request: T, findings: Vec<Finding>) -> Result<T, Problem> {
    match findings.is_empty() {
        true => Ok(request),
        false => Err(refusal(findings)),
    }
}
