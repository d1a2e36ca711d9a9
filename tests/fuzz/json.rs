//! Mutations of JSON that leave it JSON.

use serde_json::{Map, Value, json};

use crate::chance::Chance;

/// Mutates one place in `value`.
pub fn mutate(chance: &mut Chance, value: &mut Value) {
    let place = chance.below(count(value));
    let donor = nth(value, chance.below(count(value))).cloned().unwrap_or_default();
    let Some(place) = nth_mut(value, place) else { return };
    match (chance.below(8), &mut *place) {
        (0, _) => *place = donor,
        (1, Value::Object(fields)) => {
            if let Some(name) = name(chance, fields) {
                fields.remove(&name);
            }
        }
        (2, Value::Object(fields)) => {
            if let Some(name) = name(chance, fields) {
                fields.insert(name, donor);
            }
        }
        (3, Value::Array(items)) => items.extend(vec![donor; chance.between(1, 40)]),
        (4, Value::Array(items)) => items.clear(),
        (5, _) => {
            let inner = place.take();
            let depth = [1, 2, 60, 125, 130, 2_000][chance.below(6)];
            // Text: a value of this depth would end the stack of its own destructor.
            *place =
                if depth > 130 { Value::from("[".repeat(depth)) } else { nested(inner, depth) };
        }
        _ => *place = odd(chance),
    }
}

fn nested(mut value: Value, depth: usize) -> Value {
    for level in 0..depth {
        value = if level % 2 == 0 { json!([value]) } else { json!({ "event": value }) };
    }
    value
}

fn odd(chance: &mut Chance) -> Value {
    match chance.below(14) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(""),
        3 => json!(" "),
        4 => json!("a\u{0}b"),
        5 => json!("\u{7f}\u{85}\u{2028}\u{feff}"),
        6 => json!("x".repeat(chance.between(500, 520))),
        7 => json!("承".repeat(chance.between(165, 175))),
        8 => json!(chance.number()),
        9 => json!(-1.5e300),
        10 => json!(i64::MIN),
        11 => json!([]),
        12 => json!({}),
        _ => json!(format!("{}.{:06}", chance.below(2_000_000_000), chance.below(1_000_000))),
    }
}

fn name(chance: &mut Chance, fields: &Map<String, Value>) -> Option<String> {
    fields.keys().nth(chance.below(fields.len())).cloned()
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// The place of this number, depth first.
fn nth_mut(value: &mut Value, number: usize) -> Option<&mut Value> {
    if number == 0 {
        return Some(value);
    }
    let mut left = number - 1;
    let inner: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    };
    for inner in inner {
        let size = count(inner);
        if left < size {
            return nth_mut(inner, left);
        }
        left -= size;
    }
    None
}

fn nth(value: &Value, number: usize) -> Option<&Value> {
    if number == 0 {
        return Some(value);
    }
    let mut left = number - 1;
    let inner: Vec<&Value> = match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    };
    for inner in inner {
        let size = count(inner);
        if left < size {
            return nth(inner, left);
        }
        left -= size;
    }
    None
}
