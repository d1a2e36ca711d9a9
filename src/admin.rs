//! The operator API: lists, counts, and an operator's repairs, one item at a time. Reads use the
//! connection for scans, so that a list of everything delays no change, and no statement that finds
//! its row by the key.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::{
    domain::{EventKey, EventRow, SessionKey, SessionRow, TeamFilter, split_consumer},
    lane::{CallError, Executes, Lane, Op},
    session::{Sessions, Streams},
    store::{Connection, Counts, EventFilter, Events, Page, Store, StoreError, Verdict, Work},
    telemetry::{self, AUDIT, Metrics, call::CallTrace},
};

/// How many questions, and how many changes, may queue.
const QUEUE: usize = 64;

/// Something that is asked.
enum AdminRead {
    Sessions(Page, Option<bool>),
    Events(Page, EventFilter),
    Count(TeamFilter),
}

#[derive(Clone)]
enum Answer {
    Sessions(Vec<(SessionKey, SessionRow)>),
    Events(Events),
    Counted(Counts),
}

impl Op for AdminRead {
    type Key<'a> = ();
    type Row = Answer;
    type Answer = Answer;

    fn key(&self) {}

    fn team(&self) -> &str {
        let team = match self {
            Self::Sessions(page, _) | Self::Events(page, _) => &page.team,
            Self::Count(team) => team,
        };
        team.team().unwrap_or_default()
    }

    fn is_read(&self) -> bool {
        true
    }

    fn answer(&self, answer: &Answer) -> Verdict<Answer> {
        Verdict::Decided(answer.clone())
    }
}

impl<S: Connection> Executes<AdminRead> for S {
    async fn execute(&mut self, asked: &[&AdminRead]) -> Result<Vec<Verdict<Answer>>, StoreError> {
        let mut answers = Vec::with_capacity(asked.len());
        for question in asked {
            answers.push(Verdict::Decided(match question {
                AdminRead::Sessions(page, held) => {
                    Answer::Sessions(self.list_sessions(page, *held).await?)
                }
                AdminRead::Events(page, filter) => {
                    Answer::Events(self.list_events(page, filter).await?)
                }
                AdminRead::Count(team) => Answer::Counted(self.count(team.team()).await?),
            }));
        }
        Ok(answers)
    }
}

/// Who asks for a change, and why.
#[derive(Debug, Clone)]
pub struct Author {
    /// The principal that was authenticated; none where the server has no `--auth`.
    pub principal: Option<Arc<str>>,
    /// Who it says that it acts for.
    pub actor: String,
    /// Why; empty where they did not say.
    pub reason: String,
}

/// A change that an operator asks for.
struct OperatorChange {
    what: What,
    author: Author,
    streams: Streams,
    /// The call that asks for it.
    call: Option<CallTrace>,
}

#[derive(Clone)]
enum What {
    BindEpic(SessionKey, Option<String>),
    ForceRelease(SessionKey),
    Close(SessionKey),
    Forget(EventKey),
}

/// What a change found to change.
#[derive(Clone)]
enum Done {
    Nothing,
    Session,
    Event(EventRow),
}

impl Op for OperatorChange {
    type Key<'a> = ();
    type Row = Done;
    type Answer = Done;

    fn key(&self) {}

    fn team(&self) -> &str {
        match &self.what {
            What::BindEpic(key, _) | What::ForceRelease(key) | What::Close(key) => &key.team,
            What::Forget(key) => &key.team,
        }
    }

    fn answer(&self, done: &Done) -> Verdict<Done> {
        Verdict::Decided(done.clone())
    }
}

impl<S: Connection> Executes<OperatorChange> for S {
    async fn execute(
        &mut self,
        changes: &[&OperatorChange],
    ) -> Result<Vec<Verdict<Done>>, StoreError> {
        let mut verdicts = Vec::with_capacity(changes.len());
        for change in changes {
            let verdict = make(self, &change.what).await;
            // Here, so that it reaches the log and the streams even if the caller has gone.
            change.log(&verdict);
            change.hint(&verdict);
            verdicts.push(verdict?);
        }
        Ok(verdicts)
    }
}

async fn make(store: &mut impl Connection, what: &What) -> Result<Verdict<Done>, StoreError> {
    let session = |found| if found { Done::Session } else { Done::Nothing };
    Ok(match what {
        What::BindEpic(key, epic) => {
            store.bind_epic(key, epic.as_deref()).await?.map(|()| Done::Session)
        }
        What::ForceRelease(key) => store.force_release(key).await?.map(session),
        What::Close(key) => store.close_session(key).await?.map(session),
        What::Forget(key) => {
            store.forget_event(key).await?.map(|row| row.map_or(Done::Nothing, Done::Event))
        }
    })
}

impl OperatorChange {
    /// Notifies the streams of this replica that may have lost what they keep.
    fn hint(&self, verdict: &Result<Verdict<Done>, StoreError>) {
        match (&self.what, verdict) {
            (_, Ok(Verdict::Retry)) | (What::BindEpic(..), _) => {}
            (What::ForceRelease(key) | What::Close(key), _) => self.streams.session_changed(key),
            (_, Ok(Verdict::Decided(Done::Event(EventRow::Claimed(claim))))) => {
                self.streams.turn_changed(claim.request);
            }
            (What::Forget(_), _) => {}
        }
    }

    fn log(&self, verdict: &Result<Verdict<Done>, StoreError>) {
        let outcome = match verdict {
            // It is tried again.
            Ok(Verdict::Retry) => return,
            Ok(Verdict::Decided(Done::Nothing)) => "not found",
            Ok(Verdict::Decided(_)) => "done",
            Ok(Verdict::Failed(_)) | Err(_) => "unknown",
        };
        let (change, team, stored) = match &self.what {
            What::BindEpic(SessionKey { team, session }, _) => ("bind epic", team, session),
            What::ForceRelease(SessionKey { team, session }) => {
                ("force-release lease", team, session)
            }
            What::Close(SessionKey { team, session }) => ("close session", team, session),
            What::Forget(EventKey { team, event }) => ("forget event", team, event),
        };
        let (id, consumer) = split_consumer(stored);
        let consumer = Some(consumer).filter(|consumer| !consumer.is_empty());
        let epic = match &self.what {
            What::BindEpic(_, epic) => epic.as_deref(),
            _ => None,
        };
        let Author { principal, actor, reason } = &self.author;
        let (team, principal) = (team.as_str(), principal.as_deref());
        telemetry::call::log(self.call.as_ref(), || {
            tracing::info!(target: AUDIT, team, id, consumer, epic, principal, actor, reason, outcome, "{change}");
        });
    }
}

/// Looks after sessions and events. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    questions: Lane<AdminRead>,
    changes: Lane<OperatorChange>,
    sessions: Sessions,
}

impl Admin {
    /// Starts the lanes on `runtime`. `sessions` hand on what is freed.
    pub fn start(
        store: &impl Store,
        runtime: &Handle,
        sessions: Sessions,
        metrics: &Metrics,
    ) -> Self {
        // Lanes of one a batch: two that ask alike are still two.
        let lane = metrics.lane("admin_read");
        let questions = Lane::start(runtime, store.connection(Work::Scans), QUEUE, 1, lane);
        let lane = metrics.lane("admin");
        let changes = Lane::start(runtime, store.connection(Work::Short), QUEUE, 1, lane);
        Self { questions, changes, sessions }
    }

    /// A session's row; none where it has none.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn session(&self, key: SessionKey) -> Result<Option<SessionRow>, CallError> {
        self.sessions.look(key).await
    }

    /// Sessions, in the order of team and id, that are held, or that are not, or all;
    /// and whether there are more.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn sessions(
        &self,
        page: Page,
        held: Option<bool>,
    ) -> Result<(Vec<(SessionKey, SessionRow)>, bool), CallError> {
        let most = page.limit;
        match self.questions.call(AdminRead::Sessions(and_next(page), held)).await? {
            Answer::Sessions(sessions) => Ok(cut(sessions, most)),
            Answer::Events(_) | Answer::Counted(_) => Err(mixed_up()),
        }
    }

    /// Events, in the order of team and id, and whether there are more.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn events(
        &self,
        page: Page,
        filter: EventFilter,
    ) -> Result<(Events, bool), CallError> {
        let most = page.limit;
        match self.questions.call(AdminRead::Events(and_next(page), filter)).await? {
            Answer::Events(Events { at, rows }) => {
                let (rows, more) = cut(rows, most);
                Ok((Events { at, rows }, more))
            }
            Answer::Sessions(_) | Answer::Counted(_) => Err(mixed_up()),
        }
    }

    /// Counts events, sessions and waiters, of one team or of all.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn count(&self, team: TeamFilter) -> Result<Counts, CallError> {
        match self.questions.call(AdminRead::Count(team)).await? {
            Answer::Counted(counts) => Ok(counts),
            Answer::Sessions(_) | Answer::Events(_) => Err(mixed_up()),
        }
    }

    /// Binds a session to `epic`, or to nothing, whatever it is bound to.
    ///
    /// # Errors
    /// [`CallError`]; then it is not known whether it is bound.
    pub async fn bind_epic(
        &self,
        key: SessionKey,
        epic: Option<String>,
        author: Author,
    ) -> Result<(), CallError> {
        self.change(What::BindEpic(key, epic), author).await.map(drop)
    }

    /// Ends a session's lease by force. Answers whether there was one.
    ///
    /// # Errors
    /// [`CallError`]; then it is not known whether it has ended.
    pub async fn force_release(&self, key: SessionKey, author: Author) -> Result<bool, CallError> {
        let done = self.change(What::ForceRelease(key.clone()), author).await?;
        // It goes to whoever waits, or they take it within a second.
        let _ = self.sessions.hand_on(key).await;
        Ok(matches!(done, Done::Session))
    }

    /// Ends a session's lease, and forgets the session. Answers whether there was
    /// one.
    ///
    /// # Errors
    /// [`CallError`]; then it is not known whether it is gone.
    pub async fn close(&self, key: SessionKey, author: Author) -> Result<bool, CallError> {
        let done = self.change(What::Close(key.clone()), author).await?;
        // It goes to whoever waits, or they take it within a second.
        let _ = self.sessions.hand_on(key).await;
        Ok(matches!(done, Done::Session))
    }

    /// Forgets that an event was handled. Answers its row, where there was one.
    ///
    /// # Errors
    /// [`CallError`]; then it is not known whether it is forgotten.
    pub async fn forget(
        &self,
        key: EventKey,
        author: Author,
    ) -> Result<Option<EventRow>, CallError> {
        match self.change(What::Forget(key), author).await? {
            Done::Event(event) => Ok(Some(event)),
            Done::Session | Done::Nothing => Ok(None),
        }
    }

    async fn change(&self, what: What, author: Author) -> Result<Done, CallError> {
        let streams = self.sessions.streams().clone();
        let call = CallTrace::current();
        self.changes.call(OperatorChange { what, author, streams, call }).await
    }
}

/// The page, and one row of the next: it shows whether there is one.
fn and_next(page: Page) -> Page {
    Page { limit: page.limit + 1, ..page }
}

/// The rows of one page, and whether there are more.
fn cut<T>(mut rows: Vec<T>, most: u32) -> (Vec<T>, bool) {
    let most = most as usize;
    let more = rows.len() > most;
    rows.truncate(most);
    (rows, more)
}

fn mixed_up() -> CallError {
    StoreError::internal("unexpected kind of answer").into()
}
