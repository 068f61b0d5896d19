//! What an app's argv is, and `$(NAME)` references in it, as Kubernetes has them.

use crate::app::App;
use crate::instance::ImageConfig;

/// The app's argv: `command` replaces the image's entrypoint **and** cmd, `args` replaces the cmd
/// only. `None` when nothing is left to run.
pub(super) fn of(app: &App, image: &ImageConfig, env: &[(String, String)]) -> Option<Vec<String>> {
    let (command, args) = (expand(&app.command, env), expand(&app.args, env));
    let argv = match (command.is_empty(), args.is_empty()) {
        (false, _) => [command, args].concat(),
        (true, false) => [image.entrypoint.clone(), args].concat(),
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    };
    (!argv.is_empty()).then_some(argv)
}

/// `known`, then the manifest's environment with references to `known` and to entries before each
/// resolved.
pub(super) fn expand_env(
    known: &[(String, String)],
    env: &[(String, String)],
) -> Vec<(String, String)> {
    let mut done = known.to_vec();
    for (key, value) in env {
        let value = expanded(value, &done);
        done.push((key.clone(), value));
    }
    done
}

/// Every text with its references to `env` resolved.
pub(super) fn expand(texts: &[String], env: &[(String, String)]) -> Vec<String> {
    texts.iter().map(|text| expanded(text, env)).collect()
}

/// `$(NAME)` becomes the value; one that is not known stays as it is; `$$` is a `$`.
fn expanded(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let reference = after
            .strip_prefix('(')
            .and_then(|inside| inside.split_once(')'));
        rest = if let Some(escaped) = after.strip_prefix('$') {
            out.push('$');
            escaped
        } else if let Some((name, behind)) = reference {
            match env.iter().rev().find(|(key, _)| key == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&rest[at..rest.len() - behind.len()]),
            }
            behind
        } else {
            out.push('$');
            after
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved_as_kubernetes_does() {
        let env = [
            ("A".to_owned(), "1".to_owned()),
            ("B".to_owned(), "x y".to_owned()),
        ];
        for (text, expected) in [
            ("$(A)", "1"),
            ("--name=$(B)!", "--name=x y!"),
            ("$(C)", "$(C)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $(A", "$A $(A"),
            ("a$", "a$"),
            ("ü$(A)ü", "ü1ü"),
        ] {
            assert_eq!(expanded(text, &env), expected, "{text}");
        }
    }

    #[test]
    fn an_entry_may_refer_to_those_before_it_only() {
        let env = [("A", "$(B)"), ("B", "2"), ("C", "$(A)$(B)")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
        let values: Vec<String> = expand_env(&[], &env)
            .into_iter()
            .map(|(_, value)| value)
            .collect();
        assert_eq!(values, ["$(B)", "2", "$(B)2"]);
    }
}
