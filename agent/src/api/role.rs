//! Roles: what a caller of the API may do, and who has which.
//!
//! ```text
//! view     reads
//! operate  and activates, deactivates, scales, rolls, restarts
//! admin    and applies and deletes apps
//! ```
//! A role includes those before it. Root and the agent's own user are always `admin`; everybody
//! else has the role that `[api]` of the configuration gives to the user or to one of the groups of
//! the process that connected. Deliberately without passwords, tokens and roles for single apps.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config;

/// What a caller may do. Ordered: a greater role may everything that a lesser one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Read.
    View,
    /// Move targets: activate, deactivate, scale; roll, restart.
    Operate,
    /// Everything: apps too.
    Admin,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: [Self; 3] = [Self::View, Self::Operate, Self::Admin];

    /// As spelt in documents and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The process at the other end of a unix socket when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id (`SO_PEERCRED`, unix(7)).
    pub uid: u32,
    /// Effective group id and the supplementary groups (`SO_PEERCRED`, `SO_PEERGROUPS`).
    pub groups: Vec<u32>,
}

/// Who has which role on the unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roles {
    view: Members,
    operate: Members,
    admin: Members,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Members {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

impl Roles {
    /// Resolves the names of the configuration in `/etc/passwd` and `/etc/group`, now and once. A
    /// name that is not there gives nobody a role and is logged; users and groups of other sources
    /// (LDAP) are configured by number.
    pub fn resolve(api: &config::Api) -> Self {
        let users = Names::read(Path::new("/etc/passwd"));
        let groups = Names::read(Path::new("/etc/group"));
        Self::with_names(api, &users, &groups)
    }

    fn with_names(api: &config::Api, users: &Names, groups: &Names) -> Self {
        let members = |role: Role, given: &config::Members| Members {
            users: users.ids(role, "user", &given.users),
            groups: groups.ids(role, "group", &given.groups),
        };
        Self {
            view: members(Role::View, &api.view),
            operate: members(Role::Operate, &api.operate),
            admin: members(Role::Admin, &api.admin),
        }
    }

    /// The greatest role of the peer; none when nobody gave it one.
    pub fn of(&self, peer: &Peer) -> Option<Role> {
        let own = rustix::process::geteuid().as_raw();
        if peer.uid == 0 || peer.uid == own || self.admin.has(peer) {
            Some(Role::Admin)
        } else if self.operate.has(peer) {
            Some(Role::Operate)
        } else {
            self.view.has(peer).then_some(Role::View)
        }
    }
}

impl Members {
    fn has(&self, peer: &Peer) -> bool {
        self.users.contains(&peer.uid) || peer.groups.iter().any(|gid| self.groups.contains(gid))
    }
}

/// Names and numbers of a file like passwd(5) or group(5): both have the number third.
struct Names(Vec<(String, u32)>);

impl Names {
    fn read(file: &Path) -> Self {
        match fs::read_to_string(file) {
            Ok(text) => Self::parse(&text),
            Err(error) => {
                tracing::warn!(%error, file = %file.display(), "names of users and groups cannot be read");
                Self(Vec::new())
            }
        }
    }

    fn parse(text: &str) -> Self {
        let entry = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let id = fields.nth(1)?.parse().ok()?;
            Some((name, id))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    fn id(&self, name: &str) -> Option<u32> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, id)| *id)
    }

    fn ids(&self, role: Role, what: &str, accounts: &[config::Account]) -> BTreeSet<u32> {
        let id = |account: &config::Account| match account {
            config::Account::Id(id) => Some(*id),
            config::Account::Name(name) => {
                let found = self.id(name);
                if found.is_none() {
                    tracing::warn!(
                        role = role.as_str(),
                        what,
                        name,
                        "a name that has a role is not on this host: nobody gets it"
                    );
                }
                found
            }
        };
        accounts.iter().filter_map(id).collect()
    }
}

/// Number of a group of this host.
pub(super) fn group_id(group: &config::Account) -> Option<u32> {
    match group {
        config::Account::Id(id) => Some(*id),
        config::Account::Name(name) => Names::read(Path::new("/etc/group")).id(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles() -> Roles {
        let group = |name: &str| config::Members {
            users: Vec::new(),
            groups: vec![config::Account::Name(name.to_owned())],
        };
        let api = config::Api {
            view: group("watchers"),
            operate: config::Members {
                users: vec![config::Account::Id(1500)],
                ..group("missing")
            },
            admin: group("owners"),
            ..config::Api::default()
        };
        let groups = Names::parse("root:x:0:\nwatchers:x:900:anna\nbroken\nowners:x:901:\n");
        Roles::with_names(&api, &Names(Vec::new()), &groups)
    }

    fn role(uid: u32, groups: &[u32]) -> Option<Role> {
        let groups = groups.to_vec();
        roles().of(&Peer { uid, groups })
    }

    #[test]
    fn a_caller_has_the_greatest_role_of_its_user_and_groups() {
        assert_eq!(role(0, &[]), Some(Role::Admin));
        assert_eq!(role(1000, &[1000]), None);
        assert_eq!(role(1000, &[1000, 900]), Some(Role::View));
        assert_eq!(role(1000, &[900, 901]), Some(Role::Admin));
        assert_eq!(role(1500, &[900]), Some(Role::Operate));
    }

    #[test]
    fn the_group_root_is_not_the_user_root() {
        assert_eq!(role(1000, &[0]), None);
    }

    #[test]
    fn a_greater_role_may_what_a_lesser_may() {
        assert!(Role::View < Role::Operate && Role::Operate < Role::Admin);
        assert!(None < Some(Role::View));
    }
}
