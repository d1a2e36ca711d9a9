//! Which events are handled.

use oncegate::domain::{RequestId, Timestamp};
use tokio::time::Instant;

use super::{COMPARED, Checker};

/// What is known of how an event was handled.
#[derive(Debug, Default)]
pub(super) struct Handling {
    /// What is acknowledged to be handled: when that was answered, and until when it is.
    handled: Option<(Instant, Timestamp)>,
    /// The latest first marks.
    firsts: Vec<FirstMark>,
    /// The latest records that callers were answered.
    records: Vec<(Handled, Instant)>,
    /// The latest call that forgot it: when it began, and when it was answered.
    forgotten: Option<(Instant, Instant)>,
}

/// A record of a handled event: the request that handled it, and when.
pub type Handled = (Option<RequestId>, Timestamp);

impl Handling {
    /// An operator may have deleted it.
    pub(super) fn disturb(&mut self) {
        self.handled = None;
        self.firsts.clear();
    }
}

/// A mark that was the first, and from when until when it counts.
#[derive(Debug, Clone, Copy)]
pub struct FirstMark {
    pub request: RequestId,
    /// When its caller called.
    pub sent: Instant,
    pub from: Timestamp,
    pub until: Timestamp,
}

impl Checker {
    /// An event may be handled, or forgotten, from now on: its attempts may be counted anew.
    pub fn may_be_handled(&mut self, subject: &str) {
        self.log(subject).numbers_since = Some(Instant::now());
    }

    /// An event is acknowledged to be handled, by a call that began at `sent`.
    pub fn handled(&mut self, subject: &str, sent: Instant, until: Timestamp) {
        let log = self.log(subject);
        log.numbers_since = Some(Instant::now());
        if log.is_undisturbed(sent) {
            log.handling.handled = Some((Instant::now(), until));
        }
    }

    /// A turn was granted, or a mark was the first, at `time` at the latest, on a call that began
    /// at `sent`.
    pub fn must_be_new(&mut self, subject: &str, sent: Instant, time: Timestamp, how: &str) {
        let latest = time.max(self.latest_time);
        if let Some((answered, until)) = self.log(subject).handling.handled
            && answered < sent
            && latest < until
        {
            let text = format!("{subject}: {how} at {time:?}, but is handled until {until:?}");
            self.violated(text);
        }
    }

    /// A mark was the first, which was written before `now`. Answers whether that was not known
    /// before.
    pub fn first(&mut self, subject: &str, mark: FirstMark, now: Timestamp) -> bool {
        let is_same = |first: &FirstMark| {
            (first.request, first.from, first.until) == (mark.request, mark.from, mark.until)
        };
        let latest = now.max(self.latest_time);
        let log = self.log(subject);
        // It may have been forgotten before it was answered.
        if !log.is_undisturbed(mark.sent) || log.handling.firsts.iter().any(is_same) {
            return false;
        }
        let firsts = &mut log.handling.firsts;
        let overlaps = |other: &&FirstMark| latest.max(other.from) < mark.until.min(other.until);
        let twice = firsts.iter().find(overlaps).copied();
        firsts.push(mark);
        let surplus = firsts.len().saturating_sub(COMPARED);
        firsts.drain(..surplus);
        if let Some(other) = twice {
            self.violated(format!("{subject}: two firsts: {mark:?} and {other:?}"));
        }
        true
    }

    /// A mark was not the first, at `now`, although its request may have been.
    pub fn not_first(&mut self, subject: &str, request: RequestId, now: Timestamp) {
        let latest = now.max(self.latest_time);
        let before_step = self.latest_time;
        let firsts = &self.log(subject).handling.firsts;
        let own = firsts.iter().find(|first| first.request == request && latest < first.until);
        // Until the clock has caught up with a step back, a replica may still remember a mark that
        // had expired before.
        if let Some(own) = own.filter(|own| before_step < own.from) {
            let text = format!("{subject}: not the first when repeated: {own:?}");
            self.violated(text);
        }
    }

    /// An event was forgotten by a call that began at `sent`.
    pub fn forgotten(&mut self, subject: &str, sent: Instant) {
        self.log(subject).handling.forgotten = Some((sent, Instant::now()));
    }

    /// A call that began at `sent` was answered that an event is handled.
    pub fn found(&mut self, subject: &str, sent: Instant, record: Handled) {
        let handling = &mut self.log(subject).handling;
        let known = handling.records.iter().find(|(known, _)| *known == record);
        let answered = known.map_or_else(Instant::now, |(_, answered)| *answered);
        let is_stale =
            handling.forgotten.is_some_and(|(began, ended)| answered < began && ended < sent);
        if known.is_none() {
            handling.records.push((record, answered));
            let surplus = handling.records.len().saturating_sub(COMPARED);
            handling.records.drain(..surplus);
        }
        if is_stale {
            self.violated(format!("{subject}: {record:?} is found, but was forgotten"));
        }
    }

    /// Until when an event is acknowledged to be handled, if that was not over by `now`.
    pub fn handled_until(&self, subject: &str, now: Timestamp) -> Option<Timestamp> {
        let (_, until) = self.logs.get(subject)?.handling.handled?;
        Some(until).filter(|until| *until > now.max(self.latest_time))
    }
}
