//! The rules that a history keeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use oncegate_client::{Error, GaveUp, Outcome};
use serde_json::json;

use crate::{
    history::{Answer, Body, Events, History, SETTLE_TIME, Write, is_known},
    mapping::Fault,
};

type Rule = fn(&History, &Events, &mut dyn FnMut(String));

/// By their names in `planted.json`.
const RULES: [(&str, Rule); 13] = [
    ("each-run-has-one-answer", each_run_has_one_answer),
    ("one-success", one_success),
    ("duplicates-replay-the-success", duplicates_replay_the_success),
    ("no-entry-once-settled", no_entry_once_settled),
    ("a-refused-run-has-no-body", a_refused_run_has_no_body),
    ("given-up-after-failures", given_up_after_failures),
    ("the-server-has-the-answers", the_server_has_the_answers),
    ("fences-rise", fences_rise),
    ("no-entry-after-the-end", no_entry_after_the_end),
    ("no-write-after-the-end", no_write_after_the_end),
    ("a-loss-interrupts", a_loss_interrupts),
    ("no-two-bodies", no_two_bodies),
    ("all-events-settle", all_events_settle),
];

/// What breaks a rule, each with the rule's name.
pub(crate) fn broken(history: &History, settles: bool) -> Vec<String> {
    let events = history.events();
    let mut found = Vec::new();
    for (name, rule) in RULES {
        if settles || name != "all-events-settle" {
            rule(history, &events, &mut |text| found.push(format!("{name}: {text}")));
        }
    }
    found
}

fn grouped<'a, T, K: Ord>(items: &'a [T], key: impl Fn(&'a T) -> K) -> BTreeMap<K, Vec<&'a T>> {
    let mut groups = BTreeMap::<_, Vec<_>>::new();
    for item in items {
        groups.entry(key(item)).or_default().push(item);
    }
    groups
}

/// A run ends with an outcome, or with an error of the library's or of the handler's own.
fn each_run_has_one_answer(_: &History, events: &Events, report: &mut dyn FnMut(String)) {
    let by_run = grouped(&events.answers, |answer| answer.run);
    for run in &events.planned {
        let count = by_run.get(run).map_or(0, Vec::len);
        if count != 1 {
            report(format!("run {run} has {count} answers"));
        }
    }
    for answer in &events.answers {
        if let Err(fault) = &answer.came
            && !is_known(fault)
        {
            report(format!("run {} ended with {fault:?}", answer.run));
        }
    }
}

/// An event succeeds once at most.
fn one_success(_: &History, events: &Events, report: &mut dyn FnMut(String)) {
    let mut succeeded = BTreeMap::new();
    for answer in events.answers.iter().filter(|answer| answer.is_ran()) {
        if let Some(before) = succeeded.insert(&answer.event, answer.run) {
            report(format!("{} succeeded in run {before} and {}", answer.event, answer.run));
        }
    }
}

/// A duplicate gets the value of the run that succeeded, or whose outcome is unknown.
fn duplicates_replay_the_success(_: &History, events: &Events, report: &mut dyn FnMut(String)) {
    for (event, group) in grouped(&events.answers, |answer| &answer.event) {
        let (mut values, mut possible) = (BTreeSet::new(), BTreeSet::new());
        for answer in group {
            if let Err(Fault::Library(Error::OutcomeUnknown { value, .. })) = &answer.came {
                possible.extend(value.decode::<String>().ok().flatten());
            }
            if answer.is_ran() {
                possible.extend(answer.value().map(str::to_owned));
            }
            if answer.is_ran() || answer.is_duplicate() {
                values.insert(answer.value().unwrap_or_default().to_owned());
            }
        }
        if values.len() > 1 {
            report(format!("{event} has several results: {values:?}"));
        }
        for value in values.difference(&possible) {
            report(format!("{event} has a result that no run ended with: {value:?}"));
        }
    }
}

/// Once an event is settled, as a caller has been answered, no body of it begins.
fn no_entry_once_settled(_: &History, events: &Events, report: &mut dyn FnMut(String)) {
    let mut settled = BTreeMap::<&String, Instant>::new();
    for answer in events.answers.iter().filter(|answer| answer.is_settled()) {
        let at = settled.entry(&answer.event).or_insert(answer.at);
        *at = answer.at.min(*at);
    }
    for body in &events.bodies {
        if settled.get(&body.event).is_some_and(|at| body.entered > *at) {
            report(format!("{}: run {} entered although it was settled", body.event, body.run));
        }
    }
}

/// A run that is refused, as a duplicate or otherwise, has no body; a run that succeeded has one.
fn a_refused_run_has_no_body(_: &History, events: &Events, report: &mut dyn FnMut(String)) {
    let by_run = grouped(&events.bodies, |body| body.run);
    for answer in &events.answers {
        let count = by_run.get(&answer.run).map_or(0, Vec::len);
        if answer.is_refused() && count > 0 || answer.is_ran() && count != 1 || count > 1 {
            report(format!("run {} ended with {} after {count} bodies", answer.run, answer.kind()));
        }
    }
}

/// An event is given up when all its attempts have failed, or were lost: some before a body.
fn given_up_after_failures(history: &History, events: &Events, report: &mut dyn FnMut(String)) {
    let bodies = grouped(&events.bodies, |body| &body.event);
    for (event, group) in grouped(&events.answers, |answer| &answer.event) {
        let entered = bodies
            .get(event)
            .map(|bodies| bodies.iter().map(|body| body.attempt).collect::<BTreeSet<_>>().len());
        let entered = entered.unwrap_or_default();
        let mut failures = 0;
        for answer in group {
            if let Ok(Outcome::GaveUp(GaveUp { attempts, .. })) = &answer.came {
                let attempts = *attempts as usize;
                let ended = (failures + attempts).saturating_sub(entered);
                if ended.min(attempts) < history.max_attempts {
                    report(format!("{event} was given up after {failures} failures"));
                }
            }
            failures += usize::from(answer.came.is_err());
        }
    }
}

/// The record of an event has the outcome and the result that its callers got.
fn the_server_has_the_answers(_: &History, events: &Events, report: &mut dyn FnMut(String)) {
    let records: BTreeMap<_, _> =
        events.records.iter().map(|(event, found)| (event, found)).collect();
    for answer in events.answers.iter().filter(|answer| answer.is_settled()) {
        let has_given_up = matches!(answer.came, Ok(Outcome::GaveUp(_)));
        let expected = json!({
            "state": "PROCESSED",
            "outcome": if has_given_up { "GAVE_UP" } else { "SUCCEEDED" },
            "result": answer.value(),
        });
        for key in ["state", "outcome", "result"] {
            let found =
                records.get(&answer.event).map_or(&serde_json::Value::Null, |found| &found[key]);
            if *found != expected[key] {
                report(format!(
                    "{} has the {key} {found}, run {} was answered {}",
                    answer.event, answer.run, expected[key]
                ));
            }
        }
    }
}

/// The holds of a session are entered in the order of their fences.
fn fences_rise(_: &History, events: &Events, report: &mut dyn FnMut(String)) {
    for (before, after) in events.pairs() {
        if after.fence <= before.fence && !events.is_forced(before, after) {
            report(format!(
                "{}: run {} entered with fence {}, after run {} with fence {}",
                after.session, after.run, after.fence, before.run, before.fence
            ));
        }
    }
}

/// A body does not begin after its trusted end. The margin is for what lies between the library's look at
/// the clock and the body's own.
fn no_entry_after_the_end(history: &History, events: &Events, report: &mut dyn FnMut(String)) {
    for body in &events.bodies {
        let late = events.awake(body.trusted_at_entry, body.entered);
        if late > history.margin {
            report(format!(
                "{}: run {} entered {late:?} after its trusted end",
                body.event, body.run
            ));
        }
    }
}

/// A check that begins after the trusted end does not pass.
fn no_write_after_the_end(_: &History, events: &Events, report: &mut dyn FnMut(String)) {
    for body in &events.bodies {
        for write in body.writes.iter().filter(|write| write.checked > write.trusted) {
            let late = write.checked - write.trusted;
            report(format!(
                "{}: run {} wrote {late:?} after its trusted end",
                body.event, body.run
            ));
        }
    }
}

/// A body that relies on it is interrupted at its trusted end, or before.
fn a_loss_interrupts(history: &History, events: &Events, report: &mut dyn FnMut(String)) {
    for body in events.bodies.iter().filter(|body| !body.checks) {
        let late = events.awake(body.trusted, body.left);
        if late > history.margin + SETTLE_TIME {
            report(format!(
                "{}: run {} went on for {late:?} after its trusted end",
                body.event, body.run
            ));
        }
    }
}

/// Within their trusted ends, the bodies of a session do not overlap, unless an operator has released the
/// session by force.
fn no_two_bodies(_: &History, events: &Events, report: &mut dyn FnMut(String)) {
    for (before, after) in events.pairs() {
        // Until when it may have had effects, if its author calls `check` before each.
        let stopped = before.left.min(before.trusted);
        if stopped > after.entered && !events.is_forced(before, after) {
            let early = stopped - after.entered;
            report(format!(
                "{}: run {} entered {early:?} before run {} stopped",
                after.session, after.run, before.run
            ));
        }
    }
}

/// Once the faults have stopped, the last answer for each event settles it.
fn all_events_settle(_: &History, events: &Events, report: &mut dyn FnMut(String)) {
    for last in events.last_answers().into_iter().filter(|last| !last.is_settled()) {
        report(format!(
            "{} is not settled; its last answer is {}: {:?}",
            last.event,
            last.kind(),
            last.came
        ));
    }
}

/// Two bodies of a session and an event each, and their answers: what the rules are shown.
fn sound_history() -> History {
    let history = History::new(Duration::from_millis(200), 2);
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut events = history.events();
    for run in 0..2 {
        let began = 10 * run as u64;
        let event = format!("event-{run}");
        events.planned.push(run);
        events.bodies.push(Body {
            run,
            event: event.clone(),
            session: "session".to_owned(),
            attempt: 1,
            fence: 1 + i64::try_from(run).expect("few"),
            entered: at(began),
            trusted_at_entry: at(began + 5),
            checks: run == 0,
            writes: vec![Write { checked: at(began + 1), trusted: at(began + 5) }],
            left: at(began + 2),
            trusted: at(began + 5),
        });
        let value = format!("run {run}");
        let record = json!({"state": "PROCESSED", "outcome": "SUCCEEDED", "result": value});
        events.records.push((event.clone(), record));
        events.answers.push(Answer {
            run,
            event,
            came: Ok(Outcome::Ran(value)),
            at: at(began + 3),
        });
    }
    drop(events);
    history
}

/// A change of a history.
type Change = fn(&mut Events);

/// A sound history breaks no rule, and each change of it breaks its rule.
pub(crate) fn find_what_breaks_them() -> crate::Verdict {
    let sound = broken(&sound_history(), true);
    if !sound.is_empty() {
        return Err(format!("a sound history breaks {sound:?}"));
    }
    let changes: [(&str, Change); 13] = [
        ("each-run-has-one-answer", |events| events.planned.push(9)),
        ("one-success", |events| "event-0".clone_into(&mut events.answers[1].event)),
        ("duplicates-replay-the-success", |events| {
            "event-0".clone_into(&mut events.answers[1].event);
        }),
        ("no-entry-once-settled", |events| {
            events.bodies[0].entered += Duration::from_secs(4);
        }),
        ("a-refused-run-has-no-body", |events| events.answers[0].came = Ok(Outcome::Dropped)),
        ("given-up-after-failures", |events| {
            let mut why = GaveUp::default();
            why.attempts = 2;
            events.answers[0].came = Ok(Outcome::GaveUp(why));
        }),
        ("the-server-has-the-answers", |events| events.records[0].1["result"] = json!("other")),
        ("fences-rise", |events| events.bodies[1].fence = 1),
        ("no-entry-after-the-end", |events| {
            events.bodies[0].trusted_at_entry = events.bodies[0].entered;
            events.bodies[0].entered += Duration::from_secs(1);
        }),
        ("no-write-after-the-end", |events| {
            events.bodies[0].writes[0].trusted -= Duration::from_secs(10);
        }),
        ("a-loss-interrupts", |events| events.bodies[1].trusted -= Duration::from_secs(4)),
        ("no-two-bodies", |events| {
            events.bodies[0].left += Duration::from_secs(20);
            events.bodies[0].trusted += Duration::from_secs(20);
        }),
        ("all-events-settle", |events| {
            events.answers[0].came = Err(Fault::Own("it fails".to_owned()));
        }),
    ];
    for (rule, change) in changes {
        let history = sound_history();
        change(&mut history.events());
        let found = broken(&history, true);
        if !found.iter().any(|text| text.starts_with(&format!("{rule}: "))) {
            return Err(format!("{rule} is not broken by its change, but {found:?}"));
        }
    }
    Ok(String::new())
}
