//! Any bytes as an archive, with and without the checksums that make blocks pass as headers.
#![no_main]

use imagecache::archive::{Bounds, Reader};
use libfuzzer_sys::fuzz_target;

/// What the header would be with its checksum (ustar: the sum of all bytes, its own as blanks).
fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn read(archive: &[u8]) {
    let bounds = Bounds {
        extension: 64 * 1024,
        extents: 1024,
    };
    let mut reader = Reader::new(archive, bounds);
    let mut piece = [0; 700];
    while let Ok(Some(_)) = reader.next_entry() {
        while let Ok(1..) = reader.read_data(&mut piece) {}
    }
}

fuzz_target!(|archive: &[u8]| {
    read(archive);
    let mut sealed = archive.to_vec();
    sealed.chunks_exact_mut(512).for_each(seal);
    read(&sealed);
});
