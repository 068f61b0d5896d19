//! Any text as a reference, and as the scope of a rule.
#![no_main]

use imagecache::Reference;
use imagecache::policy::Scope;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        // The full name is a name of the same image.
        let full = reference.to_string();
        assert_eq!(full.parse::<Reference>().as_ref(), Ok(&reference));
    }
    if let Ok(scope) = text.parse::<Scope>() {
        assert_eq!(scope.to_string().parse::<Scope>().as_ref(), Ok(&scope));
    }
});
