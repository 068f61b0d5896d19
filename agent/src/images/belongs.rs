//! What belongs on this host, as it was looked after last: listed images, and names that
//! drifted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A name that means something else in its registry now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// What it means now, by digest.
    pub reference: String,
    /// Unix milliseconds when that was seen first.
    pub since_ms: u64,
}

/// An image that the file of this host names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Full name.
    pub image: String,
    /// What it was resolved to.
    pub reference: Option<String>,
    /// Why it is not ready; none when it is, or was not looked after yet.
    pub error: Option<String>,
    /// Whether it is ready.
    pub ready: bool,
}

#[derive(Debug, Default)]
struct State {
    listed: Vec<Listed>,
    /// The file was read.
    is_known: bool,
    unreadable: Option<String>,
    drifted: BTreeMap<String, Drift>,
}

impl State {
    fn listed_as(&mut self, image: &str) -> Option<&mut Listed> {
        self.listed.iter_mut().find(|listed| listed.image == image)
    }
}

/// What belongs here. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Belongs(Arc<Mutex<State>>);

impl Belongs {
    /// The listed images, and why the file is not read.
    pub fn listed(&self) -> (Vec<Listed>, Option<String>) {
        let state = self.state();
        (state.listed.clone(), state.unreadable.clone())
    }

    /// Why it is not known what the file names; none once it was read.
    pub fn unknown(&self) -> Option<String> {
        let state = self.state();
        let why = || {
            state
                .unreadable
                .clone()
                .unwrap_or_else(|| "not read yet".to_owned())
        };
        (!state.is_known).then(why)
    }

    /// The file names these images, by full name. What is known of one that it named before stays.
    pub fn say_listed(&self, images: impl Iterator<Item = String>) {
        let mut state = self.state();
        let known = std::mem::take(&mut state.listed).into_iter();
        let mut known: BTreeMap<String, Listed> =
            known.map(|listed| (listed.image.clone(), listed)).collect();
        let listed = images.map(|image| {
            known.remove(&image).unwrap_or(Listed {
                image,
                reference: None,
                error: None,
                ready: false,
            })
        });
        state.listed = listed.collect();
        state.is_known = true;
        state.unreadable = None;
    }

    /// A listed image is ready; its name meant `reference`, by digest.
    pub fn say_ready(&self, image: &str, reference: String) {
        if let Some(listed) = self.state().listed_as(image) {
            listed.reference = Some(reference);
            listed.ready = true;
            listed.error = None;
        }
    }

    /// A listed image is not ready; true when that, or why, is news.
    pub fn say_not_ready(&self, image: &str, why: &str) -> bool {
        let mut state = self.state();
        let Some(listed) = state.listed_as(image) else {
            return false;
        };
        listed.ready = false;
        let former = listed.error.replace(why.to_owned());
        former.as_deref() != Some(why)
    }

    /// The file cannot be read; true when that is news.
    pub fn say_unreadable(&self, why: String) -> bool {
        let mut state = self.state();
        let news = state.unreadable.as_ref() != Some(&why);
        state.unreadable = Some(why);
        news
    }

    /// Whether a name drifted.
    pub fn drift(&self, name: &str) -> Option<Drift> {
        self.state().drifted.get(name).cloned()
    }

    /// What a name means now is `drifted`; `None`: what it meant. True when that is news.
    pub fn say_drift(&self, name: &str, drifted: Option<Drift>) -> bool {
        let mut state = self.state();
        let Some(drifted) = drifted else {
            state.drifted.remove(name);
            return false;
        };
        match state.drifted.get(name) {
            Some(known) if known.reference == drifted.reference => false,
            _ => {
                state.drifted.insert(name.to_owned(), drifted);
                true
            }
        }
    }

    /// Only these names are of interest any more.
    pub fn forget_drift_but_of(&self, names: &[String]) {
        self.state().drifted.retain(|name, _| names.contains(name));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_listed_image_is_not_ready_is_news_once() {
        let belongs = Belongs::default();
        assert!(belongs.say_unreadable("line 1".to_owned()));
        assert_eq!(belongs.unknown().as_deref(), Some("line 1"));
        let names = |names: &'static [&str]| names.iter().map(|name| (*name).to_owned());
        belongs.say_listed(names(&["web:1", "api:1"]));
        belongs.say_ready("web:1", "web@sha256:a".to_owned());
        assert!(belongs.say_not_ready("web:1", "away"));
        assert!(!belongs.say_not_ready("web:1", "away"));
        assert!(belongs.say_not_ready("web:1", "denied"));
        assert!(!belongs.say_not_ready("other:1", "away"));
        assert!(belongs.say_unreadable("line 3".to_owned()));
        assert_eq!(belongs.unknown(), None, "what it said before holds");
        // What is known of an image stays when the file is read again.
        belongs.say_listed(names(&["new:1", "web:1"]));
        let (listed, unreadable) = belongs.listed();
        let known = |image: &str, reference: Option<&str>, error: Option<&str>| Listed {
            image: image.to_owned(),
            reference: reference.map(str::to_owned),
            error: error.map(str::to_owned),
            ready: false,
        };
        assert_eq!(
            listed,
            [
                known("new:1", None, None),
                known("web:1", Some("web@sha256:a"), Some("denied"))
            ]
        );
        assert_eq!(unreadable, None);
        belongs.say_ready("new:1", "new@sha256:b".to_owned());
        assert!(belongs.listed().0[0].ready);
    }

    #[test]
    fn drift_is_news_once_and_keeps_its_time() {
        let belongs = Belongs::default();
        let drift = |reference: &str, since_ms| {
            Some(Drift {
                reference: reference.to_owned(),
                since_ms,
            })
        };
        assert!(belongs.say_drift("web:1", drift("a", 5)));
        assert!(!belongs.say_drift("web:1", drift("a", 9)));
        assert_eq!(belongs.drift("web:1"), drift("a", 5));
        assert!(belongs.say_drift("web:1", drift("b", 9)));
        belongs.forget_drift_but_of(&["api:1".to_owned()]);
        assert_eq!(belongs.drift("web:1"), None);
    }
}
