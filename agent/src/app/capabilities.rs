//! Sets of Linux capabilities (capabilities(7)), by the names that Kubernetes uses: without `CAP_`.

use std::fmt;

/// By number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// What every container has unless it says otherwise: the set of Docker and containerd.
    pub const STANDARD: Self = Self::of_numbers(&[0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31]);
    /// What container-init needs: KILL, SETGID, SETUID, SETPCAP, DAC_OVERRIDE, FOWNER.
    pub const INIT: Self = Self::of_numbers(&[1, 3, 5, 6, 7, 8]);
    /// Every one that has a name here.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);
    /// The empty set.
    pub const NONE: Self = Self(0);

    const fn of_numbers(numbers: &[u8]) -> Self {
        let (mut mask, mut index) = (0, 0);
        while index < numbers.len() {
            mask |= 1 << numbers[index];
            index += 1;
        }
        Self(mask)
    }

    /// The capability of this name; `None` when there is none.
    pub fn named(name: &str) -> Option<Self> {
        let number = NAMES.iter().position(|known| *known == name)?;
        Some(Self(1 << number))
    }

    /// Those of a mask in which bit n is capability n; bits without a name are left out.
    pub fn of_mask(mask: u64) -> Self {
        Self(mask & Self::ALL.0)
    }

    /// Bit n is capability n.
    pub fn mask(self) -> u64 {
        self.0
    }

    /// What is in either.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in this one only.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in this one.
    pub fn contains(self, other: Self) -> bool {
        other.without(self) == Self::NONE
    }

    /// Whether the capability of this name is in it.
    pub fn has(self, name: &str) -> bool {
        Self::named(name).is_some_and(|one| self.contains(one))
    }

    /// Names, by number.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let named = NAMES.iter().enumerate();
        named.filter_map(move |(number, name)| (self.0 >> number & 1 == 1).then_some(*name))
    }
}

impl fmt::Display for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_are_those_that_their_descriptions_name() {
        assert_eq!(
            CapabilitySet::STANDARD.to_string(),
            "CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, \
             NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP"
        );
        assert_eq!(
            CapabilitySet::INIT.to_string(),
            "DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, SETPCAP"
        );
        assert!(CapabilitySet::ALL.has("CHECKPOINT_RESTORE"));
        assert_eq!(CapabilitySet::named("CAP_CHOWN"), None);
    }
}
