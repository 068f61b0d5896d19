//! Records on their way from PID 1 to the file.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{RECORD_SIZE, RECORDS};

const WORDS: usize = RECORD_SIZE / size_of::<u64>();
/// There is a bit for every slot.
const _: () = assert!(RECORDS == u64::BITS as usize);

/// The ring in memory: one thread puts records into it, another one takes them to the disk, and
/// neither ever waits. As in the file, what is not taken in time is overwritten by what is newer.
#[derive(Debug)]
pub struct Pending {
    slots: [[AtomicU64; WORDS]; RECORDS],
    /// Bit n: slot n is to be taken.
    marked: AtomicU64,
}

impl Default for Pending {
    fn default() -> Self {
        Self::new()
    }
}

impl Pending {
    /// Nothing is to be taken.
    pub const fn new() -> Self {
        Self {
            slots: [const { [const { AtomicU64::new(0) }; WORDS] }; RECORDS],
            marked: AtomicU64::new(0),
        }
    }

    /// Leaves a record for the place in the file that [`super::Cursor::advance`] gave.
    pub fn put(&self, offset: u64, record: &[u8; RECORD_SIZE]) {
        let slot = offset as usize / RECORD_SIZE;
        let (words, _) = record.as_chunks();
        for (room, word) in self.slots.get(slot).into_iter().flatten().zip(words) {
            room.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
        self.marked
            .fetch_or(1 << (slot % RECORDS), Ordering::Release);
    }

    /// What was put since the last time, with its place in the file. A record that is overwritten
    /// meanwhile is torn, as its checksum tells, and comes again.
    pub fn take(&self) -> impl Iterator<Item = (u64, [u8; RECORD_SIZE])> + '_ {
        let marked = self.marked.swap(0, Ordering::Acquire);
        let slots = self.slots.iter().enumerate();
        slots
            .filter(move |(slot, _)| marked & (1 << slot) != 0)
            .map(|(slot, words)| {
                let mut record = [0; RECORD_SIZE];
                let (room, _) = record.as_chunks_mut();
                for (room, word) in room.iter_mut().zip(words) {
                    *room = word.load(Ordering::Relaxed).to_ne_bytes();
                }
                ((slot * RECORD_SIZE) as u64, record)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exits::{Cursor, FILE_SIZE};
    use proptest::prelude::*;
    use std::vec;

    fn record(number: u8) -> [u8; RECORD_SIZE] {
        core::array::from_fn(|at| number.wrapping_add(at as u8))
    }

    proptest! {
        #[test]
        fn what_is_taken_now_and_then_makes_the_same_file_as_what_is_written_at_once(
            takes in prop::collection::vec(any::<bool>(), 0..200),
        ) {
            let (pending, mut cursor) = (Pending::new(), Cursor::after(&[]));
            let (mut at_once, mut taken) = (vec![0; FILE_SIZE], vec![0; FILE_SIZE]);
            for (number, takes) in takes.into_iter().chain([true]).enumerate() {
                let (offset, record) = (cursor.advance(), record(number as u8));
                at_once[offset as usize..][..RECORD_SIZE].copy_from_slice(&record);
                pending.put(offset, &record);
                if takes {
                    for (offset, record) in pending.take() {
                        taken[offset as usize..][..RECORD_SIZE].copy_from_slice(&record);
                    }
                    prop_assert_eq!(pending.take().count(), 0);
                }
            }
            prop_assert_eq!(at_once, taken);
        }
    }

    #[test]
    fn the_last_of_each_slot_arrives_whole_however_the_two_threads_meet() {
        let pending = Pending::new();
        let (mut file, rounds) = (vec![0; FILE_SIZE], 20_000);
        std::thread::scope(|threads| {
            let writing = threads.spawn(|| {
                let mut cursor = Cursor::after(&[]);
                for round in 0..rounds {
                    pending.put(cursor.advance(), &record((round / RECORDS) as u8));
                }
            });
            let mut take = || {
                for (offset, record) in pending.take() {
                    file[offset as usize..][..RECORD_SIZE].copy_from_slice(&record);
                }
            };
            while !writing.is_finished() {
                take();
            }
            take();
        });
        let full = rounds / RECORDS;
        for (slot, kept) in file.chunks(RECORD_SIZE).enumerate() {
            let last = full - usize::from(slot >= rounds % RECORDS);
            assert_eq!(kept, record(last as u8), "slot {slot}");
        }
    }
}
