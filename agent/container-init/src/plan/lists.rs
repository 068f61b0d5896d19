//! Lists inside a plan: given as slices when it is written, borrowed bytes when it is read.

use core::ffi::CStr;
use core::fmt;

use super::lifecycle::Rewrite;
use super::limits::Rlimit;
use super::process::Process;
use crate::wire::{Reader, Writer};

/// A list of items of one kind, in order.
#[derive(Clone, Copy)]
pub struct List<'a, T>(Source<'a, T>);

#[derive(Clone, Copy)]
enum Source<'a, T> {
    Given(&'a [T]),
    /// Count, then items; checked when it was decoded.
    Encoded(u16, &'a [u8]),
}

/// Strings for the kernel: argv, or environment entries `KEY=VALUE`.
pub type Strings<'a> = List<'a, &'a CStr>;
/// Supplementary group ids.
pub type Groups<'a> = List<'a, u32>;
/// Resource limits.
pub type Rlimits<'a> = List<'a, Rlimit>;
/// TCP ports.
pub type Ports<'a> = List<'a, u16>;
/// Numbers that become others.
pub type Rewrites<'a> = List<'a, Rewrite>;
/// The processes of a plan.
pub type Processes<'a> = List<'a, Process<'a>>;

/// What a [`List`] can hold.
pub(crate) trait Item<'a>: Copy {
    fn encode(&self, w: &mut Writer<'_>);
    fn decode(r: &mut Reader<'a>, what: &'static str) -> Self;
}

#[expect(
    private_bounds,
    reason = "which kinds of item there are is the format's, not the caller's, choice"
)]
impl<'a, T: Item<'a> + 'a> List<'a, T> {
    /// A list of these items.
    pub fn new(items: &'a [T]) -> Self {
        Self(Source::Given(items))
    }

    /// No items.
    pub fn none() -> Self {
        Self::new(&[])
    }

    /// The items in order.
    pub fn iter(&self) -> Items<'a, T> {
        Items(*self)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self.0 {
            Source::Given(items) => items.len(),
            Source::Encoded(count, _) => usize::from(count),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        w.count(self.len());
        let block = w.open();
        for item in self.iter() {
            item.encode(w);
        }
        w.close(block);
    }

    pub(crate) fn decode(r: &mut Reader<'a>, what: &'static str) -> Self {
        let count = r.u16(what);
        let bytes = r.block(what);
        let mut items = Reader::new(bytes);
        for _ in 0..count {
            if items.is_sound() {
                T::decode(&mut items, what);
            }
        }
        r.end_of(&items, what);
        Self(Source::Encoded(count, bytes))
    }
}

/// The items of a [`List`], one after the other.
#[derive(Clone)]
pub struct Items<'a, T>(List<'a, T>);

impl<'a, T: Item<'a>> Iterator for Items<'a, T> {
    type Item = T;

    #[inline(never)]
    fn next(&mut self) -> Option<T> {
        match &mut self.0.0 {
            Source::Given(items) => items.split_off_first().copied(),
            Source::Encoded(0, _) => None,
            Source::Encoded(count, bytes) => {
                let mut r = Reader::new(bytes);
                let item = T::decode(&mut r, "item");
                (*count, *bytes) = (*count - 1, r.rest());
                Some(item)
            }
        }
    }
}

impl<'a, T: Item<'a> + fmt::Debug + 'a> fmt::Debug for List<'a, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a, T: Item<'a> + PartialEq + 'a> PartialEq for List<'a, T> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a, T: Item<'a> + Eq + 'a> Eq for List<'a, T> {}

impl<'a> Item<'a> for &'a CStr {
    fn encode(&self, w: &mut Writer<'_>) {
        w.c_text(self);
    }

    fn decode(r: &mut Reader<'a>, what: &'static str) -> Self {
        r.c_text(what)
    }
}

impl Item<'_> for u32 {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u32(*self);
    }

    fn decode(r: &mut Reader<'_>, what: &'static str) -> Self {
        r.u32(what)
    }
}

impl Item<'_> for u16 {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u16(*self);
    }

    fn decode(r: &mut Reader<'_>, what: &'static str) -> Self {
        r.u16(what)
    }
}

impl Item<'_> for Rewrite {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u8(self.from);
        w.u8(self.to);
    }

    fn decode(r: &mut Reader<'_>, what: &'static str) -> Self {
        Self {
            from: r.u8(what),
            to: r.u8(what),
        }
    }
}
