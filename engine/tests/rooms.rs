//! The structural promise of `docs/ARCHITECTURE.md`: which room may use which.

use std::fs;
use std::path::Path;

/// Each room, and the rooms that it may name in a `crate::` path.
const ROOMS: &[(&str, &[&str])] = &[
    ("simd", &[]),
    ("buffer", &[]),
    ("slab", &[]),
    ("timer", &["slab", "simd"]),
    ("http1", &[]),
    ("config", &["error", "http1", "protocol", "timer"]),
    ("deflate", &["config", "protocol"]),
    ("error", &["protocol", "tls"]),
    ("protocol", &["simd", "http1"]),
    ("reactor", &["buffer", "slab"]),
    ("metrics", &[]),
    ("pubsub", &["slab"]),
    ("random", &[]),
    ("tls", &["buffer"]),
    (
        "conn",
        &[
            "protocol", "http1", "buffer", "timer", "config", "deflate", "metrics", "random", "tls",
        ],
    ),
    (
        "connect",
        &[
            "buffer", "config", "conn", "error", "http1", "protocol", "random", "reactor", "tls",
        ],
    ),
    (
        "worker",
        &[
            "buffer", "config", "conn", "connect", "error", "http1", "metrics", "protocol",
            "pubsub", "reactor", "slab", "timer", "tls",
        ],
    ),
    (
        "server",
        &[
            "config", "conn", "connect", "error", "http1", "metrics", "protocol", "reactor", "tls",
            "worker",
        ],
    ),
    (
        "client",
        &[
            "config", "conn", "connect", "deflate", "error", "http1", "protocol", "random",
            "reactor", "simd", "tls",
        ],
    ),
    (
        "testkit",
        &[
            "client", "config", "conn", "connect", "error", "http1", "metrics", "protocol",
            "reactor", "tls", "worker",
        ],
    ),
];

#[test]
fn rooms_use_only_what_their_row_allows() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut errors = Vec::new();
    for (room, allowed) in ROOMS {
        let mut files = 0;
        let mut check = |path: &Path, text: &str| {
            files += 1;
            for (index, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or("");
                for rest in code.split("crate::").skip(1) {
                    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                    let used = &rest[..end.unwrap_or(rest.len())];
                    let is_room = ROOMS.iter().any(|(name, _)| *name == used);
                    // An empty name is a grouped path: one path per line instead.
                    let foreign = is_room && used != *room && !allowed.contains(&used);
                    if used.is_empty() || foreign {
                        let place = format!("{}:{}", path.display(), index + 1);
                        errors.push(format!("{place}: crate::{rest}"));
                    }
                }
            }
        };
        visit(&source.join(room), &mut check);
        visit(&source.join(format!("{room}.rs")), &mut check);
        assert!(files > 0, "no such room: {room}");
    }
    assert!(
        errors.is_empty(),
        "not in this room's row:\n{}",
        errors.join("\n")
    );
}

#[test]
fn every_file_belongs_to_a_room() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(source).expect("the source folder is readable") {
        let path = entry.expect("the entry is readable").path();
        let name = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or("");
        let known = name == "lib" || ROOMS.iter().any(|(room, _)| *room == name);
        assert!(known, "{} is in no row", path.display());
    }
}

/// Every room but `buffer`, `simd` and `reactor` forbids unsafe code in its first lines.
#[test]
fn unsafe_code_is_forbidden_where_it_is_not_needed() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (room, _) in ROOMS {
        let folder = source.join(room).join("mod.rs");
        let file = source.join(format!("{room}.rs"));
        let path = if folder.exists() { folder } else { file };
        let text = fs::read_to_string(&path).expect("the room is readable");
        let forbids = text.starts_with("#![forbid(unsafe_code)]");
        let may = ["buffer", "simd", "reactor"].contains(room);
        assert_eq!(forbids, !may, "{}", path.display());
    }
}

fn visit(path: &Path, check: &mut dyn FnMut(&Path, &str)) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("the source folder is readable") {
            visit(&entry.expect("the entry is readable").path(), check);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs")
        && let Ok(text) = fs::read_to_string(path)
    {
        check(path, &text);
    }
}
