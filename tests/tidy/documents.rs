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

/// The tests of a source file, as `FILE::TEST`; FILE is its name, or that of its folder for `main.rs`, without a suffix.
///
/// A macro may make tests of a list, `FILE TEST;` a line in the call of its `$then!`: one for each kind of something.
pub(crate) fn tests_in(path: &str, text: &str) -> Vec<String> {
    let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    let mut found = Vec::new();
    let (mut marked, mut listed) = (false, false);
    for line in text.lines().map(str::trim) {
        listed = line.starts_with("$then! {") || (listed && line != "}");
        if let Some((file, test)) = line.strip_suffix(';').and_then(|line| line.split_once(' '))
            && listed
        {
            found.push(format!("{file}::{test}"));
        }
        let is_test = line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        marked |= is_test;
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if let Some((function, _)) = function.and_then(|rest| rest.split_once('(')) {
            if marked {
                found.push(format!("{name}::{function}"));
            }
            marked = false;
        }
    }
    found
}

/// What a document names as `FILE::TEST`.
pub(crate) fn tests_named(document: &str) -> BTreeSet<String> {
    let quoted = document.split('`').skip(1).step_by(2);
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    quoted
        .filter(|text| text.split_once("::").is_some_and(|(file, test)| is_word(file) && is_word(test)))
        .map(str::to_owned)
        .collect()
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

#[test]
fn tests_are_found_by_their_names() {
    let text = "#[test]\nfn a_one() {\n}\nfn helper(x: u8) {}\n#[tokio::test]\nasync fn two() {}\n    #[test]\n    #[cfg(x)]\n    fn three() {}";
    assert_eq!(tests_in("tests/end_to_end/tls.rs", text), ["tls::a_one", "tls::two", "tls::three"]);
    let list = "mod cases;\n$then! { ($($what)*)\n    faults full;\n}\nuse other;";
    assert_eq!(tests_in("tests/cluster/main.rs", list), ["faults::full"]);
    let document = "`tls::a_one`, `bad::no test`, std::fs, `x::Y` and `keys::ok_2`";
    assert_eq!(tests_named(document), ["keys::ok_2", "tls::a_one"].map(str::to_owned).into());
}
