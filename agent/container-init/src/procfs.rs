//! What /proc says, read without trust: files of a process (proc(5)) as bytes.

use crate::decimal;

/// A process as `/proc/PID/stat` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// `Z` for one that has ended and was not waited for.
    pub state: u8,
    /// Its parent; 0 for one from outside the pid namespace.
    pub parent: u32,
    /// Its session: the pid of the process that made it.
    pub session: u32,
}

impl Stat {
    /// Reads the line. The name, which the process chooses, ends at the last parenthesis.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let end = line.iter().rposition(|byte| *byte == b')')?;
        let mut fields = line.get(end + 1..)?.split(|byte| *byte == b' ').skip(1);
        Some(Self {
            state: *fields.next()?.first()?,
            parent: decimal::parse(fields.next()?)?,
            session: decimal::parse(fields.nth(1)?)?,
        })
    }

    /// Whether it has ended: it runs no code and holds nothing open.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// The port that a line of `/proc/net/tcp` or `/proc/net/tcp6` says somebody listens on.
pub fn listening_port(line: &[u8]) -> Option<u16> {
    const LISTEN: &[u8] = b"0A";
    let mut words = line
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty());
    let local = words.nth(1)?;
    if words.nth(1)? != LISTEN {
        return None;
    }
    let at = local.iter().rposition(|byte| *byte == b':')?;
    let digits = core::str::from_utf8(local.get(at + 1..)?).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

/// The id, and the owner's uid from the column `owner`, in a line of a file in `/proc/sysvipc`;
/// `None` for the head line.
pub fn ipc_object(line: &[u8], owner: usize) -> Option<(u32, u32)> {
    let mut words = line
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty());
    let id = decimal::parse(words.nth(1)?)?;
    Some((id, decimal::parse(words.nth(owner.checked_sub(2)?)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_with_parentheses_deceives_nobody() {
        let line = b"7 (x) R 1 1 1) S 3 4 5 0 -1 4194560 1";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.session), (b'S', 3, 5));
        assert!(!stat.has_ended());
        assert!(Stat::parse(b"7 (x) Z 1 7 7 0").unwrap().has_ended());
        assert_eq!(Stat::parse(b"7 (x"), None);
        assert_eq!(Stat::parse(b"7 (x) S -1 4 5"), None);
    }

    #[test]
    fn only_who_listens_counts() {
        let listens = b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000";
        assert_eq!(listening_port(listens), Some(8080));
        let v6 = b"   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(listening_port(v6), Some(80));
        let connected = b"   2: 0100007F:1F90 0100007F:E0B2 01 00000000:00000000";
        assert_eq!(listening_port(connected), None);
        assert_eq!(
            listening_port(b"  sl  local_address rem_address   st"),
            None
        );
    }

    #[test]
    fn the_head_of_a_list_of_ipc_objects_has_no_id() {
        let head = b"       key      semid perms      nsems   uid   gid  cuid  cgid";
        assert_eq!(ipc_object(head, 4), None);
        let line = b"         0      32769   600          1  1000  1001  1000  1001";
        assert_eq!(ipc_object(line, 4), Some((32769, 1000)));
        assert_eq!(ipc_object(line, 40), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            Stat::parse(&bytes);
            listening_port(&bytes);
            ipc_object(&bytes, 7);
        }
    }
}
