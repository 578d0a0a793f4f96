//! The whole page: what was run, on what, by what; then the servers side by side, then each scenario. It needs no script and
//! nothing from outside, and says so to the browser.

use crate::compare::{Comparison, compare};
use crate::result::{BuildInfo, MachineInfo, RunFile, Subject};
use crate::units::{bytes, date, visible};

use super::html::{Cell, Html, table};
use super::runs::{Source, groups, labels};
use super::scenario::titles;
use super::{peers, scenario};

/// Its colours and sizes; light, dark and on paper.
const STYLE: &str = include_str!("style.css");

/// Even if a string got through as markup, nothing would run or be fetched.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// Threshold of the verdicts where two files are shown together; `compare` takes others.
const THRESHOLD: f64 = 0.05;

/// The page as a file.
pub(crate) fn page(sources: &[Source]) -> String {
    let groups = groups(sources);
    let mut names: Vec<&str> = Vec::new();
    groups.iter().for_each(|group| names.push(group.name));
    let title = format!("Load test: {}", visible(&names.join(", ")));
    let mut html = Html::default();
    html.element("html", &[("lang", &"en")], |html| {
        html.element("head", &[], |html| {
            html.void("meta", &[("charset", &"utf-8")]);
            html.void("meta", &[("http-equiv", &"Content-Security-Policy"), ("content", &POLICY)]);
            html.void("meta", &[("name", &"viewport"), ("content", &"width=device-width, initial-scale=1")]);
            html.leaf("title", &[], &title);
            html.style(STYLE);
        });
        html.element("body", &[], |html| {
            html.leaf("h1", &[], &title);
            header(html, sources);
            let comparison = match sources {
                [before, after] => Some(compare(&before.file, &after.file, THRESHOLD)),
                _ => None,
            };
            if let Some(comparison) = &comparison {
                differences(html, comparison);
            }
            if groups.len() > 1 {
                html.element("p", &[], |html| {
                    html.text("Scenarios:");
                    for name in &names {
                        html.text(" ");
                        html.leaf("a", &[("href", &format!("#{name}"))], name);
                    }
                });
            }
            let has_servers = groups
                .iter()
                .flat_map(|it| &it.runs)
                .any(|it| it.result.subject.name != groups[0].runs[0].result.subject.name);
            if has_servers && labels(&groups).len() > 1 {
                peers::section(html, &groups);
            }
            for group in &groups {
                scenario::section(html, group, comparison.as_ref());
            }
            html.leaf("p", &[("class", &"mute")], READING);
        });
    });
    html.into_document()
}

const READING: &str = "Latency counts from the instant at which the schedule wanted a message sent, so that a stall of the server or of \
    the generator is in it. An asterisk marks figures of repetitions in which the generator was the limit: they are no verdict \
    on the server.";

/// What was run, when, by what, on what.
fn header(html: &mut Html, sources: &[Source]) {
    html.element("header", &[], |html| {
        let mut head = vec!["run".to_owned()];
        head.extend(sources.iter().map(|it| visible(&it.name)));
        let row = |name: &str, value: &dyn Fn(&RunFile) -> String| {
            let values = sources.iter().map(|it| Cell::new(value(&it.file)));
            std::iter::once(Cell::new(name)).chain(values).collect::<Vec<_>>()
        };
        let rows = [
            row("started", &|it| date(it.started_s)),
            row("command", &|it| it.command.join(" ")),
            row("machine", &|it| machine(&it.machine)),
            row("generator", &|it| build(&it.generator)),
        ];
        html.element("div", &[("class", &"text")], |html| {
            table(html, "", &head, &rows);
            subjects(html, sources);
        });
        let mut skipped: Vec<_> = sources.iter().flat_map(|it| &it.file.skipped).collect();
        skipped.dedup();
        if !skipped.is_empty() {
            html.leaf("p", &[], "Left out:");
            html.element("ul", &[], |html| {
                for it in skipped {
                    html.leaf("li", &[], &format!("{}: {}", it.what, it.why));
                }
            });
        }
    });
}

/// The servers, each configuration once.
fn subjects(html: &mut Html, sources: &[Source]) {
    let mut seen: Vec<(&str, &Subject)> = Vec::new();
    for source in sources {
        for result in &source.file.results {
            // A server is started anew for every scenario, often on another port or with settings of its own: the first stands for all.
            let is_known =
                seen.iter().any(|(name, it)| *name == source.name && it.name == result.subject.name);
            if !is_known {
                seen.push((&source.name, &result.subject));
            }
        }
    }
    let rows: Vec<Vec<Cell>> = seen
        .into_iter()
        .map(|(file, it)| {
            let name = if sources.len() > 1 { format!("{}, {file}", it.name) } else { it.name.clone() };
            vec![
                Cell { small: it.note.clone().unwrap_or_default(), ..Cell::new(name) },
                Cell::new(it.version.clone().unwrap_or_else(|| "-".to_owned())),
                Cell::new(place(it)),
                Cell::new(it.command.clone()),
            ]
        })
        .collect();
    table(html, "", &titles(["server", "version", "placed", "started as, in its first scenario"]), &rows);
}

/// Which CPUs it had.
fn place(subject: &Subject) -> String {
    let mut parts = Vec::new();
    if let Some(workers) = subject.workers {
        parts.push(format!("{workers} {}", if workers == 1 { "worker" } else { "workers" }));
    }
    match subject.cpu {
        Some(cpu) => parts.push(format!("on CPU {cpu}")),
        None => parts.push(format!("on any of {} CPUs", subject.cpus)),
    }
    if let Some(cpu) = subject.generator_cpu {
        parts.push(format!("generator on CPU {cpu}"));
    }
    if subject.kept_awake {
        parts.push("CPUs kept awake".to_owned());
    }
    parts.join(", ")
}

/// The machine in a line.
pub(crate) fn machine(machine: &MachineInfo) -> String {
    let mut text =
        format!("{} × {}, {}", machine.cpus, machine.processor, bytes(machine.memory_bytes as f64));
    if machine.is_virtual {
        text.push_str(", a virtual machine");
    }
    if let Some(distribution) = &machine.distribution {
        text.push_str(&format!(", {distribution}"));
    }
    visible(&format!("{text}, kernel {}", machine.kernel))
}

/// How the generator was built, in a line.
pub(crate) fn build(build: &BuildInfo) -> String {
    let revision = build.revision.as_deref().unwrap_or("no revision");
    let mut text = format!("{}, {revision}, {}", build.version, build.profile);
    if let Some(rustc) = &build.rustc {
        text.push_str(&format!(", {rustc}"));
    }
    visible(&text)
}

/// What makes two files hard to compare.
fn differences(html: &mut Html, comparison: &Comparison) {
    for what in comparison.cannot.iter().chain(&comparison.warnings) {
        html.leaf("p", &[("class", &"doubt")], &format!("Between the two runs: {what}"));
    }
}

#[cfg(test)]
mod tests;
