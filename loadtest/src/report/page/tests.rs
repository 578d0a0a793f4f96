//! Whole pages: foreign strings, colours, and what must be in it.

use super::*;
use crate::report::html::check::tags;
use crate::report::sample::Sample;
use proptest::prelude::*;

fn source(name: &str, sample: &Sample) -> Source {
    Source { name: name.to_owned(), file: sample.run(name) }
}

/// A run with a foreign string wherever there can be one.
fn foreign(text: &str) -> Source {
    let sample = Sample { scenarios: vec!["slow_reader"], seconds: 3, repetitions: 1, ..Sample::default() };
    let mut source = source("x", &sample);
    source.name = format!("x{text}");
    let file = &mut source.file;
    file.command = vec![format!("x{text}")];
    file.machine.processor = format!("x{text}");
    file.machine.kernel = format!("x{text}");
    file.generator.revision = Some(format!("x{text}"));
    file.skipped[0].what = format!("x{text}");
    file.skipped[0].why = format!("x{text}");
    let result = &mut file.results[0];
    result.subject.name = format!("x{text}");
    result.subject.version = Some(format!("x{text}"));
    result.subject.command = format!("x{text}");
    result.subject.note = Some(format!("x{text}"));
    result.scenario.name = format!("x{text}");
    result.scenario.about = format!("x{text}");
    let repetition = &mut result.repetitions[0];
    repetition.ended = vec![format!("x{text}")];
    repetition.refusals = [(format!("x{text}"), 3)].into();
    repetition.others = repetition.others.values().map(|it| (format!("x{text}"), *it)).collect();
    for phase in &mut repetition.phases {
        phase.label = format!("x{text}{}", phase.label);
        phase.age_of = phase.age_of.values().map(|it| (format!("x{text}"), it.clone())).collect();
        phase.age = phase.age.values().map(|it| (format!("x{text}"), *it)).collect();
        for (number, stage) in phase.stages.iter_mut().enumerate() {
            stage.name = format!("x{text}{number}");
            stage.meaning = format!("x{text}");
        }
    }
    source
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Whatever the strings say, the page has the same elements with the same attributes.
    #[test]
    fn foreign_strings_change_no_markup(any in any::<String>(), nasty in "[<>&\"'/=!\\-a-z ]{0,24}") {
        let plain = tags(&page(&[foreign("")]));
        for text in [any.as_str(), nasty.as_str(), "<script>alert(1)</script>", "\"><img src=x onerror=y>", "]]>--><svg/onload=x>"] {
            let document = page(&[foreign(text)]);
            prop_assert!(!document.contains("<script") && !document.contains("<img"));
            prop_assert_eq!(&tags(&document), &plain);
        }
    }
}

#[test]
fn the_page_needs_nothing_from_outside() {
    let two = Sample { subjects: vec!["tidewire".to_owned(), "ws".to_owned()], ..Sample::default() };
    for sources in [vec![source("a", &Sample::default())], vec![source("a", &two), source("b", &two)]] {
        let document = page(&sources);
        for tag in tags(&document) {
            let name = tag.split(' ').next().unwrap();
            assert!(!["script", "link", "img", "iframe", "use", "image", "object"].contains(&name), "{tag}");
            assert!(!tag.contains("src=") && !tag.contains(" on"), "{tag}");
        }
        assert!(!document.contains("url(") && !document.contains("@import"));
        assert!(
            !document.contains("NaN") && !document.contains("inf"),
            "a plot with a place that is no number"
        );
    }
}

#[test]
fn the_page_has_what_a_reader_looks_for() {
    let document = page(&[source("a", &Sample::default())]);
    for part in [
        "2026-11-25 09:58 UTC",
        "AMD EPYC",
        "284ba3bc12ae",
        "tidewire serve --workers 1",
        "mosquitto: not installed",
        "99.99 %",
        "Latency over time",
        "Messages out, got and asked",
        "CPU of both sides",
        "Resident memory",
        "Mean latency as a sum of its stages",
        "published = received + announced",
        "age p99 of what is read, stalled",
        "Age p99 of what is read by: stalled",
    ] {
        assert!(document.contains(part), "{part}");
    }
    assert!(!document.contains("Servers side by side"));
    let two =
        page(&[source("a", &Sample::default()), source("b", &Sample { slowness: 2.0, ..Sample::default() })]);
    assert!(two.contains(">WORSE<"), "two files come with verdicts");
}

/// Red, green and blue of `--name:#rrggbb` in a part of the style sheet.
fn colour(part: &str, name: &str) -> [f64; 3] {
    let at = part.find(&format!("--{name}:#")).unwrap_or_else(|| panic!("no {name}")) + name.len() + 4;
    let digits: String = part[at..].chars().take_while(char::is_ascii_hexdigit).collect();
    let digits = if digits.len() == 3 { digits.chars().flat_map(|c| [c, c]).collect() } else { digits };
    [0, 2, 4].map(|from| f64::from(u8::from_str_radix(&digits[from..from + 2], 16).unwrap()) / 255.0)
}

/// Contrast as WCAG 2 defines it.
fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
    let light = |colour: [f64; 3]| {
        let linear =
            colour.map(|it| if it <= 0.04045 { it / 12.92 } else { ((it + 0.055) / 1.055).powf(2.4) });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05
    };
    let (a, b) = (light(a), light(b));
    a.max(b) / a.min(b)
}

#[test]
fn colours_can_be_read_in_light_and_dark() {
    let (light, dark) = STYLE.split_once("prefers-color-scheme:dark").unwrap();
    for part in [light, dark] {
        let names = ["ink", "mute", "good", "bad", "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"];
        for (name, ground) in names.iter().flat_map(|name| [(name, "paper"), (name, "box")]) {
            let contrast = contrast(colour(part, name), colour(part, ground));
            assert!(contrast >= 4.5, "{name} on {ground}: {contrast:.2}");
        }
    }
    for class in 0..super::super::svg::COLOURS {
        assert!(STYLE.contains(&format!(".c{class}{{")), "c{class}");
    }
}
