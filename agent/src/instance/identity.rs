//! Names of apps, instances and containers, and how they are spelt.
//!
//! `web` is an app, `web-1` an instance of it on this host, `web-1.g7` the container that
//! generation 7 of that instance was created as. The container id never changes while the
//! container lives, although the instance's generation goes on counting.

use std::fmt;
use std::str::FromStr;

/// Why a name was refused; the sentence says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}: {allowed}")]
pub struct InvalidName {
    /// What was meant: `app name`, `instance name`, `container id`.
    pub what: &'static str,
    /// The value as given.
    pub value: String,
    /// What would have been accepted.
    pub allowed: &'static str,
}

const APP_RULE: &str = "1 to 48 characters a-z, 0-9 and '-', beginning with a letter and ending with a letter or digit (RFC 1123 label)";

/// Name of an app: an RFC 1123 label of at most 48 characters that begins with a letter, so that
/// `<app>-<ordinal>` fits a hostname.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppName(String);

impl AppName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AppName {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let bytes = value.as_bytes();
        let allowed = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let ok = (1..=48).contains(&bytes.len())
            && bytes[0].is_ascii_lowercase()
            && bytes[bytes.len() - 1] != b'-'
            && bytes.iter().all(allowed);
        if ok {
            Ok(Self(value.to_owned()))
        } else {
            Err(InvalidName {
                what: "app name",
                value: value.to_owned(),
                allowed: APP_RULE,
            })
        }
    }
}

/// One instance of an app on this host: `<app>-<ordinal>`. Address, rootfs and volumes belong to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName {
    /// The app.
    pub app: AppName,
    /// Position in the app's pool on this host, from 0.
    pub ordinal: u32,
}

impl InstanceName {
    /// The instance `<app>-<ordinal>`.
    pub fn new(app: AppName, ordinal: u32) -> Self {
        Self { app, ordinal }
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.app, self.ordinal)
    }
}

impl FromStr for InstanceName {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let refuse = || InvalidName {
            what: "instance name",
            value: value.to_owned(),
            allowed: "<app>-<ordinal>, for example web-1",
        };
        let (app, ordinal) = value.rsplit_once('-').ok_or_else(refuse)?;
        Ok(Self {
            app: app.parse().map_err(|_| refuse())?,
            ordinal: canonical_number(ordinal).ok_or_else(refuse)?,
        })
    }
}

/// Id of a container in containerd and last part of its cgroup path: `<instance>.g<generation>`,
/// with the generation of its **create**.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId {
    /// The instance that the container is.
    pub instance: InstanceName,
    /// The instance's generation when the container was created.
    pub create_generation: u64,
}

impl ContainerId {
    /// The container of `instance` that `create_generation` made.
    pub fn new(instance: InstanceName, create_generation: u64) -> Self {
        Self {
            instance,
            create_generation,
        }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.g{}", self.instance, self.create_generation)
    }
}

impl FromStr for ContainerId {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let refuse = || InvalidName {
            what: "container id",
            value: value.to_owned(),
            allowed: "<app>-<ordinal>.g<generation>, for example web-1.g7",
        };
        let (instance, generation) = value.rsplit_once(".g").ok_or_else(refuse)?;
        Ok(Self {
            instance: instance.parse().map_err(|_| refuse())?,
            create_generation: canonical_number(generation).ok_or_else(refuse)?,
        })
    }
}

/// A number as we print it: no sign, no leading zero. Two spellings of one name would be two names.
fn canonical_number<N: FromStr + ToString>(text: &str) -> Option<N> {
    let number: N = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_being_printed_and_read() {
        let id: ContainerId = "my-web-12.g7".parse().unwrap();
        assert_eq!(id.instance.app.as_str(), "my-web");
        assert_eq!((id.instance.ordinal, id.create_generation), (12, 7));
        assert_eq!(id.to_string(), "my-web-12.g7");
    }

    #[test]
    fn a_name_that_could_be_spelt_twice_is_refused() {
        for bad in ["web-01", "web-+1", "web", "web-", "-1", "web--1x"] {
            let refused = bad.parse::<InstanceName>().unwrap_err();
            assert_eq!(refused.what, "instance name", "{bad}");
        }
        assert!(
            "web-1.g07"
                .parse::<ContainerId>()
                .is_err_and(|e| e.what == "container id")
        );
    }

    #[test]
    fn an_app_name_is_a_dns_label_with_room_for_the_ordinal() {
        for bad in ["", "Web", "1web", "web-", "we_b", &"w".repeat(49)] {
            assert_eq!(
                bad.parse::<AppName>().unwrap_err().allowed,
                APP_RULE,
                "{bad}"
            );
        }
    }
}
