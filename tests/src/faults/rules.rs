//! What happens to which answer: decisions alone.

use std::net::SocketAddr;
use std::time::Duration;

/// Smaller blobs are configs.
const SMALLEST_LAYER: u64 = 16 << 10;

/// A place in the body of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Half of this answer.
    Middle,
    /// After so many bytes of this answer.
    Byte(u64),
}

impl At {
    /// How many bytes come before, of a body of `length`.
    pub(super) fn of(self, length: u64) -> u64 {
        match self {
            Self::Middle => length / 2,
            Self::Byte(byte) => byte.min(length),
        }
    }
}

/// What happens to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// One bit of the body is another.
    WrongByte(At),
    /// The connection closes before the body ends.
    CutOff(At),
    /// Nothing more comes, and the connection stays.
    Stall(At),
    /// Nothing more comes for this time; then the rest does.
    Pause(At, Duration),
    /// The body comes at so many bytes a second.
    Slow(u64),
    /// This status instead, with `Retry-After` where a time is given.
    Status(u16, Option<Duration>),
    /// 307 to the same path at another address.
    Redirect(SocketAddr),
    /// 200 with the whole blob, whatever range was asked for.
    RangeIgnored,
}

/// Which answers a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Everything,
    Layers,
    Manifests,
    Blob(String),
}

/// A fault and what it happens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    subject: Subject,
    fault: Fault,
    times: Option<u32>,
}

impl Rule {
    fn about(subject: Subject, fault: Fault) -> Self {
        Self {
            subject,
            fault,
            times: None,
        }
    }

    /// Every answer.
    pub fn everything(fault: Fault) -> Self {
        Self::about(Subject::Everything, fault)
    }

    /// Every answer with a layer.
    pub fn layers(fault: Fault) -> Self {
        Self::about(Subject::Layers, fault)
    }

    /// Every answer to a GET of a manifest.
    pub fn manifests(fault: Fault) -> Self {
        Self::about(Subject::Manifests, fault)
    }

    /// Every answer with this blob.
    pub fn blob(digest: &str, fault: Fault) -> Self {
        Self::about(Subject::Blob(digest.to_owned()), fault)
    }

    /// The next `times` of them only.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self {
            times: Some(times),
            ..self
        }
    }

    fn is_about(&self, asked: &Asked) -> bool {
        match &self.subject {
            Subject::Everything => true,
            Subject::Layers => asked.is_layer(),
            Subject::Manifests => asked.get && asked.target.contains("/manifests/"),
            Subject::Blob(digest) => asked.get && asked.blob().is_some_and(|blob| blob == digest),
        }
    }
}

/// A request and what is known of its answer before it is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// GET, not HEAD.
    pub get: bool,
    /// Path and query.
    pub target: String,
    /// Size of the whole blob, whatever part of it was asked for; 0 when the registry refuses.
    pub size: u64,
}

impl Asked {
    /// The digest of the blob.
    pub fn blob(&self) -> Option<&str> {
        let (_, digest) = self.target.split_once("/blobs/")?;
        digest.starts_with("sha256:").then_some(digest)
    }

    /// Whether it is a layer.
    pub fn is_layer(&self) -> bool {
        self.get && self.blob().is_some() && self.size >= SMALLEST_LAYER
    }
}

/// The fault of the first rule that is about `asked`; counts it.
pub(super) fn decide(rules: &mut [Rule], asked: &Asked) -> Option<Fault> {
    let rule = rules
        .iter_mut()
        .find(|rule| rule.times != Some(0) && rule.is_about(asked))?;
    rule.times = rule.times.map(|times| times - 1);
    Some(rule.fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(target: &str, size: u64) -> Asked {
        Asked {
            get: true,
            target: target.to_owned(),
            size,
        }
    }

    #[test]
    fn the_first_rule_that_still_counts_decides() {
        let (once, always) = (Fault::Status(429, None), Fault::CutOff(At::Middle));
        let mut rules = [Rule::layers(once).times(1), Rule::layers(always)];
        let layer = asked("/v2/web/blobs/sha256:ab", 1 << 20);
        assert_eq!(decide(&mut rules, &layer), Some(once));
        assert_eq!(decide(&mut rules, &layer), Some(always));
        assert_eq!(decide(&mut rules, &layer), Some(always));
        assert_eq!(decide(&mut [], &layer), None);
    }

    #[test]
    fn configs_manifests_and_heads_are_no_layers() {
        let mut rules = [Rule::layers(Fault::RangeIgnored)];
        let layer = asked("/v2/web/blobs/sha256:ab", 1 << 20);
        for other in [
            asked("/v2/web/blobs/sha256:ab", 300),
            asked("/v2/web/manifests/1", 1 << 20),
            Asked {
                get: false,
                ..layer
            },
        ] {
            assert_eq!(decide(&mut rules, &other), None, "{other:?}");
        }
    }
}
