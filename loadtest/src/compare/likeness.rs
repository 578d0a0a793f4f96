//! Whether two runs measured the same thing in the same way: what differs, and whether that forbids a comparison. Pure.

use serde_json::Value;

use crate::result::{RunFile, ScenarioResult};
use crate::scenario::Scenario;
use crate::units::visible;

/// Fields of a scenario that change how exact it is, or how it reads, but not what it asks for.
const HARMLESS: [&str; 4] = ["about", "duration_s", "warmup_s", "interval_s"];

/// Something that two runs do not share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// In words.
    pub what: String,
    /// Whether figures must not be compared.
    pub is_fatal: bool,
}

/// What differs around all results: the machine, and how the generator was built.
pub(crate) fn of_files(before: &RunFile, after: &RunFile) -> Vec<Difference> {
    let mut found = Vec::new();
    for field in fields(&before.machine, &after.machine) {
        let what = format!("machine: {field}: the figures say more about the machines than about the change");
        found.push(Difference { what, is_fatal: false });
    }
    let (old, new) = (&before.generator.profile, &after.generator.profile);
    if old != new {
        let what = format!(
            "generator: profile was {}, is {}: build both with the same profile",
            visible(old),
            visible(new)
        );
        found.push(Difference { what, is_fatal: true });
    }
    found
}

/// What differs between two results of the same names.
pub(crate) fn differences(before: &ScenarioResult, after: &ScenarioResult) -> Vec<Difference> {
    let place = format!("{}, {}", visible(&before.subject.name), visible(&before.scenario.name));
    let scenario = settings(&before.scenario, &after.scenario).into_iter().map(|(field, is_harmless)| {
        let advice = if is_harmless { "" } else { ": run both with the same settings" };
        Difference { what: format!("{place}: scenario: {field}{advice}"), is_fatal: !is_harmless }
    });
    let (mut old, mut new) = (before.subject.clone(), after.subject.clone());
    // What is compared is often another build, at another address.
    for subject in [&mut old, &mut new] {
        subject.command.clear();
        subject.version = None;
    }
    let subject = fields(&old, &new)
        .into_iter()
        .map(|field| Difference { what: format!("{place}: server: {field}"), is_fatal: false });
    scenario.chain(subject).collect()
}

/// The settings of a scenario that differ, in words, and whether each is harmless.
pub(crate) fn settings(before: &Scenario, after: &Scenario) -> Vec<(String, bool)> {
    let is_harmless = |text: &String| HARMLESS.iter().any(|name| text.starts_with(&format!("{name} ")));
    let differing = fields(before, after).into_iter().filter(|text| !text.starts_with("about "));
    differing.map(|text| (text.clone(), is_harmless(&text))).collect()
}

/// The fields of two values of one type that differ: `name was X, is Y`.
fn fields(before: &impl serde::Serialize, after: &impl serde::Serialize) -> Vec<String> {
    let (Ok(Value::Object(before)), Ok(Value::Object(after))) =
        (serde_json::to_value(before), serde_json::to_value(after))
    else {
        return Vec::new();
    };
    let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
    let differing = names.filter(|name| before.get(*name) != after.get(*name));
    let show = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "not set".to_owned(),
        Some(Value::String(text)) => visible(text),
        Some(other) => visible(&other.to_string()),
    };
    differing
        .map(|name| format!("{name} was {}, is {}", show(before.get(name)), show(after.get(name))))
        .collect()
}
