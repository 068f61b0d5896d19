//! What may be pulled: which repositories, by which names, signed by whom. Fails closed.
//!
//! ```text
//! reference ──► rule (the first whose scope it is in)
//!                 │ denied, or no digest where one is wanted ──► Refusal
//!                 │ no signature wanted ──► Allowed
//!                 ▼
//!               keys + signatures of the digest ──► judge ──► Allowed by a key | Refusal
//! ```
//!
//! [`judge`] decides, and touches nothing; [`check`] brings what it has to know; [`judge_kept`] is
//! for what is here. Whatever cannot be
//! read, understood or fetched is a refusal that says what it was. Signatures are those of cosign
//! with keys of one's own ("simple signing", ECDSA on P-256); certificates and transparency logs
//! are deliberately not asked.

mod claims;
mod judge;
mod kept;
mod key;
mod rules;
mod source;

pub use claims::{Flaw, Signature};
pub use judge::{Allowed, Found, Refusal, Unsigned, judge};
pub use kept::{KeptSignature, judge_kept, judge_name};
pub use key::{Key, KeyError, PublicKey};
pub use rules::{Default, InvalidPolicy, Policy, PolicySettings, RuleSettings, Scope, Verdict};
pub use source::{SignatureSource, check};
