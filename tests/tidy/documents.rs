//! What the documents claim: the files that they name and the tables that they hold. Reads text, never a file.

use std::collections::BTreeSet;

/// The files of this repository that a document names: words with a known suffix or a folder of ours in front. Not a
/// bare `NAME.toml`, which may be the reader's own.
pub(crate) fn paths_in(document: &str) -> BTreeSet<String> {
    const SUFFIXES: &[&str] = &[".rs", ".md", ".proto", ".sh", ".py", ".yml"];
    const FOLDERS: &[&str] = &[
        "src/",
        "docs/",
        "proto/",
        "scripts/",
        "tests/",
        "benches/",
        "loadtest/",
        "fuzz/",
        ".ci/",
        ".github/",
    ];
    document
        .split(|c: char| !(c.is_ascii_alphanumeric() || "._-/".contains(c)))
        .map(|word| word.trim_start_matches("./").trim_end_matches(['.', '-']))
        .filter(|word| {
            let named = SUFFIXES.iter().any(|suffix| word.len() > suffix.len() && word.ends_with(suffix));
            named || FOLDERS.iter().any(|folder| word.starts_with(folder))
        })
        // Addresses and paths of other places.
        .filter(|word| !word.starts_with('/') && !word.contains("//"))
        .map(str::to_owned)
        .collect()
}

/// Whether a name in a document is a file or a folder of the repository, or of `src/`, as in `hub/batch.rs`.
pub(crate) fn exists(name: &str, files: &BTreeSet<String>) -> bool {
    let folder =
        |path: &str| files.iter().any(|file| file.starts_with(&format!("{}/", path.trim_end_matches('/'))));
    [name.to_owned(), format!("src/{name}")].iter().any(|path| files.contains(path) || folder(path))
}

/// The rows of the one table that has a row opening with `key`, without its heading, cut to `cells` cells. Backquotes are
/// left out.
pub(crate) fn table_with(document: &str, key: &[&str], cells: usize) -> Vec<Vec<String>> {
    let mut tables: Vec<Vec<Vec<String>>> = vec![Vec::new()];
    for line in document.lines() {
        match line.trim().strip_prefix('|') {
            Some(row) => {
                let row =
                    row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).take(cells).collect();
                tables.last_mut().expect("never empty").push(row);
            }
            None => tables.push(Vec::new()),
        }
    }
    tables.retain(|table| {
        table.iter().any(|row| row.iter().zip(key).filter(|(cell, key)| cell == key).count() == key.len())
    });
    assert_eq!(tables.len(), 1, "tables with a row {key:?}");
    // The names of the columns, and the line below them.
    tables.remove(0).split_off(2)
}

#[test]
fn documents_are_read_as_meant() {
    let text = "See `docs/PROTOCOL.md`, [x](src/close.rs) and hub/batch.rs. Run scripts/test.sh; https://a.example/b.md /etc/x.toml";
    assert_eq!(
        paths_in(text),
        ["docs/PROTOCOL.md", "hub/batch.rs", "scripts/test.sh", "src/close.rs"].map(str::to_owned).into()
    );
    let files: BTreeSet<String> = ["src/hub/batch.rs", "proto/tidewire.proto"].map(str::to_owned).into();
    for (name, expected) in [
        ("hub/batch.rs", true),
        ("src/hub/batch.rs", true),
        ("proto/", true),
        ("src/hub", true),
        ("src/no.rs", false),
    ] {
        assert_eq!(exists(name, &files), expected, "{name}");
    }
    let text = "| code | name |\n| --- | --- |\n| `1000` | `x_y` | z |\n| 1001 | b | z |\n\n| name |\n| --- |\n| a_b | c |\n";
    assert_eq!(table_with(text, &["1000", "x_y"], 2), [["1000", "x_y"], ["1001", "b"]]);
    assert_eq!(table_with(text, &["a_b"], 1), [["a_b"]]);
}
