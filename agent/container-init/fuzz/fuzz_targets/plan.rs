//! Any bytes as a plan: with the checksum that makes them pass, so that the body is read.
#![no_main]

use container_init::plan::{MAX_PLAN, Plan};
use container_init::supervisor::{Input, Supervisor, room};
use libfuzzer_sys::fuzz_target;

/// IEEE 802.3, reflected; what the format seals its body with.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

fuzz_target!(|body: &[u8]| {
    let _ = Plan::decode(body);
    let mut file = b"\x7fnaplan\n\x03\0\0\0".to_vec();
    file.extend_from_slice(&(body.len() as u32 + 4).to_le_bytes());
    file.extend_from_slice(&crc32(body).to_le_bytes());
    file.extend_from_slice(body);
    let Ok(plan) = Plan::decode(&file) else {
        return;
    };
    // What is read is written the same.
    let mut written = vec![0; MAX_PLAN];
    if let Ok(length) = plan.encode(&mut written) {
        assert_eq!(Plan::decode(&written[..length]).as_ref(), Ok(&plan));
    }
    let mut supervisor = Supervisor::new(plan);
    let mut now = 1;
    for input in [Input::Begin, Input::Childless, Input::Tick] {
        for _ in supervisor.step(input, now, &mut room()).iter() {}
        now = supervisor.due().unwrap_or(now);
    }
});
