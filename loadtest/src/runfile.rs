//! Reads and writes the file of a run, with errors that name the file, the field and the remedy. Knows the shape only as far as it
//! must be told apart from other shapes; `result` has the rest.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use serde::Deserialize;

use crate::result::{FORMAT, RunFile};

/// Largest file that is read: a run of ten servers, twenty scenarios and ten repetitions has a tenth of it.
const BYTES_MAX: u64 = 256 << 20;

/// The one field that every format has.
#[derive(Deserialize)]
struct Header {
    format: Option<u64>,
}

/// Reads a file and checks that everything in it can be used.
pub(crate) fn load(path: &Path) -> Result<RunFile, String> {
    let named = |problem: String| format!("{}: {problem}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(|error| named(format!("cannot be read: {error}")))?;
    file.take(BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| named(format!("cannot be read as text: {error}")))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(named(format!("is larger than {} MiB, which no run is", BYTES_MAX >> 20)));
    }
    parse(&text).map_err(named)
}

/// A file's text as a run.
fn parse(text: &str) -> Result<RunFile, String> {
    let header: Header = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Eof => format!("ends early, at line {}: it was cut off", error.line()),
        _ => format!("is not the JSON of a run: {error}"),
    })?;
    match header.format {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => {
            return Err(format!(
                "format {format}, but this program reads format {FORMAT}: run the scenarios again with this version, \
                 or read the file with the version that wrote it"
            ));
        }
        None => {
            return Err("has no field `format`: not a file that `loadtest run` or `peers` wrote".to_owned());
        }
    }
    let run: RunFile = serde_json::from_str(text).map_err(|error| format!("format {FORMAT}, but {error}"))?;
    check(&run)?;
    Ok(run)
}

/// What the types do not say.
fn check(run: &RunFile) -> Result<(), String> {
    if run.results.is_empty() && run.skipped.is_empty() {
        return Err("`results` is empty: nothing was run".to_owned());
    }
    for (index, result) in run.results.iter().enumerate() {
        let place = || format!("results[{index}] ({} {})", result.subject.name, result.scenario.name);
        if result.repetitions.is_empty() {
            return Err(format!("{}: `repetitions` is empty", place()));
        }
        for (number, repetition) in result.repetitions.iter().enumerate() {
            for phase in &repetition.phases {
                phase.latency_histogram.decode().map_err(|problem| {
                    let place = place();
                    format!(
                        "{place}.repetitions[{number}] phase {}: latency_histogram: {problem}",
                        phase.label
                    )
                })?;
            }
        }
    }
    Ok(())
}

/// Writes a run; the old file stays whole until the new one is.
pub(crate) fn save(path: &Path, run: &RunFile) -> Result<(), String> {
    let mut text = serde_json::to_vec_pretty(run).map_err(|error| format!("{}: {error}", path.display()))?;
    text.push(b'\n');
    save_bytes(path, &text)
}

/// Writes a file in one step.
pub(crate) fn save_bytes(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let write = || {
        // Not a regular file, or a link (/dev/stdout is both): nothing to keep whole, and nothing to rename.
        if fs::symlink_metadata(path).is_ok_and(|it| !it.is_file()) {
            return File::create(path)?.write_all(bytes);
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".part");
        let mut out = BufWriter::new(File::create(&name)?);
        out.write_all(bytes)?;
        out.into_inner()?.sync_data()?;
        fs::rename(&name, path)
    };
    write().map_err(|error| format!("{}: cannot be written: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::Sample;

    #[test]
    fn what_is_saved_is_loaded() {
        let run = Sample::default().run("before");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        for _ in 0..2 {
            save(&path, &run).unwrap();
            let again = load(&path).unwrap();
            assert_eq!(serde_json::to_value(&run).unwrap(), serde_json::to_value(&again).unwrap());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no piece is left behind");
        let phase = &run.results[0].repetitions[0].phases[0];
        assert_eq!(phase.latency_histogram.decode().unwrap().len(), phase.latency.count);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let good = serde_json::to_string(&Sample::default().run("before")).unwrap();
        let with = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = serde_json::from_str(&good).unwrap();
            change(&mut value);
            value.to_string()
        };
        let phase = "/results/0/repetitions/1/phases/0";
        let histogram = |value: &mut serde_json::Value, text: &str| {
            value.pointer_mut(phase).unwrap()["latency_histogram"] = text.into();
        };
        let cut = |value: &mut serde_json::Value| {
            let whole = value.pointer(phase).unwrap()["latency_histogram"].as_str().unwrap().to_owned();
            histogram(value, &whole[..whole.len() / 8 * 4]);
        };
        let cases: [(String, &[&str]); 9] = [
            ("hello".to_owned(), &["not the JSON of a run"]),
            ("[[]]".to_owned(), &["not the JSON of a run"]),
            (good[..good.len() / 2].to_owned(), &["cut off"]),
            ("{}".to_owned(), &["no field `format`"]),
            (with(&|it| it["format"] = 1.into()), &["format 1", "reads format 2", "run the scenarios again"]),
            (
                with(&|it| it["results"][0]["scenario"]["publishers"] = "x".into()),
                &["format 2, but", "invalid type"],
            ),
            (
                with(&|it| it["results"][0]["repetitions"] = serde_json::json!([])),
                &["results[0]", "`repetitions` is empty"],
            ),
            (with(&|it| histogram(it, "%%%")), &["repetitions[1]", "latency_histogram", "base64"]),
            (with(&cut), &["repetitions[1]", "latency_histogram", "does not decode"]),
        ];
        for (text, expected) in cases {
            let error = parse(&text).unwrap_err();
            for part in expected {
                assert!(error.contains(part), "{part:?} is not in {error}");
            }
        }
        let error = load(Path::new("/nonexistent/run.json")).unwrap_err();
        assert!(error.starts_with("/nonexistent/run.json: cannot be read"), "{error}");
    }
}
