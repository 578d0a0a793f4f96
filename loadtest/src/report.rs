//! What people see of a run: a page that needs nothing else, or text for a terminal. Reads files and writes one; what is in it
//! is the modules' below.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::runfile;

mod html;
mod over_time;
mod page;
mod peers;
mod plots;
mod runs;
#[cfg(test)]
pub(crate) mod sample;
mod scale;
mod scenario;
mod svg;
mod text;
mod words;

use runs::Source;

/// What the command line says.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Runs to show, one over the other: files that `run` or `peers` wrote
    #[arg(required = true, value_name = "RUN.json")]
    pub runs: Vec<PathBuf>,
    /// Write a page (HTML, nothing else needed) instead of text
    #[arg(short, long, value_name = "FILE.html")]
    pub output: Option<PathBuf>,
}

/// Shows runs.
pub(crate) fn main(args: &ReportArgs) -> Result<ExitCode, String> {
    let mut sources = Vec::new();
    for path in &args.runs {
        sources.push(Source { name: name(path, &args.runs), file: runfile::load(path)? });
    }
    match &args.output {
        Some(path) if args.runs.contains(path) => {
            return Err(format!("-o {}: that is one of the runs; name another file", path.display()));
        }
        Some(path) => runfile::save_bytes(path, page::page(&sources).as_bytes())?,
        None => print!("{}", text::text(&sources)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The file's name without folder and suffix; the whole path where that does not tell it from the others.
fn name(path: &Path, all: &[PathBuf]) -> String {
    let stem = |path: &Path| path.file_stem().map(|it| it.to_string_lossy().into_owned());
    let is_alone = all.iter().filter(|it| stem(it) == stem(path)).count() == 1;
    stem(path).filter(|_| is_alone).unwrap_or_else(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::sample::Sample;
    use super::*;

    #[test]
    fn files_are_called_by_what_tells_them_apart() {
        let all = ["a/before.json", "after.json", "b/before.json"].map(PathBuf::from);
        assert_eq!(all.each_ref().map(|it| name(it, &all)), ["a/before.json", "after", "b/before.json"]);
    }

    #[test]
    fn a_page_is_written_and_never_over_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let (run, out) = (folder.path().join("run.json"), folder.path().join("run.html"));
        runfile::save(&run, &Sample::default().run("x")).unwrap();
        main(&ReportArgs { runs: vec![run.clone()], output: Some(out.clone()) }).unwrap();
        assert!(std::fs::read_to_string(&out).unwrap().starts_with("<!DOCTYPE html>"));
        let error = main(&ReportArgs { runs: vec![run.clone()], output: Some(run) }).unwrap_err();
        assert!(error.contains("name another file"), "{error}");
        let error = main(&ReportArgs { runs: vec![out], output: None }).unwrap_err();
        assert!(error.contains("run.html") && error.contains("not the JSON"), "{error}");
    }
}
