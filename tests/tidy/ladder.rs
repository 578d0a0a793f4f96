//! The ladder: what a file names by `crate::`, `tidewire::` or `super::`, and whether it may. Reads text, never a file.

use std::collections::BTreeSet;

use crate::{LADDER, ONLY};

/// What is wrong with the uses of one file. `module` is its name as in [`LADDER`], `modules` all names that exist.
pub(crate) fn findings(module: &str, code: &str, modules: &BTreeSet<String>) -> Vec<String> {
    let Some((own_rung, own_noun)) = rung_of(module) else {
        return vec![format!("src/{module}.rs stands on no rung: give it one in tests/tidy/main.rs")];
    };
    let mut findings = Vec::new();
    for used in uses(module, code, modules) {
        let target = match used {
            Use::File(target) => target,
            Use::Unknown(path) => {
                findings.push(format!("src/{module}.rs uses {path}, which names no file of src/"));
                continue;
            }
        };
        if target == module {
            continue;
        }
        let Some((rung, noun)) = rung_of(&target) else {
            continue; // The file itself is reported, once.
        };
        let allowed = ONLY.iter().find(|(name, _)| *name == own_noun).map(|(_, allowed)| *allowed);
        if noun == own_noun {
            continue;
        } else if rung >= own_rung {
            findings.push(format!("src/{module}.rs (rung {own_rung}) uses {target} (rung {rung})"));
        } else if allowed.is_some_and(|allowed| !allowed.contains(&noun)) {
            findings.push(format!("src/{module}.rs uses {target}; it may use only {allowed:?}"));
        }
    }
    findings
}

/// The rung of a module and the entry of [`LADDER`] that it belongs to.
fn rung_of(module: &str) -> Option<(usize, &'static str)> {
    let module = module.strip_suffix("/tests").unwrap_or(module);
    let holds = |name: &str| match name.strip_suffix("/*") {
        None => name == module,
        Some(noun) => module.strip_prefix(noun).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
    };
    LADDER.iter().enumerate().find_map(|(rung, entries)| {
        entries.iter().find(|entry| entry.split('|').any(holds)).map(|entry| (rung, *entry))
    })
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// A file of `src/`.
    File(String),
    /// None.
    Unknown(String),
}

/// Every file that `code` names by `crate::`, `tidewire::` or `super::`, within `use` or not.
fn uses(module: &str, code: &str, modules: &BTreeSet<String>) -> BTreeSet<Use> {
    let mut found = BTreeSet::new();
    let own: Vec<&str> =
        if matches!(module, "lib" | "main") { Vec::new() } else { module.split('/').collect() };
    let depths = inline_module_depths(code);
    let mut offset = 0;
    while let Some((start, root)) = next_root(code, offset) {
        let rest = start + root.len();
        offset = rest;
        if root == "super::" {
            // In an inline module (such as the tests'), the first `super` is the file itself.
            let mut ups = 1;
            while code[offset..].starts_with("super::") {
                ups += 1;
                offset += "super::".len();
            }
            let line = code[..start].matches('\n').count();
            let above = ups - ups.min(depths[line]);
            if above == 0 {
                continue;
            }
            let base = &own[..own.len().saturating_sub(above)];
            // The parent's own items are the parent's file, or lib.rs at the top.
            for path in paths_of_tree(&code[offset..]) {
                let full: Vec<&str> = base.iter().copied().chain(path.iter().map(String::as_str)).collect();
                found.insert(resolve(&full, modules));
            }
        } else {
            for path in paths_of_tree(&code[offset..]) {
                let full: Vec<&str> = path.iter().map(String::as_str).collect();
                found.insert(resolve(&full, modules));
            }
        }
    }
    found
}

/// The next `crate::`, `tidewire::` or `super::` that is a word of its own, from `offset` on.
fn next_root(code: &str, offset: usize) -> Option<(usize, &'static str)> {
    let mut nearest: Option<(usize, &'static str)> = None;
    for root in ["crate::", "tidewire::", "super::"] {
        let mut from = offset;
        while let Some(at) = code[from..].find(root).map(|at| at + from) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '$')
                && !code[..at].ends_with("::")
            {
                if nearest.is_none_or(|(best, _)| at < best) {
                    nearest = Some((at, root));
                }
                break;
            }
            from = at + root.len();
        }
    }
    nearest
}

/// The longest prefix of a path that is a file.
fn resolve(path: &[&str], modules: &BTreeSet<String>) -> Use {
    (1..=path.len())
        .rev()
        .map(|length| path[..length].join("/"))
        .find(|name| modules.contains(name))
        .map_or_else(|| Use::Unknown(format!("crate::{}", path.join("::"))), Use::File)
}

/// The paths of a use tree, which `text` starts with: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths_of_tree(text: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    tree(text.as_bytes(), 0, &mut Vec::new(), &mut paths);
    return paths;

    /// Reads one tree from `at`; returns where it ends.
    fn tree(text: &[u8], mut at: usize, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> usize {
        let depth = prefix.len();
        loop {
            at = skip_space(text, at);
            if text.get(at) == Some(&b'{') {
                at += 1;
                loop {
                    at = skip_space(text, at);
                    match text.get(at) {
                        None => break,
                        Some(b'}') => {
                            at += 1;
                            break;
                        }
                        Some(b',') => at += 1,
                        Some(_) => {
                            let end = tree(text, at, prefix, paths);
                            // Something that is no use tree: step over it, so that the loop ends.
                            at = end.max(at + 1);
                        }
                    }
                }
                break;
            }
            let start = at;
            while text.get(at).is_some_and(|c| c.is_ascii_alphanumeric() || *c == b'_' || *c == b'*') {
                at += 1;
            }
            if at > start {
                prefix.push(String::from_utf8_lossy(&text[start..at]).into_owned());
            }
            if text[at..].starts_with(b"::") {
                at += 2;
                continue;
            }
            paths.push(prefix.clone());
            at = skip_alias(text, at);
            break;
        }
        prefix.truncate(depth);
        at
    }

    fn skip_space(text: &[u8], mut at: usize) -> usize {
        while text.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        at
    }

    /// Steps over ` as Name`.
    fn skip_alias(text: &[u8], at: usize) -> usize {
        if !text[at..].starts_with(b" as ") {
            return at;
        }
        let name = at + b" as ".len();
        name + text[name..].iter().take_while(|c| c.is_ascii_alphanumeric() || **c == b'_').count()
    }
}

/// For each line, how many inline modules it is in. Relies on the form that rustfmt gives.
fn inline_module_depths(code: &str) -> Vec<usize> {
    let mut open: Vec<usize> = Vec::new();
    let mut depths = Vec::new();
    for line in code.lines() {
        let body = line.trim_start();
        let indent = line.len() - body.len();
        if body.starts_with('}') && open.last() == Some(&indent) {
            open.pop();
        }
        depths.push(open.len());
        let item = body.strip_prefix("pub ").or_else(|| body.strip_prefix("pub(crate) ")).unwrap_or(body);
        if item.starts_with("mod ") && item.trim_end().ends_with('{') {
            open.push(indent);
        }
    }
    depths.push(open.len());
    depths
}

#[test]
fn the_ladder_sees_every_form_of_use() {
    let modules: BTreeSet<String> = [
        "clock",
        "wire",
        "wire/control",
        "hub",
        "hub/batch",
        "hub/channel",
        "outbox",
        "client",
        "server",
        "lib",
    ]
    .map(str::to_owned)
    .into();
    let cases: &[(&str, &str, &[&str])] = &[
        ("outbox", "use crate::wire::Frame;", &[]),
        ("outbox", "use crate::hub::Hub;", &["hub (rung"]),
        (
            "outbox",
            "use crate::{clock::Now, hub::{self, channel::Channel}};",
            &["hub (rung", "hub/channel (rung"],
        ),
        ("outbox", "use crate::{\n    hub as h,\n    clock,\n};", &["hub (rung"]),
        ("outbox", "fn f(hub: &crate::hub::Hub) {}", &["hub (rung"]),
        ("outbox", "pub(crate) use crate::server::serve;", &["server (rung"]),
        ("outbox", "use crate::nowhere::X;", &["names no file"]),
        ("outbox", "use crate::hub::batch::Batch;", &["hub/batch (rung"]),
        ("hub/channel", "use super::batch::Batch;", &[]),
        ("hub/channel", "use super::Hub;", &["hub (rung"]),
        ("hub/batch", "use super::channel::Channel;", &["hub/channel (rung"]),
        ("hub/batch", "use super::{channel::Channel, Hub};", &["hub (rung", "hub/channel (rung"]),
        ("hub/batch", "mod tests {\n    use super::*;\n}\n", &[]),
        ("hub/batch", "mod tests {\n    use super::super::Hub;\n}\n", &["hub (rung"]),
        ("hub/batch", "mod tests {\n}\nuse super::Hub;\n", &["hub (rung"]),
        ("hub", "use channel::Channel;", &[]),
        ("hub/report", "use super::Hub;\nuse super::channel::Channel;", &[]),
        ("hub", "use crate::hub::report::count;", &[]),
        ("hub/tests", "use super::channel::Channel;", &[]),
        ("hub/tests", "use crate::server::serve;", &["server (rung"]),
        ("wire/control", "use super::Seq;", &[]),
        ("wire", "use crate::wire::control::Request;", &[]),
        ("client", "use crate::wire::control::Request;", &[]),
        ("client", "use crate::outbox::Outbox;", &["may use only"]),
        ("main", "use tidewire::server;", &[]),
        ("server", "use tidewire_proto::x;", &[]),
        ("nowhere", "", &["stands on no rung"]),
        ("outbox", "// use crate::hub::Hub;\nlet s = \"crate::hub\";", &[]),
    ];
    for (module, text, expected) in cases {
        let found = findings(module, &crate::code::without_comments(text), &modules);
        assert_eq!(found.len(), expected.len(), "{module}: {text:?}: {found:?}");
        for (finding, part) in found.iter().zip(*expected) {
            assert!(finding.contains(part), "{module}: {text:?}: {finding}");
        }
    }
}

#[test]
fn no_file_stands_on_two_rungs() {
    let entries: Vec<&str> = LADDER.concat();
    let mut names: Vec<&str> = entries.iter().flat_map(|entry| entry.split('|')).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    for (name, allowed) in ONLY {
        for entry in allowed.iter().chain([name]) {
            assert!(entries.contains(entry), "ONLY names {entry}, which is not on the ladder");
        }
    }
}
