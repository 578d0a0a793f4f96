//! Scenarios in TOML: `[[scenario]]` tables, several to a file. Unknown keys are errors.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Scenario;

/// Largest file that is read: it is written by people.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    scenario: Vec<Scenario>,
}

/// Reads a file. The error names it, the place, and what was expected.
pub(crate) fn read(path: &Path) -> Result<Vec<Scenario>, String> {
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let size = std::fs::metadata(path).map_err(|error| failed(&error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(failed(&format_args!(
            "it has {size} bytes; a scenario file has at most {FILE_BYTES_MAX}"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    parse(&text).map_err(|why| failed(&why))
}

/// Reads the text of a file.
pub(crate) fn parse(text: &str) -> Result<Vec<Scenario>, String> {
    let File { scenario: scenarios } =
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    if scenarios.is_empty() {
        return Err(
            "it has no [[scenario]]; loadtest scenarios --toml NAME prints one to start from".to_owned()
        );
    }
    for scenario in &scenarios {
        scenario.check()?;
    }
    Ok(scenarios)
}

/// The scenario as a file has it.
pub(crate) fn print(scenario: &Scenario) -> Result<String, String> {
    toml::to_string(&File { scenario: vec![scenario.clone()] }).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Behaviour, Load, all};

    #[test]
    fn what_is_printed_is_read_back() {
        for scenario in all() {
            let text = print(&scenario).unwrap();
            assert_eq!(parse(&text).as_deref(), Ok(&[scenario][..]), "{text}");
        }
    }

    #[test]
    fn results_carry_it_whole() {
        for scenario in all() {
            let json = serde_json::to_string(&scenario).unwrap();
            assert_eq!(serde_json::from_str::<Scenario>(&json).unwrap(), scenario, "{json}");
        }
    }

    #[test]
    fn a_short_file_is_enough() {
        let text = "[[scenario]]\nname = 'mine'\nload = { scheduled = { per_s = 5 } }\n\
                    [[scenario.groups]]\ncount = 3\n[[scenario.groups]]\ncount = 1\nbehaviour = { slow = { read_bytes_per_s = 9 } }\n\
                    [scenario.server]\n'batch.window_ms' = '5'\n";
        let [mine] = parse(text).unwrap().try_into().unwrap();
        assert_eq!((mine.publishers, mine.healthy(), mine.payload_bytes), (1, 3, 128));
        assert!(matches!(mine.load, Load::Scheduled { per_s } if per_s.get() == 5));
        assert_eq!(mine.groups[1].behaviour, Behaviour::Slow { read_bytes_per_s: 9 });
        assert_eq!(mine.server["batch.window_ms"], "5");
    }

    #[test]
    fn the_example_files_are_right() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            assert!(!read(&path).unwrap().is_empty(), "{}", path.display());
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let good = "[[scenario]]\nname = 'a'\nload = { scheduled = { per_s = 5 } }\n[[scenario.groups]]\ncount = 1\n";
        assert!(parse(good).is_ok());
        // (what is wrong, what the error must hold)
        let cases: [(String, &[&str]); 7] = [
            (String::new(), &["scenario"]),
            ("scenario = []".to_owned(), &["[[scenario]]"]),
            (good.replace("count", "cuont"), &["line 5", "cuont", "count"]),
            (good.replace("= 5", "= 0"), &["line 3", "0", "nonzero"]),
            (good.replace("= 5", "= 'x'"), &["line 3", "string", "per_s = 'x'"]),
            (format!("{good}behaviour = 'sleepy'\n"), &["line 6", "sleepy", "stalled"]),
            (good.replace("= 1", "= 0"), &["healthy"]),
        ];
        for (text, expected) in cases {
            let problem = parse(&text).unwrap_err();
            assert!(expected.iter().all(|it| problem.contains(it)), "{text}\n{problem}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let problem = read(Path::new("/nonexistent/a.toml")).unwrap_err();
        assert!(problem.starts_with("/nonexistent/a.toml: "), "{problem}");
    }
}
