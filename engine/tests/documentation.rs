//! What the documentation names exists.

use std::fs;
use std::path::Path;

/// All of the engine's source.
fn source() -> String {
    fn collect(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, text);
            } else {
                text.push_str(&fs::read_to_string(&path).expect("text"));
            }
        }
    }
    let mut text = String::new();
    collect(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut text,
    );
    text
}

/// Whether something of this name is declared: a function, a field, a variant, a type.
fn is_declared(source: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    source.match_indices(name).any(|(at, _)| {
        let rest = &source[at + name.len()..];
        if rest.starts_with(is_word) || source[..at].ends_with(is_word) {
            return false;
        }
        let before = source[..at].lines().last().unwrap_or_default();
        let keyword = before
            .trim_end()
            .rsplit([' ', '('])
            .next()
            .unwrap_or_default();
        let declares = ["fn", "struct", "enum", "trait", "type", "mod", "const"];
        // A variant stands alone in its line; a field is public.
        let is_variant = before.trim().is_empty() && rest.starts_with([',', '(', ' ']);
        let is_field = keyword == "pub" && rest.starts_with(':');
        declares.contains(&keyword) || is_variant || is_field
    })
}

#[test]
fn names_in_the_migration_guide_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let guide = fs::read_to_string(root.join("docs/MIGRATING.md")).expect("the guide");
    let source = source();
    let mut checked = 0;
    let mut missing = Vec::new();
    for line in guide.lines().filter(|line| line.starts_with("| ")) {
        let ours = line.split(" | ").nth(1).expect("two columns");
        for code in ours.split('`').skip(1).step_by(2) {
            // Examples have names of their own; calls have arguments.
            let path = code.split(['(', '.', ' ']).next().unwrap_or_default();
            for name in path.split("::").filter(|name| !name.is_empty()) {
                if ["sockeye", "axum", "in_tokio", "json", "client"].contains(&name) {
                    continue;
                }
                checked += 1;
                if !is_declared(&source, name) {
                    missing.push(format!("{name} in {line}"));
                }
            }
        }
    }
    assert!(checked > 300, "{checked}");
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn names_that_do_not_exist_are_found() {
    let source = source();
    assert!(is_declared(&source, "publish_to_others"));
    assert!(is_declared(&source, "message_len_max"));
    assert!(is_declared(&source, "Queued"));
    for name in ["publish_to_other", "set_read_limit", "CheckOrigin"] {
        assert!(!is_declared(&source, name), "{name}");
    }
}
