//! A task takes effect at most once, whatever callers do.

use std::thread;

use anyhow::{Context, Result, ensure};
use nodeagent_tests::documents::Task;
use nodeagent_tests::{Answer, Cli, Image, Manifest, TestHost};

/// Runs `count` copies of one command at once.
fn at_once(cli: &Cli, count: usize, arguments: &[&str]) -> Result<Vec<Answer>> {
    thread::scope(|scope| {
        let calls: Vec<_> = (0..count)
            .map(|_| scope.spawn(|| cli.json(arguments)))
            .collect();
        let ended = calls.into_iter().map(|call| call.join());
        ended
            .map(|call| call.map_err(|_| anyhow::anyhow!("a caller panicked"))?)
            .collect()
    })
}

#[test]
fn the_same_task_fifty_times_at_once_is_done_once() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(2)?;
    let arguments = ["activate", "web", "--to", "2", "--task-id", "peak-7"];
    let answers = at_once(host.cli(), 50, &arguments)?;
    let mut tasks = Vec::new();
    for answer in &answers {
        tasks.push(answer.document::<Task>(0)?);
    }
    let first = tasks.first().context("no answer")?;
    for task in &tasks {
        assert_eq!(task.state, "done");
        assert_eq!(
            (task.target, task.target_seq),
            (first.target, first.target_seq)
        );
        assert_eq!(task.instances, first.instances);
    }
    let done = tasks.iter().filter(|task| !task.replayed).count();
    assert_eq!(done, 1, "the task was done {done} times");
    let pool = host.cli().pool("web")?;
    assert_eq!((pool.active, pool.target), (2, 2));
    for instance in &pool.instances {
        ensure!(
            instance
                .create_generation
                .is_some_and(|created| created <= 2),
            "{instance:?}"
        );
    }
    host.remove_app("web")
}

#[test]
fn a_repeated_task_starts_nothing_and_says_what_is_true_now() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(2)?;
    let first = host.cli().activate("web", 2, "peak-7")?;
    host.wait_for_armed("web", 2)?;
    host.cli().deactivate("web", 1, "less")?;
    host.wait_for_armed("web", 2)?;
    let containers = host.containers()?;

    let again = host.cli().activate("web", 2, "peak-7")?;
    assert!(again.replayed);
    assert_eq!(
        (again.state.as_str(), &again.instances),
        ("done", &first.instances)
    );
    let current = again.current.context("a replay without what is true now")?;
    assert_eq!((current.target, current.active), (1, 1));
    assert_eq!(host.containers()?, containers);
    assert_eq!(host.cli().pool("web")?.active, 1);
    host.remove_app("web")
}

#[test]
fn the_same_task_id_with_another_request_is_refused() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(1)?;
    host.cli().activate("web", 1, "peak-7")?;
    let before = host.cli().pool("web")?;
    let others: [&[&str]; 2] = [
        &["activate", "web", "--to", "2", "--task-id", "peak-7"],
        &["deactivate", "web", "--to", "0", "--task-id", "peak-7"],
    ];
    for other in others {
        let problem = host.cli().json(other)?.problem(5)?;
        assert_eq!(
            (problem.code.as_str(), problem.status),
            ("task_conflict", 409)
        );
        assert!(problem.detail.contains("peak-7"), "{}", problem.detail);
    }
    let after = host.cli().pool("web")?;
    assert_eq!(
        (after.target, after.target_seq),
        (before.target, before.target_seq)
    );
    host.remove_app("web")
}

#[test]
fn a_target_that_has_moved_refuses_an_expectation_of_the_old_one() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(1)?;
    let first = host.cli().activate("web", 1, "one")?;
    let stale = (first.target_seq - 1).to_string();
    let refused = host
        .cli()
        .json(&["activate", "web", "--to", "2", "--expect-seq", &stale])?
        .problem(5)?;
    assert_eq!(refused.code, "seq_mismatch");
    let seq = first.target_seq.to_string();
    host.cli()
        .json(&["activate", "web", "--to", "1", "--expect-seq", &seq])?
        .ok()?;
    host.remove_app("web")
}

#[test]
fn opposite_targets_at_once_leave_the_one_that_came_last() -> Result<()> {
    let host = TestHost::start()?;
    host.warm_web(3)?;
    for round in 0..5 {
        let (up, down) = (format!("up-{round}"), format!("down-{round}"));
        let cli = host.cli();
        let (up, down) = thread::scope(|scope| {
            let up = scope.spawn(|| cli.json(&["activate", "web", "--to", "3", "--task-id", &up]));
            let down =
                scope.spawn(|| cli.json(&["deactivate", "web", "--to", "0", "--task-id", &down]));
            (up.join(), down.join())
        });
        let answer = |joined: thread::Result<Result<Answer>>| {
            joined.map_err(|_| anyhow::anyhow!("a caller panicked"))?
        };
        let (up, down) = (answer(up)?, answer(down)?);
        for answer in [&up, &down] {
            ensure!(
                [0, 5].contains(&answer.code),
                "neither done nor superseded: {answer}"
            );
        }
        ensure!(
            up.code == 0 || down.code == 0,
            "both were superseded:\n{up}\n{down}"
        );
        let pool = host.wait_for_pool("web", "the target reached", |pool| {
            pool.active == pool.target && pool.starting + pool.draining == 0
        })?;
        ensure!([0, 3].contains(&pool.target), "{pool:?}");
        let found = host.discovered()?;
        ensure!(
            found.len() == pool.active as usize,
            "round {round}: {found:?}\n{pool:?}\n{up}\n{down}\n{}",
            host.agent.tail(50)
        );
    }
    host.remove_app("web")
}

#[test]
fn an_activation_that_a_deactivation_overtakes_ends_as_superseded() -> Result<()> {
    let host = TestHost::start()?;
    host.push(&Image::web()?, "web:1")?;
    // Nothing ever listens: the activation would go on until its deadline.
    host.apply(
        &Manifest::script("web", "exec sleep 1000")
            .armed(1)
            .ready_by_page(100),
    )?;
    host.wait_for_armed("web", 1)?;
    let cli = host.cli().clone();
    let up = thread::spawn(move || cli.json(&["activate", "web", "--to", "1", "--task-id", "up"]));
    host.wait_for_pool("web", "an instance that starts", |pool| pool.starting == 1)?;
    host.cli().deactivate("web", 0, "down")?;
    let up = up
        .join()
        .map_err(|_| anyhow::anyhow!("the caller panicked"))??;
    let up: Task = up.document(5)?;
    assert_eq!(up.state, "superseded");
    host.remove_app("web")
}
