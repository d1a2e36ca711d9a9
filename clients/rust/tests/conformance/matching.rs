//! Compares a result with what a step expects.

use std::collections::HashMap;

use serde_json::{Value, json};

/// Keeps the values that a scenario stores on the way.
#[derive(Default)]
pub(crate) struct Expectations {
    stored: HashMap<String, Value>,
}

impl Expectations {
    /// The first difference. A result that differs is not stored.
    pub(crate) fn matches(&mut self, expected: &Value, result: &Value) -> Result<(), String> {
        let mut stored = self.stored.clone();
        compare(expected, result, "result", &mut stored)?;
        self.stored = stored;
        Ok(())
    }
}

fn compare(
    expected: &Value,
    result: &Value,
    at: &str,
    stored: &mut HashMap<String, Value>,
) -> Result<(), String> {
    let differs = || Err(format!("{at} is {}, expected {}", shown(result), shown(expected)));
    match expected {
        Value::Array(items) => {
            let Some(found) = result.as_array().filter(|found| found.len() == items.len()) else {
                return differs();
            };
            for (index, (item, found)) in items.iter().zip(found).enumerate() {
                compare(item, found, &format!("{at}[{index}]"), stored)?;
            }
            Ok(())
        }
        Value::Object(fields) => {
            if let Some((rule, argument)) = fields.iter().find(|(name, _)| name.starts_with('$')) {
                return if follows(rule, argument, result, stored) { Ok(()) } else { differs() };
            }
            let Some(found) = result.as_object() else { return differs() };
            for (key, item) in fields {
                let is_unwanted = *item == json!({"$absent": true});
                match found.get(key) {
                    Some(value) if !is_unwanted => {
                        compare(item, value, &format!("{at}.{key}"), stored)?;
                    }
                    None if is_unwanted => {}
                    value => {
                        let value = value.map_or_else(|| "missing".to_owned(), shown);
                        return Err(format!("{at}.{key} is {value}, expected {}", shown(item)));
                    }
                }
            }
            Ok(())
        }
        _ if is_equal(expected, result) => Ok(()),
        _ => differs(),
    }
}

fn is_equal(one: &Value, other: &Value) -> bool {
    one == other || one.as_f64().is_some_and(|one| Some(one) == other.as_f64())
}

/// Whether a result is what stands in the place of a value.
fn follows(
    rule: &str,
    argument: &Value,
    result: &Value,
    stored: &mut HashMap<String, Value>,
) -> bool {
    let named = || argument.as_str().and_then(|name| stored.get(name));
    match rule {
        "$set" => {
            stored.insert(argument.as_str().expect("a name").to_owned(), result.clone());
            !result.is_null()
        }
        "$get" => named().is_some_and(|value| is_equal(value, result)),
        "$gt" => {
            let low = named().and_then(Value::as_f64);
            low.is_some_and(|low| result.as_f64().is_some_and(|number| number > low))
        }
        "$between" => result.as_f64().is_some_and(|number| {
            argument[0].as_f64().is_some_and(|low| low <= number)
                && argument[1].as_f64().is_some_and(|high| number <= high)
        }),
        "$contains" => result
            .as_str()
            .is_some_and(|text| argument.as_str().is_some_and(|part| text.contains(part))),
        "$any" => !result.is_null(),
        "$string_bytes" => {
            let length = result.as_str().map(|text| text.len() as u64);
            length.is_some() && length == argument.as_u64()
        }
        "$hex" => *result == json!({"$hex": argument}),
        _ => false,
    }
}

pub(crate) fn shown(value: &Value) -> String {
    value.to_string().chars().take(400).collect()
}

pub(crate) fn matches_as_it_should() -> crate::Verdict {
    for (expected, result, matches) in [
        (json!({"a": 1}), json!({"a": 1, "b": 2}), true),
        (json!({"a": null}), json!({"a": null}), true),
        (json!({"a": null}), json!({}), false),
        (json!({"a": {"$absent": true}}), json!({}), true),
        (json!({"a": {"$absent": true}}), json!({"a": null}), false),
        (json!([1, 2]), json!([1, 2]), true),
        (json!([1]), json!([1, 2]), false),
        (json!({"$between": [1, 3]}), json!(3), true),
        (json!({"$between": [1, 3]}), json!(4), false),
        (json!({"$any": true}), json!(null), false),
        (json!({"$contains": "disk"}), json!("no disk"), true),
        (json!({"$string_bytes": 2}), json!("é"), true),
        (json!({"$hex": "00ff"}), json!({"$hex": "00ff"}), true),
        (json!({"$hex": "00ff"}), json!({"$hex": "00"}), false),
        (json!([{"$set": "x"}, {"$get": "x"}]), json!([1, 1]), true),
        (json!([{"$set": "x"}, {"$get": "x"}]), json!([1, 2]), false),
        (json!([{"$set": "x"}, {"$gt": "x"}]), json!([1, 2]), true),
        (json!([{"$set": "x"}, {"$gt": "x"}]), json!([1, 1]), false),
        (json!({"$set": "x"}), json!(null), false),
        (json!({"$unknown": 1}), json!(1), false),
        (json!("a"), json!("b"), false),
        (json!(1.0), json!(1), true),
    ] {
        let found = Expectations::default().matches(&expected, &result);
        if found.is_ok() != matches {
            return Err(format!("{expected} and {result}: {found:?}"));
        }
    }
    Ok(String::new())
}
