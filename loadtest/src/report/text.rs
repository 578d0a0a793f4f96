//! A report for a terminal of 100 columns: the verdicts, the figures, a plot by percentile and the latency over time. Pure.

use std::fmt::Write as _;

use crate::figures::{Figure, figures};
use crate::units::{date, time, visible};

use super::page::{build, machine};
use super::plots::{percentile_curve, percentile_ticks, short, typical_phase};
use super::runs::{Group, Run, Source, groups};
use super::scale::Scale;
use super::words::{self, Tone};

/// Columns of the terminal.
const WIDTH: usize = 100;
/// Columns of the plot, without its axis.
const PLOT_WIDTH: usize = 80;
/// Lines of the plot.
const PLOT_HEIGHT: usize = 12;
/// Steps of a sparkline.
const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// What the lines of a plot are drawn with.
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";
/// Figures of the table.
const SHOWN: [&str; 11] = [
    "deliveries_per_s",
    "p50_ns",
    "p90_ns",
    "p99_ns",
    "p999_ns",
    "max_ns",
    "announced",
    "age_p99_ns",
    "server_cpus",
    "server_cpu_s_per_million",
    "server_peak_bytes",
];

/// The whole text.
pub(crate) fn text(sources: &[Source]) -> String {
    let mut out = String::new();
    for source in sources {
        let file = &source.file;
        // Writing into a string cannot fail.
        let _ = writeln!(out, "{}: {}", visible(&source.name), date(file.started_s));
        for line in [
            visible(&file.command.join(" ")),
            machine(&file.machine),
            format!("generator {}", build(&file.generator)),
        ] {
            wrapped(&mut out, "  ", &line);
        }
        for it in &file.skipped {
            wrapped(&mut out, "  ", &format!("left out: {}: {}", visible(&it.what), visible(&it.why)));
        }
    }
    for group in groups(sources) {
        scenario(&mut out, &group);
    }
    out
}

fn scenario(out: &mut String, group: &Group<'_>) {
    let _ = writeln!(out, "\n== {} ==", visible(group.name));
    if let Some(run) = group.runs.first() {
        wrapped(out, "", &words::settings(run.result));
    }
    for run in &group.runs {
        let name = if group.runs.len() > 1 { format!("{}: ", run.label) } else { String::new() };
        for (tone, said) in words::verdict(run.result) {
            let sign = match tone {
                Tone::Plain => "  ",
                Tone::Doubt => "? ",
                Tone::Alarm => "! ",
            };
            wrapped(out, sign, &format!("{name}{said}"));
        }
    }
    table(out, group);
    let lines = curves(group);
    if !lines.is_empty() {
        plot(out, &lines);
    }
    for run in &group.runs {
        sparklines(out, run, group);
    }
}

/// Figures below each other, runs and phases side by side as far as they fit.
fn table(out: &mut String, group: &Group<'_>) {
    let mut columns: Vec<(String, Vec<Figure>)> = Vec::new();
    for run in &group.runs {
        let all = figures(run.result);
        for phase in group.phases() {
            let label = match (group.runs.len(), group.phases().len()) {
                (1, _) => short(phase).to_owned(),
                (_, 1) => run.label.clone(),
                _ => format!("{} {}", run.label, short(phase)),
            };
            let of_phase = all.iter().filter(|it| it.phase.as_deref() == Some(phase));
            columns.push((visible(&label), of_phase.cloned().collect()));
        }
    }
    for columns in columns.chunks(3) {
        let mut keys: Vec<&Figure> = Vec::new();
        for figure in columns.iter().flat_map(|it| &it.1).filter(|it| SHOWN.contains(&it.kind.key)) {
            let is_known =
                |it: &&Figure| (it.kind.key, &it.behaviour) == (figure.kind.key, &figure.behaviour);
            if !keys.iter().any(is_known) {
                keys.push(figure);
            }
        }
        let mut line = format!("\n{:<31}", "median, spread");
        for (label, _) in columns {
            let _ = write!(line, " {:>22}", cut(label, 22));
        }
        let _ = writeln!(out, "{line}");
        for key in keys {
            let mut line = format!("{:<31}", cut(&visible(&key.title()), 31));
            for (_, figures) in columns {
                let is_same = |it: &&Figure| (it.kind.key, &it.behaviour) == (key.kind.key, &key.behaviour);
                let cell = figures.iter().find(is_same).map_or_else(|| "-".to_owned(), cell);
                let _ = write!(line, " {cell:>22}");
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
}

fn cell(figure: &Figure) -> String {
    let mark = if figure.is_generators() { "*" } else { "" };
    let median = figure.kind.unit.show(figure.median());
    let spread = figure.spread();
    if figure.values.len() > 1 && spread > 0.0 && spread.is_finite() {
        format!("{median}{mark} ~{:.0}%", spread * 100.0)
    } else {
        format!("{median}{mark}")
    }
}

/// A name and a curve for each run and phase that has one.
fn curves(group: &Group<'_>) -> Vec<(String, Vec<(f64, f64)>)> {
    let phases = group.phases();
    let mut curves = Vec::new();
    for run in &group.runs {
        for phase in &phases {
            let Some(histogram) = run.histogram(phase) else { continue };
            let label =
                if phases.len() > 1 { format!("{} {}", run.label, short(phase)) } else { run.label.clone() };
            curves.push((visible(&label), percentile_curve(&histogram)));
        }
    }
    curves
}

/// Latency by percentile in letters.
fn plot(out: &mut String, lines: &[(String, Vec<(f64, f64)>)]) {
    let points = || lines.iter().flat_map(|it| &it.1);
    let y = Scale::log(points().map(|it| it.1));
    let odds_max = points().map(|it| it.0).fold(10.0, f64::max);
    let x = Scale::Log { from: 1.0, to: odds_max };
    let mut canvas = vec![vec![' '; PLOT_WIDTH]; PLOT_HEIGHT];
    let letters: Vec<char> = LETTERS.chars().collect();
    for (number, (_, curve)) in lines.iter().enumerate().rev() {
        for (column, value) in columns(curve, x) {
            let row = PLOT_HEIGHT - 1 - cell_at(y.place(value), PLOT_HEIGHT);
            canvas[row][column] = letters[number % letters.len()];
        }
    }
    let mut words = vec![String::new(); PLOT_HEIGHT];
    for tick in y.ticks(time).iter().filter(|it| !it.label.is_empty()) {
        let row = PLOT_HEIGHT - 1 - cell_at(y.place(tick.at), PLOT_HEIGHT);
        if words[row].is_empty() {
            words[row].clone_from(&tick.label);
        }
    }
    let _ = writeln!(out, "\nlatency by percentile");
    for (word, row) in words.iter().zip(&canvas) {
        let row: String = row.iter().collect();
        let _ = writeln!(out, "{word:>9} |{}", row.trim_end());
    }
    let _ = writeln!(out, "{:>9} +{}", "", "-".repeat(PLOT_WIDTH));
    let mut axis = String::new();
    for tick in percentile_ticks(odds_max) {
        // Centred below its place, unless it would touch the one before or the edge.
        let middle = 11 + cell_at(x.place(tick.at), PLOT_WIDTH);
        let from = middle.saturating_sub(tick.label.chars().count() / 2);
        let from = from.min(WIDTH - tick.label.chars().count());
        if from > axis.chars().count() || axis.is_empty() {
            let _ = write!(axis, "{:1$}{2}", "", from - axis.chars().count(), tick.label);
        }
    }
    let _ = writeln!(out, "{axis}");
    if lines.len() > 1 {
        let names = lines.iter().zip(&letters).map(|((name, _), letter)| format!("{letter} {name}"));
        wrapped(out, "          ", &names.collect::<Vec<_>>().join(" · "));
    }
}

/// The value of a curve in each column that it reaches.
fn columns(curve: &[(f64, f64)], x: Scale) -> Vec<(usize, f64)> {
    let last = curve.last().map_or(0.0, |it| it.0);
    let mut found = Vec::new();
    for column in 0..PLOT_WIDTH {
        let reach = |it: &&(f64, f64)| cell_at(x.place(it.0), PLOT_WIDTH) >= column;
        match curve.iter().find(reach) {
            Some((_, value)) => found.push((column, *value)),
            None => break,
        }
        if cell_at(x.place(last), PLOT_WIDTH) == column {
            break;
        }
    }
    found
}

/// p50, p99 and the largest of each second, as bars of eight steps.
fn sparklines(out: &mut String, run: &Run<'_>, group: &Group<'_>) {
    for label in group.phases() {
        let Some(phase) = typical_phase(run, label) else { continue };
        let seconds: Vec<_> = phase.seconds_of.iter().filter(|it| it.max_ns > 0).collect();
        if seconds.len() < 2 {
            continue;
        }
        let name = if group.runs.len() > 1 {
            format!("{}, {}", run.label, short(label))
        } else {
            short(label).to_owned()
        };
        let _ = writeln!(out, "\n{} by second, {} s", visible(&name), seconds.len());
        let all: [(&str, Vec<f64>); 3] = [
            ("p50", seconds.iter().map(|it| it.p50_ns as f64).collect()),
            ("p99", seconds.iter().map(|it| it.p99_ns as f64).collect()),
            ("largest", seconds.iter().map(|it| it.max_ns as f64).collect()),
        ];
        for (word, values) in all {
            let (line, least, most) = sparkline(&values);
            let _ = writeln!(out, "{word:>9} {line} {} to {}", time(least), time(most));
        }
    }
}

/// Bars from 0, so that small changes look small; the worst of each column where there are more values than columns.
fn sparkline(values: &[f64]) -> (String, f64, f64) {
    let most = values.iter().copied().fold(0.0, f64::max);
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let width = values.len().div_ceil(60).max(1);
    let bar = |values: &[f64]| {
        let value = values.iter().copied().fold(0.0, f64::max);
        STEPS[cell_at(if most > 0.0 { value / most } else { 0.0 }, STEPS.len())]
    };
    (values.chunks(width).map(bar).collect(), least, most)
}

/// Which of so many cells a place from 0 to 1 is in.
fn cell_at(place: f64, cells: usize) -> usize {
    (1..cells).take_while(|cell| place * (cells as f64) >= *cell as f64).count()
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        text.to_owned()
    } else {
        text.chars().take(width - 1).chain(['…']).collect()
    }
}

/// Words on lines that fit, after a sign on the first.
fn wrapped(out: &mut String, sign: &str, text: &str) {
    let indent = sign.chars().count();
    let mut line = sign.to_owned();
    let mut is_empty = true;
    for word in text.split(' ') {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(out, "{}", line.trim_end());
            line = " ".repeat(indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    let _ = writeln!(out, "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::Sample;

    fn source(name: &str, sample: &Sample) -> Source {
        Source { name: name.to_owned(), file: sample.run(name) }
    }

    #[test]
    fn it_fits_the_terminal_and_says_what_counts() {
        let peers = (0..12).map(|it| format!("a-server-with-a-long-name-{it}")).collect();
        let many = Sample { subjects: peers, seconds: 400, ..Sample::default() };
        for sources in [
            vec![source("x", &Sample::default())],
            vec![
                source("x", &Sample::default()),
                source("y", &Sample { slowness: 2.0, ..Sample::default() }),
            ],
            vec![source("x", &many)],
        ] {
            let text = text(&sources);
            for line in text.lines() {
                assert!(line.chars().count() <= WIDTH, "{line}");
            }
            for part in
                ["== steady ==", "99.99 %", "latency by percentile", "Neither side was at its limit", "█"]
            {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }

    #[test]
    fn what_a_terminal_obeys_is_spelled_out() {
        let mut source = source("x", &Sample::default());
        source.file.results[0].subject.name = "a\u{1b}[31m".to_owned();
        source.file.command.push("\u{7}".to_owned());
        source.file.skipped[0].why = "\u{202e}".to_owned();
        let text = text(&[source]);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text}");
    }

    #[test]
    fn sparklines_begin_at_nothing() {
        assert_eq!(sparkline(&[10.0, 9.9, 5.0, 0.0]).0, "██▅▁");
        assert_eq!(sparkline(&[0.0, 0.0]).0, "▁▁");
        assert_eq!(sparkline(&vec![1.0; 1_000]).0.chars().count(), 59);
        assert_eq!([0.0, 0.49, 0.5, 1.0].map(|it| cell_at(it, 2)), [0, 0, 1, 1]);
    }
}
