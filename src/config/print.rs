//! The configuration as text, from the table of keys: the commented default file and the reference. Pure.

use std::fmt::Write as _;

use super::{Config, KEYS, SECTIONS};

const PREAMBLE: &str = "\
# The configuration of tidewire: every key with its default. Keep only what you change.
# A flag wins over the environment, the environment over this file, this file over the defaults.
";

/// A commented TOML file with every key at its default. What depends on the machine is commented out.
#[must_use]
pub fn default_file() -> String {
    let defaults = Config::default();
    let mut out = PREAMBLE.to_owned();
    for (section, doc) in sections() {
        if let Some(section) = section {
            let _ = write!(out, "\n{}[{section}]\n", comment(&doc));
        }
        for key in KEYS.iter().filter(|key| key.section() == section) {
            let remark = format!("{}\nTakes {}.", key.doc(), key.expected());
            let off = if key.varies().is_some() { "# " } else { "" };
            let _ = write!(out, "\n{}{off}{} = {}\n", comment(&remark), key.name(), key.value(&defaults));
        }
    }
    out
}

/// The reference of every key as Markdown tables, for `docs/`. The same on every machine.
#[must_use]
pub fn reference() -> String {
    let defaults = Config::default();
    let mut out = String::from(
        "# Configuration\n\n\
         Printed by `tidewire config --print-reference`; a test keeps the two equal.\n\n\
         Every key can be set in a TOML file (`--config FILE` or `TIDEWIRE_CONFIG`), by its environment variable and by \
         `--set KEY=VALUE`.\nA flag wins over the environment, the environment over the file, the file over the default. \
         Durations are whole milliseconds, sizes whole bytes.\n",
    );
    for (section, doc) in sections() {
        match section {
            Some(section) => {
                let _ = write!(out, "\n## `[{section}]`\n\n{doc}\n");
            }
            None => out.push_str("\n## Top of the file\n"),
        }
        out.push_str("\n| key | default | takes | meaning |\n| --- | --- | --- | --- |\n");
        for key in KEYS.iter().filter(|key| key.section() == section) {
            let default =
                key.varies().map_or_else(|| format!("`{}`", key.value(&defaults)), ToOwned::to_owned);
            let meaning = key.doc().replace('\n', " ");
            let _ = writeln!(
                out,
                "| `{}`<br>`{}` | {default} | {} | {meaning} |",
                key.path(),
                key.variable(),
                key.expected()
            );
        }
    }
    out.push_str("\n## Rules between keys\n\n");
    for relation in super::relation::RELATIONS {
        let of = relation.of.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "- `{}` has a floor that follows from {of}: {}.", relation.key, relation.since);
    }
    for rule in super::rule::RULES {
        let _ = writeln!(out, "- `{}` is refused {}: {}.", rule.key, rule.when, rule.remedy);
    }
    out
}

/// The top of the file, then its sections, each with what it is about.
fn sections() -> impl Iterator<Item = (Option<&'static str>, String)> {
    let named = SECTIONS.iter().map(|&(section, doc)| {
        (Some(section), doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join("\n"))
    });
    std::iter::once((None, String::new())).chain(named)
}

fn comment(text: &str) -> String {
    text.lines().fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "# {line}");
        out
    })
}
