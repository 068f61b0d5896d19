//! Images that must not go at the moment, and images that are going.
//!
//! Whoever makes an image ready for somebody holds it until what needs it names it. An image that is
//! held does not begin to go; who wants to hold one that is going waits until it has gone, and then
//! makes it ready anew. So nobody is told of an image that it is ready, or pinned, and it goes.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<String, usize>,
    going: BTreeSet<String>,
}

/// Who holds which image, by full name. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Holds(watch::Sender<State>);

/// An image that does not go while this is there.
#[derive(Debug)]
pub struct Held {
    holds: Holds,
    name: String,
}

impl Held {
    /// Its full name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holds.change(|state| {
            if let Some(count) = state.held.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(&self.name);
                }
            }
        });
    }
}

/// Images that nobody holds until they have gone, or stay after all.
#[derive(Debug)]
pub struct Going {
    holds: Holds,
    names: BTreeSet<String>,
}

impl Going {
    /// This one has gone.
    pub fn gone(&mut self, name: &str) {
        self.names.remove(name);
        self.holds.change(|state| {
            state.going.remove(name);
        });
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let names = &self.names;
        self.holds
            .change(|state| state.going.retain(|name| !names.contains(name)));
    }
}

impl Holds {
    /// The image of this full name does not go while what is returned is there; waits for one that
    /// is going.
    pub async fn hold(&self, name: &str) -> Held {
        let mut states = self.0.subscribe();
        self.change(|state| *state.held.entry(name.to_owned()).or_default() += 1);
        let held = Held {
            holds: self.clone(),
            name: name.to_owned(),
        };
        // Its sender is here.
        let _ = states.wait_for(|state| !state.going.contains(name)).await;
        held
    }

    /// Names that are held.
    pub fn held(&self) -> Vec<String> {
        self.0.borrow().held.keys().cloned().collect()
    }

    /// These begin to go, unless one of them is held or is going already.
    pub fn let_go<'n>(&self, names: impl Iterator<Item = &'n str>) -> Option<Going> {
        let names: BTreeSet<String> = names.map(str::to_owned).collect();
        let mut begun = false;
        self.change(|state| {
            let stays = |name: &String| state.held.contains_key(name) || state.going.contains(name);
            if !names.iter().any(stays) {
                state.going.extend(names.iter().cloned());
                begun = true;
            }
        });
        begun.then(|| Going {
            holds: self.clone(),
            names,
        })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.0.send_modify(change);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is the report")]

    use futures_util::FutureExt as _;

    use super::*;

    const WEB: &str = "r.lan/web:1";
    const API: &str = "r.lan/api:1";

    #[tokio::test]
    async fn what_is_held_twice_is_held_until_both_let_go() {
        let holds = Holds::default();
        let one = holds.hold(WEB).await;
        let two = holds.hold(WEB).await;
        drop(one);
        assert_eq!(holds.held(), [WEB]);
        assert!(holds.let_go([API, WEB].into_iter()).is_none());
        drop(two);
        assert!(holds.held().is_empty());
        assert!(holds.let_go([API, WEB].into_iter()).is_some());
    }

    #[tokio::test]
    async fn what_is_going_is_held_when_it_has_gone() {
        let holds = Holds::default();
        let mut going = holds.let_go([WEB, API].into_iter()).unwrap();
        assert!(holds.let_go([WEB].into_iter()).is_none(), "it is going");
        let (mut web, mut api) = (Box::pin(holds.hold(WEB)), Box::pin(holds.hold(API)));
        assert!(web.as_mut().now_or_never().is_none());
        assert!(api.as_mut().now_or_never().is_none());
        going.gone(WEB);
        let held = web.as_mut().now_or_never();
        assert!(held.is_some());
        assert!(api.as_mut().now_or_never().is_none());
        // It stays after all.
        drop(going);
        assert!(api.now_or_never().is_some());
        assert_eq!(holds.held(), [WEB]);
    }
}
