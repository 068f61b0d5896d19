//! What changed between two looks at the host, as events. Pure.

use std::collections::BTreeMap;

use crate::api::v1::{
    Alarm, AlarmChange, AppChange, Event, EventKey, Instance, InstanceChange, Pool,
};

/// Events that lead from `old` to `new`; either may be missing. The app is told before its
/// instances come, and after they went.
pub(super) fn of_pool(old: Option<&Pool>, new: Option<&Pool>) -> Vec<Event> {
    let Some(app) = new.or(old).map(|pool| pool.app.clone()) else {
        return Vec::new();
    };
    let before = old.map_or(&[][..], |pool| &pool.instances);
    let after = new.map_or(&[][..], |pool| &pool.instances);
    let known: BTreeMap<&str, &Instance> = before.iter().map(|i| (i.name.as_str(), i)).collect();
    let kept: BTreeMap<&str, &Instance> = after.iter().map(|i| (i.name.as_str(), i)).collect();
    let instance = |name: &str, instance: Option<&Instance>| {
        Event::Instance(InstanceChange {
            app: app.clone(),
            name: name.to_owned(),
            instance: instance.cloned(),
        })
    };
    let gone = known
        .keys()
        .filter(|name| !kept.contains_key(*name))
        .map(|name| instance(name, None));
    let moved = after
        .iter()
        .filter(|now| known.get(now.name.as_str()) != Some(now))
        .map(|now| instance(&now.name, Some(now)));
    let (old, new) = (old.map(head), new.map(head));
    let changed = (old != new).then(|| {
        Event::App(AppChange {
            app: app.clone(),
            pool: new.clone(),
        })
    });
    match new {
        Some(_) => changed.into_iter().chain(gone).chain(moved).collect(),
        None => gone.chain(changed).collect(),
    }
}

/// The pool without its instances.
fn head(pool: &Pool) -> Pool {
    Pool {
        app: pool.app.clone(),
        revision: pool.revision.clone(),
        labels: pool.labels.clone(),
        alarm: pool.alarm.clone(),
        instances: Vec::new(),
        ..*pool
    }
}

/// Events that lead from the alarms in `old` to those in `new`.
pub(super) fn of_alarms(old: &[Alarm], new: &[Alarm]) -> Vec<Event> {
    let event = |alarm: &Alarm, standing| {
        Event::Alarm(AlarmChange {
            standing,
            alarm: alarm.clone(),
        })
    };
    let key = |alarm: &Alarm| -> Option<EventKey> { event(alarm, true).key() };
    let over = old
        .iter()
        .filter(|alarm| !new.iter().any(|now| key(now) == key(alarm)))
        .map(|alarm| event(alarm, false));
    let raised = new
        .iter()
        .filter(|alarm| !old.contains(alarm))
        .map(|alarm| event(alarm, true));
    over.chain(raised).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1::{InstanceState, WarmTargets};

    fn pool(active: u32, instances: &[(u32, InstanceState)]) -> Pool {
        let since = "2026-11-22T13:31:55.042Z".parse().unwrap();
        let instance = |(ordinal, state): &(u32, InstanceState)| Instance {
            name: format!("web-{ordinal}"),
            state: *state,
            generation: 1,
            create_generation: None,
            revision: String::new(),
            host_ports: Vec::new(),
            address: None,
            task_id: None,
            since,
            error: None,
        };
        Pool {
            app: "web".to_owned(),
            revision: String::new(),
            labels: Default::default(),
            target: 0,
            target_seq: 0,
            active,
            starting: 0,
            armed: 0,
            arming: 0,
            draining: 0,
            failed: 0,
            warm: WarmTargets { armed: 0 },
            alarm: None,
            instances: instances.iter().map(instance).collect(),
        }
    }

    fn told(events: &[Event]) -> Vec<String> {
        let sentence = |event: &Event| match event {
            Event::App(change) => format!("app {}", change.pool.is_some()),
            Event::Instance(change) => {
                let state = change.instance.as_ref().map(|i| i.state.as_str());
                format!("{} {}", change.name, state.unwrap_or("gone"))
            }
            other => format!("{other:?}"),
        };
        events.iter().map(sentence).collect()
    }

    #[test]
    fn only_what_changed_is_told() {
        use InstanceState::{Active, Armed};
        let old = pool(0, &[(0, Armed), (1, Armed)]);
        let new = pool(1, &[(0, Active), (1, Armed), (2, Armed)]);
        assert_eq!(
            told(&of_pool(Some(&old), Some(&new))),
            ["app true", "web-0 active", "web-2 armed"]
        );
        assert_eq!(of_pool(Some(&new), Some(&new)), []);
        assert_eq!(of_pool(None, None), []);
    }

    #[test]
    fn an_app_comes_before_its_instances_and_goes_after_them() {
        let pool = pool(0, &[(0, InstanceState::Armed)]);
        assert_eq!(
            told(&of_pool(None, Some(&pool))),
            ["app true", "web-0 armed"]
        );
        assert_eq!(
            told(&of_pool(Some(&pool), None)),
            ["web-0 gone", "app false"]
        );
    }

    #[test]
    fn an_alarm_that_says_other_words_is_told_again_and_not_as_over() {
        let alarm = |detail: &str| Alarm {
            code: "leak".to_owned(),
            app: None,
            backend: None,
            detail: detail.to_owned(),
            since: "2026-11-22T13:31:55.042Z".parse().unwrap(),
        };
        let standing = |events: Vec<Event>| -> Vec<bool> {
            let standing = |event: &Event| matches!(event, Event::Alarm(change) if change.standing);
            events.iter().map(standing).collect()
        };
        assert_eq!(standing(of_alarms(&[alarm("a")], &[alarm("b")])), [true]);
        assert_eq!(standing(of_alarms(&[alarm("a")], &[])), [false]);
        assert_eq!(of_alarms(&[alarm("a")], &[alarm("a")]), []);
    }
}
