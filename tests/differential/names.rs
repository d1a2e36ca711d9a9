//! Answers of several stores, as far as they are to be equal.

use std::collections::HashMap;

use oncegate::domain::LeaseId;

/// Names the ids that a store drew itself in the order in which they appear. Two stores agree if
/// the same id appears in one wherever the same id appears in the other.
#[derive(Default)]
pub struct Names(HashMap<String, String>);

const ID: usize = 36;

impl Names {
    /// An id that the sequence chose is the same in all stores.
    pub fn is_chosen(&mut self, id: &uuid::Uuid) {
        let id = id.to_string();
        self.0.entry(id.clone()).or_insert(id);
    }

    /// `text` with names for ids.
    pub fn rename(&mut self, text: &str) -> String {
        let (mut named, mut rest) = (String::with_capacity(text.len()), text);
        while let Some(place) = rest.find('-') {
            // An id begins with eight digits.
            let start = place.saturating_sub(8);
            let id = rest.get(start..start + ID).filter(|id| uuid::Uuid::try_parse(id).is_ok());
            let Some(id) = id else {
                named.push_str(&rest[..=place]);
                rest = &rest[place + 1..];
                continue;
            };
            named.push_str(&rest[..start]);
            let next = self.0.len();
            let name = self.0.entry(id.to_owned()).or_insert_with(|| format!("id {next}"));
            named.push_str(name);
            rest = &rest[start + ID..];
        }
        named + rest
    }
}

/// Tickets, by the order in which a store gave them: only that counts. PostgreSQL draws them from a
/// sequence, which no test resets.
#[derive(Default)]
pub struct Tickets(Vec<i64>);

impl Tickets {
    /// The ticket of a place that is new, or was found again.
    pub fn waits(&mut self, ticket: i64) -> String {
        if let Some(place) = self.0.iter().position(|other| *other == ticket) {
            return format!("waits, place {place}");
        }
        let is_last = self.0.iter().all(|other| *other < ticket);
        self.0.push(ticket);
        format!("waits, place {}, last: {is_last}", self.0.len() - 1)
    }

    /// The ticket of a place that was taken over.
    pub fn took_over(&self, ticket: i64, was: LeaseId) -> String {
        let place = self.0.iter().position(|other| *other == ticket);
        format!("took over, place {place:?}, was {was:?}")
    }
}
