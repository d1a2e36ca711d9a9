//! The results for a person to read.

use std::fmt::Write as _;

use crate::results::{
    CriterionResult, GoalResult, Results, Spread, SubjectResult, Summary, Verdict,
};

/// How wide the column of names is.
const NAME: usize = 68;

/// All results as text.
pub fn render(results: &Results) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = machine(results, &mut page);
    for goal in &results.goals {
        let _ = one(goal, &mut page);
    }
    let _ = verdicts(results, &mut page);
    page
}

type Written = std::fmt::Result;

fn machine(results: &Results, page: &mut String) -> Written {
    let machine = &results.machine;
    writeln!(page, "oncegate {}", machine.oncegate)?;
    writeln!(page, "command: oncegate-bench {}", machine.arguments.join(" "))?;
    writeln!(
        page,
        "rounds: {}, each load {} s after {} s; medians over the rounds, then lowest–highest",
        results.rounds, results.seconds, results.warmup
    )?;
    let (cores, memory) = (machine.cores, machine.memory_gb);
    writeln!(page, "{}, {cores} cores, {memory} GB, Linux {}", machine.cpu, machine.kernel)?;
    for (name, version) in &machine.programs {
        writeln!(page, "{name}: {version}")?;
    }
    writeln!(
        page,
        "PostgreSQL's settings: {}; durable, the rest as by default",
        machine.settings.join(" ")
    )
}

fn one(goal: &GoalResult, page: &mut String) -> Written {
    if let Some(why) = &goal.not_run {
        return writeln!(page, "\n{}  {}: NOT MEASURED: {why}", goal.name, goal.title);
    }
    writeln!(page, "\n{}  {}", goal.name, goal.title)?;
    if let Some(cost) = goal.fdatasync_us {
        writeln!(page, "  fdatasync of 8 KiB: {}", spread(cost, "µs"))?;
    }
    for subject in &goal.subjects {
        self::subject(subject, page)?;
    }
    for criterion in &goal.criteria {
        self::criterion(criterion, page)?;
    }
    Ok(())
}

fn subject(subject: &SubjectResult, page: &mut String) -> Written {
    write!(page, "  {:<NAME$}", subject.what)?;
    if let Some(summary) = &subject.summary {
        self::summary(summary, page)?;
    }
    writeln!(page)?;
    for problem in subject.problems() {
        writeln!(page, "    !! {problem}")?;
    }
    Ok(())
}

fn summary(summary: &Summary, page: &mut String) -> Written {
    if let Some(rate) = summary.rate {
        let spread = between(rate, count);
        write!(page, " {:>9}/s {spread:<19}", count(rate.median))?;
        let latency = |millis: Option<f64>| millis.map_or("–".to_owned(), digits);
        let (p50, p99) = (latency(summary.p50_ms), latency(summary.p99_ms));
        write!(page, " p50 {p50:>6} p99 {p99:>6} ms")?;
    }
    let cpu: Vec<String> = [
        ("client", summary.client_cpu),
        ("server", summary.server_cpu),
        ("database", summary.database_cpu),
    ]
    .into_iter()
    .filter_map(|(who, used)| Some(format!("{who} {:.2}", used?)))
    .collect();
    if !cpu.is_empty() {
        write!(page, "  CPU s: {}", cpu.join(", "))?;
    }
    for (name, figure) in &summary.figures {
        write!(page, "  {name} {}", digits(*figure))?;
    }
    Ok(())
}

fn criterion(criterion: &CriterionResult, page: &mut String) -> Written {
    let figure = criterion.figure.map(|figure| spread(figure, criterion.unit)).unwrap_or_default();
    let verdict = match &criterion.verdict {
        Verdict::Met => "met",
        Verdict::Missed => "MISSED",
        Verdict::Told => "",
        Verdict::NotMeasured(_) => "NOT MEASURED",
    };
    let line = format!(
        "  → {:<width$} {figure:<36} {:<10} {verdict}",
        criterion.what,
        criterion.goal,
        width = NAME - 2
    );
    writeln!(page, "{}", line.trim_end())?;
    if let Verdict::NotMeasured(why) = &criterion.verdict {
        writeln!(page, "    !! {why}")?;
    }
    Ok(())
}

/// How many of each verdict there are, and which goals were missed.
fn verdicts(results: &Results, page: &mut String) -> Written {
    let named = |wanted: fn(&Verdict) -> bool| -> Vec<String> {
        let of = |goal: &GoalResult| -> Vec<String> {
            let criteria = goal.criteria.iter().filter(|criterion| wanted(&criterion.verdict));
            criteria.map(|criterion| format!("{} {}", goal.name, criterion.what)).collect()
        };
        results.goals.iter().flat_map(of).collect()
    };
    let met = named(|verdict| *verdict == Verdict::Met);
    let missed = named(|verdict| *verdict == Verdict::Missed);
    let mut unknown = named(|verdict| matches!(verdict, Verdict::NotMeasured(_)));
    let not_run = results.goals.iter().filter(|goal| goal.not_run.is_some());
    unknown.extend(not_run.map(|goal| goal.name.to_owned()));
    writeln!(page, "\n{} met", met.len())?;
    for (title, names) in [("missed", missed), ("NOT MEASURED", unknown)] {
        writeln!(page, "{} {title}", names.len())?;
        for name in names {
            writeln!(page, "  {name}")?;
        }
    }
    Ok(())
}

fn spread(figure: Spread, unit: &str) -> String {
    format!("{} {unit} {}", digits(figure.median), between(figure, digits))
}

/// From the lowest to the highest, where they are not one.
fn between(figure: Spread, write: fn(f64) -> String) -> String {
    let Spread { min, max, .. } = figure;
    if min < max { format!("({}–{})", write(min), write(max)) } else { String::new() }
}

/// Three significant digits, or whole thousands apart.
fn digits(figure: f64) -> String {
    match figure.abs() {
        size if size >= 1_000.0 => count(figure),
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 1.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

/// A whole number, its thousands apart.
pub fn count(figure: f64) -> String {
    let whole = format!("{figure:.0}");
    let mut text = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
