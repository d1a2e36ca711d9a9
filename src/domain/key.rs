//! What names an event or a session.

use xxhash_rust::xxh3::Xxh3;

use super::{
    Conversation, Invalid, Team,
    limits::{MAX_FIELD_BYTES, MAX_ID_BYTES},
};

/// An id that the contract allows: 1 to 512 bytes of UTF-8, no control
/// characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(String);

impl Id {
    /// Checks the required id in `field`.
    ///
    /// # Errors
    /// [`Invalid`] on `field`, when the id is empty or breaks a rule.
    pub fn parse(field: &'static str, value: String) -> Result<Self, Invalid> {
        Self::optional(field, value)?.ok_or_else(|| Invalid::new(field, "must not be empty"))
    }

    /// Checks the id in `field`, where empty means that there is none.
    ///
    /// # Errors
    /// [`Invalid`] on `field`, when the id breaks a rule.
    pub fn optional(field: &'static str, value: String) -> Result<Option<Self>, Invalid> {
        Ok(optional_text(field, value, MAX_ID_BYTES, &[])?.map(Self))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as text, owned.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }

    /// An id that is made of checked parts.
    pub(super) fn derived(value: String) -> Self {
        debug_assert!(Self::parse("derived", value.clone()).is_ok(), "{value}");
        Self(value)
    }
}

/// A field that ids are derived from: it may be longer than they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field(String);

impl Field {
    /// Checks the id in `field`, where empty means that there is none.
    ///
    /// # Errors
    /// [`Invalid`] on `field`, when the id is too long or contains control characters.
    pub fn optional(field: &'static str, value: String) -> Result<Option<Self>, Invalid> {
        if value.chars().any(char::is_control) {
            return Err(Invalid::new(field, "must not contain control characters"));
        }
        Self::any(field, value)
    }

    /// Checks the text in `field`, where empty means that there is none.
    ///
    /// # Errors
    /// [`Invalid`] on `field`, when the text is too long.
    pub fn any(field: &'static str, value: String) -> Result<Option<Self>, Invalid> {
        if value.len() > MAX_FIELD_BYTES {
            let problem = format!("must be at most {MAX_FIELD_BYTES} bytes, is {}", value.len());
            return Err(Invalid::new(field, problem));
        }
        Ok((!value.is_empty()).then_some(Self(value)))
    }

    /// The field as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks that the field may stand behind a `:` in a derived key, so that two
    /// different sets of fields never make the same key.
    pub(super) fn check_no_colon(&self, field: &'static str) -> Result<(), Invalid> {
        check_no_colon(field, &self.0)
    }
}

fn check_no_colon(field: &'static str, text: &str) -> Result<(), Invalid> {
    if text.contains(':') {
        return Err(Invalid::new(field, "must not contain ':'"));
    }
    Ok(())
}

/// Checks the text in `field`, where empty means that there is none: at most `most` bytes, and
/// no control characters but those in `allowed`.
pub(super) fn optional_text(
    field: &'static str,
    value: String,
    most: usize,
    allowed: &[char],
) -> Result<Option<String>, Invalid> {
    if value.len() > most {
        let problem = format!("must be at most {most} bytes, is {}", value.len());
        return Err(Invalid::new(field, problem));
    }
    if value.chars().any(|char| char.is_control() && !allowed.contains(&char)) {
        let but = if allowed.is_empty() { "" } else { " other than line ends and tab" };
        return Err(Invalid::new(field, format!("must not contain control characters{but}")));
    }
    Ok(Some(value).filter(|value| !value.is_empty()))
}

/// Stands between an id and its consumer in a stored id: no id has control characters.
/// Behind the id, so that rows sort by id and then by consumer.
const CONSUMER_SEPARATOR: char = '\u{1e}';

/// An id as stored: of all consumers, as given; of one consumer, followed by its name. Rows
/// of the older bots have no consumer, so they count for all.
pub(super) fn stored(id: String, consumer: Option<&Id>) -> String {
    match consumer {
        None => id,
        Some(consumer) => format!("{id}{CONSUMER_SEPARATOR}{}", consumer.as_str()),
    }
}

/// The id and the consumer, which may be empty, of a stored id.
#[must_use]
pub fn split_consumer(stored: &str) -> (&str, &str) {
    stored.split_once(CONSUMER_SEPARATOR).unwrap_or((stored, ""))
}

/// Whether `stored` could be a stored id.
#[must_use]
pub fn is_stored_id(stored: &str) -> bool {
    let is_sound = |part: &str| part.len() <= MAX_ID_BYTES && !part.contains(char::is_control);
    let (id, consumer) = split_consumer(stored);
    !id.is_empty() && is_sound(id) && is_sound(consumer)
}

/// Names one event of one team.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventKey {
    /// The tenant.
    pub team: Team,
    /// The event id as stored.
    pub event: String,
}

impl EventKey {
    /// The same event of one consumer.
    #[must_use]
    pub fn of_consumer(self, consumer: Option<&Id>) -> Self {
        Self { event: stored(self.event, consumer), ..self }
    }

    /// The event that the caller names itself.
    #[must_use]
    pub fn given(team: Team, event: Id) -> Self {
        Self { team, event: event.into_string() }
    }

    /// Spreads keys over the lanes of one process.
    #[must_use]
    pub fn shard(&self) -> u64 {
        hash64(&self.team, &self.event)
    }

    /// Stands for the key where that would be too long to keep. 128 bits are
    /// enough against chance; a `seed` that nobody knows, against intent.
    #[must_use]
    pub fn digest(&self, seed: u64) -> u128 {
        hash128(seed, [&self.team, &self.event])
    }
}

/// Names one session of one team.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    /// The tenant.
    pub team: Team,
    /// The canonical session id, or an opaque one as given.
    pub session: String,
}

impl SessionKey {
    /// The same session of one consumer.
    #[must_use]
    pub fn of_consumer(self, consumer: Option<&Id>) -> Self {
        Self { session: stored(self.session, consumer), ..self }
    }

    /// The session that the caller names itself.
    #[must_use]
    pub fn given(team: Team, session: Id) -> Self {
        Self { team, session: session.into_string() }
    }

    /// The session of a channel's thread: `{team}:{channel}:{thread}`.
    ///
    /// # Errors
    /// [`Invalid`] on `thread_ts`, when it holds a `:`.
    pub fn thread(team: Team, channel: Id, thread_ts: Id) -> Result<Self, Invalid> {
        check_no_colon("thread_ts", thread_ts.as_str())?;
        let (channel, thread) = (channel.into_string(), thread_ts.into_string());
        Ok(Self::of(team, &Conversation::Thread { channel, thread }))
    }

    /// The key of the session's advisory lock, the same on every replica and
    /// in every version. Two sessions may share one: that costs milliseconds,
    /// never correctness.
    #[must_use]
    pub fn lock_key(&self) -> i64 {
        self.shard().cast_signed()
    }

    /// Spreads keys over the lanes of one process.
    #[must_use]
    pub fn shard(&self) -> u64 {
        hash64(&self.team, &self.session)
    }
}

/// Takes `parts` in, with a NUL between each two: it occurs in none of them, so
/// no two rows of parts are taken for one. Allocates nothing.
fn hasher<const N: usize>(seed: u64, parts: [&str; N]) -> Xxh3 {
    let mut hasher = Xxh3::with_seed(seed);
    for (index, part) in parts.into_iter().enumerate() {
        if index > 0 {
            hasher.update(b"\0");
        }
        hasher.update(part.as_bytes());
    }
    hasher
}

fn hash64(team: &str, id: &str) -> u64 {
    hasher(0, [team, id]).digest()
}

/// 128 bits of a team, an id of the team's and whatever else.
pub(super) fn hash128<const N: usize>(seed: u64, parts: [&str; N]) -> u128 {
    hasher(seed, parts).digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(value: &str) -> Id {
        Id::parse("id", value.to_owned()).unwrap()
    }

    fn team() -> Team {
        Team::stored("T1")
    }

    #[test]
    fn an_id_is_bounded_in_bytes_not_characters() {
        assert!(Id::parse("id", "é".repeat(256)).is_ok());
        assert!(Id::parse("id", "é".repeat(257)).is_err());
    }

    #[test]
    fn an_id_has_no_control_characters_of_either_block() {
        for bad in ["a\0b", "a\nb", "\u{7f}", "\u{85}", "a\u{9f}"] {
            let error = Id::parse("event_id", bad.to_owned()).unwrap_err();
            assert_eq!(error.field, "event_id");
        }
        assert!(Id::parse("id", "ünïcode 🤖 with spaces".to_owned()).is_ok());
    }

    #[test]
    fn a_thread_and_its_canonical_id_are_one_session() {
        let thread = SessionKey::thread(team(), id("C1"), id("17.5")).unwrap();
        assert_eq!(thread, SessionKey::given(team(), id("T1:C1:17.5")));
    }

    #[test]
    fn no_two_threads_share_a_canonical_id() {
        assert!(SessionKey::thread(team(), id("19:x@thread.v2"), id("17.5")).is_ok());
        let error = SessionKey::thread(team(), id("19"), id("x@thread.v2:17.5")).unwrap_err();
        assert_eq!(error.field, "thread_ts");
    }

    #[test]
    fn the_lock_key_never_changes() {
        // Replicas of two versions run side by side during a rollout: they must
        // lock the same number.
        let key = SessionKey::given(team(), id("T1:C1:17.5"));
        assert_eq!(key.lock_key(), 7_972_541_431_550_012_074);
    }
}
