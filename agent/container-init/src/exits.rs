//! The exit ring: how every process of the plan ended, durably, in a file of fixed size.
//!
//! [`RECORDS`] records of [`RECORD_SIZE`] bytes, each complete in itself with a checksum; the
//! writer overwrites the oldest, a reader skips what is torn or foreign. The file lies in a place
//! that the container can write: what it says is evidence, never authority, and the agent fences
//! it by create generation, sequence number and pid.

mod pending;

pub use pending::Pending;

use crate::protocol::ExitStatus;
use crate::wire::{Malformed, Reader, Writer, crc32};

/// Bytes of one record.
pub const RECORD_SIZE: usize = 64;
/// Records in the ring.
pub const RECORDS: usize = 64;
/// Bytes of the whole file, preallocated.
pub const FILE_SIZE: usize = RECORD_SIZE * RECORDS;
/// Longest name that a record keeps; a longer one is cut at a character's border.
pub const NAME_SIZE: usize = 24;

const MAGIC: u32 = u32::from_le_bytes(*b"nax1");

/// How one process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitRecord {
    /// Number of the event that reported this exit ([`crate::protocol::Event::seq`]).
    pub seq: u64,
    /// Generation that created the container.
    pub create_generation: u64,
    /// Generation that init worked for when the process ended.
    pub generation: u64,
    /// Pid inside the container.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
    /// As in [`crate::protocol::EventKind::Exited`].
    pub oom: bool,
    /// Name of the process from the plan.
    pub name: ShortName,
}

/// A process name as a record keeps it: at most [`NAME_SIZE`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortName {
    bytes: [u8; NAME_SIZE],
    length: u8,
}

impl ShortName {
    /// `name`, cut where it is too long.
    pub fn cut(name: &str) -> Self {
        let mut end = name.len().min(NAME_SIZE);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; NAME_SIZE];
        for (to, from) in bytes.iter_mut().zip(name.as_bytes().iter().take(end)) {
            *to = *from;
        }
        // `end` is at most NAME_SIZE.
        Self {
            bytes,
            length: end as u8,
        }
    }

    /// The kept text.
    pub fn as_str(&self) -> &str {
        let bytes = self
            .bytes
            .get(..usize::from(self.length))
            .unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl ExitRecord {
    /// The record's bytes in the file.
    pub fn encode(&self) -> [u8; RECORD_SIZE] {
        let mut bytes = [0; RECORD_SIZE];
        let (kind, value) = match self.status {
            ExitStatus::Code(code) => (0, code),
            ExitStatus::Signal(signal) => (1, signal),
        };
        let mut w = Writer::new(&mut bytes);
        w.u32(MAGIC);
        w.u64(self.seq);
        w.u64(self.create_generation);
        w.u64(self.generation);
        w.u32(self.pid);
        w.u8(kind | (u8::from(self.oom) << 1));
        w.u8(value);
        w.u8(self.name.length);
        w.bytes(&self.name.bytes);
        // 59 bytes; one of padding puts the checksum at the end.
        w.u8(0);
        let covered = w.finish().unwrap_or(0);
        let crc = crc32(bytes.get(..covered).unwrap_or_default());
        if let Some(room) = bytes.last_chunk_mut() {
            *room = crc.to_le_bytes();
        }
        bytes
    }

    /// Reads a record; an empty, torn or foreign one is named and meant to be skipped.
    pub fn decode(bytes: &[u8; RECORD_SIZE]) -> Result<Self, Malformed> {
        let (covered, crc) = bytes.split_at(RECORD_SIZE - 4);
        if crc != crc32(covered).to_le_bytes() {
            return Err(Malformed::Invalid("record checksum"));
        }
        let mut r = Reader::new(covered);
        if r.u32("record magic") != MAGIC {
            return Err(Malformed::Invalid("record magic"));
        }
        let (seq, create_generation) = (r.u64("seq"), r.u64("create generation"));
        let (generation, pid) = (r.u64("generation"), r.u32("pid"));
        let (flags, value, name_length) = (r.u8("status"), r.u8("status"), r.u8("name length"));
        let status = match flags & 1 {
            0 => ExitStatus::Code(value),
            _ => ExitStatus::Signal(value),
        };
        let kept = r.bytes(NAME_SIZE, "name");
        let used = kept
            .get(..usize::from(name_length))
            .ok_or(Malformed::Invalid("name length"))?;
        let name = core::str::from_utf8(used).map_err(|_| Malformed::Invalid("name"))?;
        Ok(Self {
            seq,
            create_generation,
            generation,
            pid,
            status,
            oom: flags & 2 != 0,
            name: ShortName::cut(name),
        })
    }
}

/// The readable records of a ring file, in the file's order (not by `seq`).
pub fn records(file: &[u8]) -> impl Iterator<Item = ExitRecord> + '_ {
    let (chunks, _) = file.as_chunks::<RECORD_SIZE>();
    chunks
        .iter()
        .take(RECORDS)
        .filter_map(|bytes| ExitRecord::decode(bytes).ok())
}

/// Where the next record of a ring goes: behind the one with the greatest `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    slot: usize,
}

impl Cursor {
    /// The place after the newest readable record of `file`.
    pub fn after(file: &[u8]) -> Self {
        let (chunks, _) = file.as_chunks::<RECORD_SIZE>();
        let mut newest = None;
        for (slot, bytes) in chunks.iter().take(RECORDS).enumerate() {
            if let Ok(record) = ExitRecord::decode(bytes) {
                let order = (record.create_generation, record.seq);
                if newest.is_none_or(|(best, _)| order >= best) {
                    newest = Some((order, slot));
                }
            }
        }
        Self {
            slot: newest.map_or(0, |(_, slot)| (slot + 1) % RECORDS),
        }
    }

    /// Offset in the file of the next record; moves on.
    pub fn advance(&mut self) -> u64 {
        let offset = self.slot * RECORD_SIZE;
        self.slot = (self.slot + 1) % RECORDS;
        offset as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn record(seq: u64) -> ExitRecord {
        let status = ExitStatus::Signal(9);
        ExitRecord {
            seq,
            create_generation: 1,
            generation: 1,
            pid: 5,
            status,
            oom: false,
            name: ShortName::cut("app"),
        }
    }

    proptest! {
        #[test]
        fn a_record_survives_the_file(
            name in "[a-zä-]{0,30}", seq: u64, create_generation: u64, generation: u64, pid: u32, value: u8, oom: bool, signal: bool,
        ) {
            let status = if signal { ExitStatus::Signal(value) } else { ExitStatus::Code(value) };
            let short = ShortName::cut(&name);
            let record = ExitRecord { seq, create_generation, generation, pid, status, oom, name: short };
            let kept = short.as_str();
            prop_assert!(name.starts_with(kept) && (kept == name || kept.len() > NAME_SIZE - 4));
            prop_assert_eq!(ExitRecord::decode(&record.encode()), Ok(record));
        }

        #[test]
        fn a_torn_record_is_skipped(at in 0..RECORD_SIZE, flip in 1u8..) {
            let mut file = record(3).encode().to_vec();
            file[at] ^= flip;
            prop_assert_eq!(records(&file).count(), 0);
        }
    }

    #[test]
    fn the_ring_keeps_the_newest_and_overwrites_the_oldest() {
        let mut file = vec![0u8; FILE_SIZE];
        let mut cursor = Cursor::after(&file);
        for seq in 1..=(RECORDS as u64 + 6) {
            let at = cursor.advance() as usize;
            file[at..at + RECORD_SIZE].copy_from_slice(&record(seq).encode());
            assert_eq!(Cursor::after(&file), cursor, "after seq {seq}");
        }
        let mut kept: Vec<u64> = records(&file).map(|record| record.seq).collect();
        kept.sort_unstable();
        assert_eq!(kept, (7..=70).collect::<Vec<u64>>());
    }
}
