//! etcd discovery on real etcd 3.6.6. `make test-peers` builds it and runs these.

#![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

use nodeagent_tests::{Etcd, Ground, TestHost};

/// Both backends, with a lease as short as tests can wait for.
const CONFIG: &str = r#"
[discovery.file]
propagation_bound = "100ms"
[discovery.etcd]
enabled = true
endpoints = ["http://127.0.0.1:2379"]
ttl = "6s"
dial_timeout = "500ms"
request_timeout = "1s"
propagation_bound = "100ms"
"#;

/// A host with etcd, ready.
fn start() -> (TestHost, Etcd) {
    let mut host = TestHost::without_agent(CONFIG).unwrap();
    let etcd = Etcd::start(&host.ground).unwrap();
    host.agent.start(&host.ground).unwrap();
    (host, etcd)
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_activated_instance_is_a_key_and_a_deactivated_one_is_none() {
    let (host, etcd) = start();
    host.warm_web(2).unwrap();
    let task = host.cli().activate("web", 2, "peak").unwrap();
    assert_eq!((task.state.as_str(), task.active), ("done", 2));
    let keys = etcd.instances().unwrap();
    let id = format!("test-{}", host.ground.id());
    let names: Vec<_> = keys.iter().map(|key| key.key.clone()).collect();
    let expected = [0, 1].map(|n| format!("/nodeagent/default/web/{id}/{n}"));
    assert_eq!(names, expected);
    for (key, instance) in keys.iter().zip(&task.instances) {
        assert_eq!(key.value["instance"], *instance.name);
        assert_eq!(key.value["generation"], instance.generation);
        assert_eq!(key.value["address"].as_str(), instance.address.as_deref());
        assert_eq!(key.value["metadata"]["task_id"], "peak");
        assert_eq!(key.lease, keys[0].lease);
    }
    assert_ne!(keys[0].lease, 0);
    assert_eq!(
        host.discovered().unwrap().len(),
        2,
        "the files have them, too"
    );

    host.cli().deactivate("web", 1, "less").unwrap();
    assert_eq!(etcd.instances().unwrap().len(), 1);
    host.remove_app("web").unwrap();
    assert_eq!(etcd.instances().unwrap(), []);
}

#[test]
#[ignore = "needs a built peer: make test-peers"]
fn an_agent_that_is_killed_and_comes_back_deregisters_nobody() {
    let (mut host, etcd) = start();
    host.warm_web(2).unwrap();
    host.cli().activate("web", 2, "peak").unwrap();
    let before = etcd.instances().unwrap();
    for round in 0..3 {
        host.agent.kill().unwrap();
        host.agent.start(&host.ground).unwrap();
        host.wait_for_pool("web", "2 active", |pool| pool.active == 2)
            .unwrap();
        // Made once and never again, on the lease of before.
        assert_eq!(etcd.instances().unwrap(), before, "round {round}");
    }
    host.remove_app("web").unwrap();
}

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
