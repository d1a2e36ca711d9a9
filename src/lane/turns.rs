//! Which jobs a batch has, and which a full queue refuses.
//!
//! Teams that have little queued are in the next batch with all of it, however many operations
//! others have queued. The rest of the batch goes to the others by deficit round-robin, in which an
//! operation is the unit: <https://doi.org/10.1145/217391.217453>. While teams with little use the
//! lane, this rest is small, so that their calls wait for short batches.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::{Op, job::Job};

/// A team is quiet if it has no more than one part in so many of a batch in the lane.
const QUIET: usize = 16;
/// The most operations of all teams that are not quiet in one batch, while a quiet team uses the
/// lane beside a team that has more than this queued. A call of the quiet team then waits for two
/// short batches, the one that runs and its own. The benchmark's P14 measures both sides of this
/// choice: the latency of the quiet team, and the rate of the other.
pub(super) const SHORT: usize = 32;
/// For how long after a batch with operations of a quiet team that team counts as one that uses the
/// lane.
pub(super) const IN_USE: Duration = Duration::from_secs(1);

/// Which team, by a hash of its name under a key that no caller knows. Two teams that have the same
/// by chance count as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TeamHash(pub(super) u64);

/// The jobs that wait, and for how many operations there is room.
pub(super) struct Waiting<O: Op> {
    /// Of every team that has something in the lane.
    backlogs: HashMap<TeamHash, Backlog<O>>,
    /// The teams whose jobs wait for a batch, in the order in which it is their turn.
    turns: VecDeque<TeamHash>,
    /// For how many operations there is a job, waiting or in a batch.
    held: usize,
    /// No team that has more than this has a job that may be evicted: so when it was last looked, or for what
    /// has come since.
    most: usize,
    /// Until when a quiet team counts as one that uses the lane beside others.
    short_until: Option<Instant>,
    /// Whether the lane's task waits for a job.
    pub(super) is_idle: bool,
    pub(super) has_callers: bool,
    pub(super) has_stopped: bool,
}

/// What one team has in a lane.
struct Backlog<O: Op> {
    /// Those that wait: first those of which a batch has had a part, then in the order in which
    /// they came.
    jobs: VecDeque<Job<O>>,
    /// How many undecided operations these have.
    open: usize,
    /// For how many operations there is a job, waiting or in a batch.
    held: usize,
    /// How many operations its turn may still take. What is left goes with it into its next turn.
    deficit: usize,
    /// Whether its turn has begun.
    is_in_turn: bool,
}

/// A batch that is put together.
struct Batch<O: Op> {
    jobs: Vec<Job<O>>,
    /// How many more operations it may have.
    room: usize,
    /// How many of those may be of teams that are not quiet.
    others: usize,
}

impl<O: Op> Batch<O> {
    fn room_for(&self, is_quiet: bool) -> usize {
        if is_quiet { self.room } else { self.others.min(self.room) }
    }

    /// Adds the first of a team's jobs, or as much of it as there is room for.
    fn add(&mut self, from: &mut Backlog<O>, is_quiet: bool) {
        let room = self.room_for(is_quiet);
        let Some(mut job) = from.jobs.pop_front() else { return };
        let slice = job.open().min(room);
        from.open -= job.open();
        self.room -= slice;
        if !is_quiet {
            self.others -= slice;
        }
        job.begin(slice);
        self.jobs.push(job);
    }
}

impl<O: Op> Waiting<O> {
    pub(super) fn new() -> Self {
        Self {
            backlogs: HashMap::new(),
            turns: VecDeque::new(),
            held: 0,
            most: 0,
            short_until: None,
            is_idle: false,
            has_callers: true,
            has_stopped: false,
        }
    }

    /// Takes all jobs out: nothing runs any more. Returns also how many operations had room.
    pub(super) fn stop(&mut self) -> (usize, Vec<Job<O>>) {
        self.has_stopped = true;
        self.turns.clear();
        let jobs = self.backlogs.drain().flat_map(|(_, backlog)| backlog.jobs).collect();
        (std::mem::take(&mut self.held), jobs)
    }

    /// Whether quiet teams use the lane beside others, so that batches are short.
    fn is_shared(&self) -> bool {
        self.short_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether a batch may well have a part of a job of which none has had one.
    pub(super) fn would_begin(&self, batch: usize) -> bool {
        let room = if self.is_shared() { batch.min(SHORT) } else { batch };
        self.turns.iter().any(|team| {
            let jobs = &self.backlogs[team].jobs;
            let begun: usize = jobs.iter().take_while(|job| job.has_begun()).map(Job::open).sum();
            let new = jobs.iter().find(|job| !job.has_begun());
            new.is_some_and(|job| begun == 0 || begun + job.open() <= room)
        })
    }

    /// Takes the jobs of the next batch, each with its slice.
    pub(super) fn take(&mut self, size: usize) -> Vec<Job<O>> {
        let share = (size / self.turns.len().max(1)).max(1);
        let teams: VecDeque<TeamHash> = self.turns.drain(..self.turns.len().min(size)).collect();
        let is_quiet = |backlog: &Backlog<O>| backlog.held <= size / QUIET;
        let quiet = teams.iter().filter(|team| is_quiet(&self.backlogs[*team])).count();
        let is_large = |backlog: &Backlog<O>| !is_quiet(backlog) && backlog.open > SHORT;
        if quiet > 0 && teams.iter().any(|team| is_large(&self.backlogs[team])) {
            self.short_until = Some(Instant::now() + IN_USE);
        }
        let is_short = self.is_shared();
        let others = if is_short { size.min(SHORT) } else { size };
        let mut batch = Batch { jobs: Vec::new(), room: size, others };

        // First who has little: all of theirs.
        let mut rest = VecDeque::new();
        for team in teams {
            let Some(backlog) = self.backlogs.get_mut(&team) else { continue };
            if backlog.open > share || (is_short && !is_quiet(backlog)) {
                rest.push_back(team);
                continue;
            }
            while !backlog.jobs.is_empty() {
                batch.add(backlog, true);
            }
        }
        // Then the others in turns. What a batch has no room for is in the next.
        let (mut later, mut is_first) = (VecDeque::new(), true);
        while batch.room > 0
            && let Some(team) = rest.pop_front()
        {
            let Some(backlog) = self.backlogs.get_mut(&team) else { continue };
            let is_quiet = is_quiet(backlog);
            let room = batch.room_for(is_quiet);
            if room == 0 {
                later.push_back(team);
                continue;
            }
            let Some(next) = backlog.jobs.front().map(Job::open) else {
                (backlog.deficit, backlog.is_in_turn) = (0, false);
                continue;
            };
            if !backlog.is_in_turn {
                (backlog.deficit, backlog.is_in_turn) = (backlog.deficit + others, true);
            }
            // A short batch takes parts of jobs, so that a turn is one of it.
            let next = if is_short { next.min(room) } else { next };
            if next > room && !is_short && !is_first {
                // Whole: a part of it now would only keep its caller waiting for longer.
                later.push_back(team);
            } else if next > backlog.deficit {
                backlog.is_in_turn = false;
                rest.push_back(team);
            } else {
                is_first = false;
                backlog.deficit -= next.min(room);
                batch.add(backlog, is_quiet);
                rest.push_front(team);
            }
        }
        later.append(&mut rest);
        later.retain(|team| self.backlogs.get(team).is_some_and(|of| !of.jobs.is_empty()));
        self.turns.append(&mut later);
        batch.jobs
    }

    /// Adds a job to its team's at `place`; at the end if there is none.
    pub(super) fn put(&mut self, place: Option<usize>, job: Job<O>) {
        let team = job.team;
        let backlog = self.backlogs.entry(team).or_insert_with(|| Backlog {
            jobs: VecDeque::new(),
            open: 0,
            held: 0,
            deficit: 0,
            is_in_turn: false,
        });
        if backlog.jobs.is_empty() {
            // The rest of a job whose turn it is.
            if backlog.is_in_turn && job.has_begun() {
                self.turns.push_front(team);
            } else {
                self.turns.push_back(team);
            }
        }
        backlog.open += job.open();
        backlog.jobs.insert(place.unwrap_or(backlog.jobs.len()), job);
    }

    pub(super) fn hold(&mut self, team: TeamHash, count: usize) {
        self.held += count;
        if let Some(backlog) = self.backlogs.get_mut(&team) {
            backlog.held += count;
            self.most = self.most.max(backlog.held);
        }
    }

    pub(super) fn release(&mut self, team: TeamHash, count: usize) {
        self.held -= count;
        if let Some(backlog) = self.backlogs.get_mut(&team) {
            backlog.held -= count;
            if backlog.held == 0 {
                self.backlogs.remove(&team);
            }
        }
    }

    /// Whether `count` more operations of a team are sure to be refused: there is no room, and no other team has
    /// more that may be evicted.
    pub(super) fn would_refuse(&self, capacity: usize, team: TeamHash, count: usize) -> bool {
        self.held + count > capacity && self.with(team, count) >= self.most
    }

    /// How many operations a team would have with `count` more.
    fn with(&self, team: TeamHash, count: usize) -> usize {
        count + self.backlogs.get(&team).map_or(0, |backlog| backlog.held)
    }

    /// Makes room for `count` operations of a team. Returns the jobs that it evicts for that; none
    /// if there is no room without those of teams that have no more than this one would.
    pub(super) fn make_room(
        &mut self,
        capacity: usize,
        team: TeamHash,
        count: usize,
    ) -> Option<Vec<(usize, Job<O>)>> {
        let own = self.with(team, count);
        let mut evicted = Vec::new();
        while self.held + count > capacity {
            let Some(victim) = self.victim(own) else {
                // Where they were.
                while let Some((place, job)) = evicted.pop() {
                    self.restore(place, job);
                }
                return None;
            };
            while self.held + count > capacity
                && let Some(job) = self.evict(victim, own)
            {
                evicted.push(job);
            }
        }
        Some(evicted)
    }

    /// Of the teams that have more than `own`, and a job that may be evicted, the one that has most.
    fn victim(&mut self, own: usize) -> Option<TeamHash> {
        // Not to look at all teams for each call of one that has most itself.
        if own >= self.most {
            return None;
        }
        let candidates = self.turns.iter().filter_map(|team| {
            let backlog = self.backlogs.get(team).filter(|backlog| backlog.held > own)?;
            backlog.jobs.iter().any(Job::is_evictable).then_some((backlog.held, *team))
        });
        let victim = candidates.max_by_key(|(held, _)| *held);
        self.most = victim.map_or(own, |(held, _)| held);
        victim.map(|(_, team)| team)
    }

    /// Takes the newest job out that may be evicted, while the team has more than `own`.
    /// Returns its place too.
    fn evict(&mut self, team: TeamHash, own: usize) -> Option<(usize, Job<O>)> {
        let backlog = self.backlogs.get_mut(&team).filter(|backlog| backlog.held > own)?;
        let place = backlog.jobs.iter().rposition(Job::is_evictable)?;
        let job = backlog.jobs.remove(place)?;
        backlog.open -= job.open();
        if backlog.jobs.is_empty() {
            self.turns.retain(|waiting| *waiting != team);
        }
        self.release(team, job.size());
        Some((place, job))
    }

    fn restore(&mut self, place: usize, job: Job<O>) {
        let (team, size) = (job.team, job.size());
        self.put(Some(place), job);
        self.hold(team, size);
    }
}
