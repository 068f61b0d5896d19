//! etcd discovery on real etcd 3.6.6. `make test-peers` builds it and runs these.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use nodeagent_tests::{Etcd, Ground};

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn the_harness_has_an_etcd_of_three_that_survives_its_leader() {
    let ground = Ground::new().unwrap();
    let mut etcd = Etcd::cluster(&ground).unwrap();
    etcd.put("/nodeagent/a", "\"1\"").unwrap();
    let leader = etcd.leader().unwrap();
    etcd.kill(leader).unwrap();
    etcd.wait_until_serving().unwrap();
    assert_ne!(etcd.leader().unwrap(), leader);
    let keys = etcd.keys("/nodeagent/").unwrap();
    assert_eq!((keys.len(), keys[0].value.as_str()), (1, Some("1")));
    etcd.start_again(&ground).unwrap();
    etcd.compact().unwrap();
    etcd.delete("/nodeagent/a").unwrap();
    assert_eq!(etcd.keys("/nodeagent/").unwrap(), []);
}
