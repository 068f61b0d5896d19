//! How far pulls are: for whoever wants to look.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Descriptor, Digest};

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its bytes are not all here.
    Fetching,
    /// Verified; waits for a free place, or is being extracted.
    Extracting,
    /// Extracted; waits for the layers below.
    Extracted,
    /// Unpacked.
    Ready,
}

/// A layer of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Bytes of it that are here.
    pub fetched: u64,
    /// How far it is.
    pub stage: Stage,
}

/// A pull under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// Full name.
    pub reference: String,
    /// Layers from the bottom up; none until the manifest is here.
    pub layers: Vec<LayerProgress>,
}

/// Reference and layers from the bottom up.
type Pulls = BTreeMap<u64, (String, Vec<(Descriptor, Stage)>)>;

/// Pulls under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    pulls: Pulls,
    /// Names of pulls that activations wait for; they may be about to begin.
    urged: BTreeMap<u64, String>,
}

/// An activation that waits for the pull of a name, until it is dropped.
#[derive(Debug)]
pub(crate) struct Urging {
    board: Board,
    number: u64,
}

/// The place of one pull on the board; gone when dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    board: Board,
    number: u64,
}

impl State {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

impl Board {
    pub fn enter(&self, reference: String) -> Entry {
        let mut board = self.lock();
        let number = board.number();
        board.pulls.insert(number, (reference, Vec::new()));
        Entry {
            board: self.clone(),
            number,
        }
    }

    /// `fetched` says how many bytes of a blob are here while it is being fetched.
    pub fn look(&self, fetched: impl Fn(&Digest) -> Option<u64>) -> Vec<PullProgress> {
        let pulls: Vec<_> = self.lock().pulls.values().cloned().collect();
        let layer = |(blob, stage): (Descriptor, Stage)| LayerProgress {
            fetched: match stage {
                Stage::Fetching => fetched(&blob.digest).unwrap_or(0),
                Stage::Extracting | Stage::Extracted | Stage::Ready => blob.size,
            },
            digest: blob.digest,
            size: blob.size,
            stage,
        };
        let progress = |(reference, layers): (String, Vec<_>)| PullProgress {
            reference,
            layers: layers.into_iter().map(layer).collect(),
        };
        pulls.into_iter().map(progress).collect()
    }

    /// Says that an activation waits for the pull of this name, as long as the result lives. With
    /// the layers that are on their way; a pull that knows its layers later asks then
    /// ([`Entry::is_urged`]).
    pub fn urge(&self, reference: String) -> (Urging, Vec<Digest>) {
        let mut board = self.lock();
        let of_that_name = board.pulls.values().filter(|(name, _)| *name == reference);
        let layers = of_that_name.flat_map(|(_, layers)| layers);
        let fetching = layers.filter(|(_, stage)| *stage == Stage::Fetching);
        let missing = fetching.map(|(blob, _)| blob.digest.clone()).collect();
        let number = board.number();
        board.urged.insert(number, reference);
        drop(board);
        let board = self.clone();
        (Urging { board, number }, missing)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Says which layers there are; the first `ready` of them are unpacked.
    pub fn layers(&self, layers: &[Descriptor], ready: usize) {
        let stage = |at| match at < ready {
            true => Stage::Ready,
            false => Stage::Fetching,
        };
        let layers = layers.iter().enumerate();
        let layers = layers.map(|(at, blob)| (blob.clone(), stage(at))).collect();
        if let Some((_, known)) = self.board.lock().pulls.get_mut(&self.number) {
            *known = layers;
        }
    }

    /// Whether an activation waits for this pull. Asked behind [`Self::layers`]: whoever urges later
    /// is given them.
    pub fn is_urged(&self) -> bool {
        let board = self.board.lock();
        let pull = board.pulls.get(&self.number);
        pull.is_some_and(|(reference, _)| board.urged.values().any(|urged| urged == reference))
    }

    /// Says how far a layer is, counted from the bottom.
    pub fn reached(&self, layer: usize, stage: Stage) {
        let mut board = self.board.lock();
        let pull = board.pulls.get_mut(&self.number);
        if let Some(known) = pull.and_then(|(_, layers)| layers.get_mut(layer)) {
            known.1 = stage;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.board.lock().pulls.remove(&self.number);
    }
}

impl Drop for Urging {
    fn drop(&mut self) {
        self.board.lock().urged.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_on_the_board_as_long_as_it_lasts() {
        let board = Board::default();
        let entry = board.enter("web".to_owned());
        let blob = |text: &[u8]| Descriptor {
            media_type: String::new(),
            digest: Digest::of(text),
            size: 10,
        };
        entry.layers(&[blob(b"a"), blob(b"b"), blob(b"c")], 1);
        entry.reached(2, Stage::Extracting);
        let pulls = board.look(|digest| (*digest == Digest::of(b"b")).then_some(4));
        assert_eq!(pulls[0].reference, "web");
        let seen: Vec<_> = pulls[0]
            .layers
            .iter()
            .map(|l| (l.fetched, l.stage))
            .collect();
        assert_eq!(
            seen,
            [
                (10, Stage::Ready),
                (4, Stage::Fetching),
                (10, Stage::Extracting)
            ]
        );
        drop(entry);
        assert_eq!(board.look(|_| None), []);
    }

    #[test]
    fn an_activation_is_told_at_once_or_when_the_layers_are_known() {
        let board = Board::default();
        let (early, late) = (
            board.enter("early".to_owned()),
            board.enter("late".to_owned()),
        );
        let blob = |text: &[u8]| Descriptor {
            media_type: String::new(),
            digest: Digest::of(text),
            size: 10,
        };
        let layers = [blob(b"a"), blob(b"b"), blob(b"c")];
        let (waiting, missing) = board.urge("early".to_owned());
        assert_eq!(missing, []);
        early.layers(&layers, 0);
        assert!(early.is_urged());
        late.layers(&layers, 1);
        assert!(!late.is_urged());
        late.reached(1, Stage::Extracting);
        let (_also, missing) = board.urge("late".to_owned());
        assert_eq!(missing, [Digest::of(b"c")]);
        drop(waiting);
        assert!(!early.is_urged(), "nobody waits any more");
    }
}
