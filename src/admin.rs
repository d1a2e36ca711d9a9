//! What those who look after the bots ask for: what is held by whom, and how to
//! put it right by hand. One thing at a time, over a connection of its own, so
//! that a list of everything stalls nobody.

use tokio::runtime::Handle;

use crate::{
    domain::{EventKey, SessionKey, SessionRow, StoredEvent},
    lane::{CallError, Executes, Lane, Op},
    session::Sessions,
    store::{Connection, Counts, Page, Store, StoreError, Verdict},
    telemetry::Metrics,
};

/// How many questions may queue.
const QUEUE: usize = 64;

/// One thing that is asked for.
#[derive(Debug, Clone)]
enum Task {
    List(Page),
    BindEpic(SessionKey, Option<String>),
    ForceRelease(SessionKey),
    Close(SessionKey),
    Forget(EventKey),
    Count(Option<String>),
}

/// What became of it.
#[derive(Debug, Clone)]
enum Done {
    Listed(Vec<(SessionKey, SessionRow)>),
    /// Whether there was anything to change.
    Changed(bool),
    Forgotten(Option<StoredEvent>),
    Counted(Counts),
}

impl Op for Task {
    type Key<'a> = ();
    type Row = Done;
    type Answer = Done;

    fn key(&self) {}

    fn answer(&self, done: &Done) -> Verdict<Done> {
        Verdict::Decided(done.clone())
    }
}

impl<S: Connection> Executes<Task> for S {
    async fn execute(&mut self, tasks: &[&Task]) -> Result<Vec<Verdict<Done>>, StoreError> {
        let mut done = Vec::with_capacity(tasks.len());
        for task in tasks {
            done.push(match task {
                Task::List(page) => Verdict::Decided(Done::Listed(self.list_sessions(page).await?)),
                Task::BindEpic(key, epic) => {
                    self.bind_epic(key, epic.as_deref()).await?.map(|()| Done::Changed(true))
                }
                Task::ForceRelease(key) => self.force_release(key).await?.map(Done::Changed),
                Task::Close(key) => self.close_session(key).await?.map(Done::Changed),
                Task::Forget(key) => {
                    Verdict::Decided(Done::Forgotten(self.forget_event(key).await?))
                }
                Task::Count(team) => {
                    Verdict::Decided(Done::Counted(self.count(team.as_deref()).await?))
                }
            });
        }
        Ok(done)
    }
}

/// Who asks for a change, and why.
#[derive(Debug, Clone)]
pub struct Author {
    /// Who.
    pub actor: String,
    /// Why; empty where they did not say.
    pub reason: String,
}

/// Looks after sessions and events. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    tasks: Lane<Task>,
    sessions: Sessions,
}

impl Admin {
    /// Starts the lane on `runtime`. `sessions` are told what is free.
    pub fn start(
        store: &impl Store,
        runtime: &Handle,
        sessions: Sessions,
        metrics: &Metrics,
    ) -> Self {
        // A lane of one a batch: tasks that ask alike are still two.
        let lane = metrics.lane("admin");
        Self { tasks: Lane::start(runtime, store.patient_connection(), QUEUE, 1, lane), sessions }
    }

    /// A session's row; none where it has none.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn session(&self, key: SessionKey) -> Result<Option<SessionRow>, CallError> {
        self.sessions.look(key).await
    }

    /// How many callers wait for a session on this replica.
    #[must_use]
    pub fn waiters(&self, key: &SessionKey) -> usize {
        self.sessions.waiters(key)
    }

    /// How many callers wait for any session on this replica.
    #[must_use]
    pub fn all_waiters(&self) -> usize {
        self.sessions.all_waiters()
    }

    /// Sessions, in the order of team and id, and whether there are more.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list(
        &self,
        page: Page,
    ) -> Result<(Vec<(SessionKey, SessionRow)>, bool), CallError> {
        let most = page.limit as usize;
        let page = Page { limit: page.limit + 1, ..page };
        match self.tasks.call(Task::List(page)).await? {
            Done::Listed(mut sessions) => {
                let more = sessions.len() > most;
                sessions.truncate(most);
                Ok((sessions, more))
            }
            other => Err(mixed_up(&other)),
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
        author: &Author,
    ) -> Result<(), CallError> {
        self.change(Task::BindEpic(key.clone(), epic.clone())).await?;
        let Author { actor, reason } = author;
        let SessionKey { team, session } = key;
        tracing::info!(target: AUDIT, team, session, epic, actor, reason, "epic bound");
        Ok(())
    }

    /// Ends a session's lease, whoever holds it. Answers whether there was one.
    ///
    /// # Errors
    /// [`CallError`]; then it is not known whether it has ended.
    pub async fn force_release(
        &self,
        key: &SessionKey,
        author: &Author,
    ) -> Result<bool, CallError> {
        let released = self.change(Task::ForceRelease(key.clone())).await?;
        self.sessions.freed(key);
        let Author { actor, reason } = author;
        let SessionKey { team, session } = key;
        tracing::info!(target: AUDIT, team, session, released, actor, reason, "lease ended by force");
        Ok(released)
    }

    /// Ends a session's lease, and forgets the session. Answers whether there was
    /// one.
    ///
    /// # Errors
    /// [`CallError`]; then it is not known whether it is gone.
    pub async fn close(&self, key: &SessionKey, author: &Author) -> Result<bool, CallError> {
        let closed = self.change(Task::Close(key.clone())).await?;
        self.sessions.freed(key);
        let Author { actor, reason } = author;
        let SessionKey { team, session } = key;
        tracing::info!(target: AUDIT, team, session, closed, actor, reason, "session closed");
        Ok(closed)
    }

    /// Forgets that an event was handled. Answers its row, where there was one.
    ///
    /// # Errors
    /// [`CallError`]; then it is not known whether it is forgotten.
    pub async fn forget(
        &self,
        key: &EventKey,
        author: &Author,
    ) -> Result<Option<StoredEvent>, CallError> {
        let forgotten = match self.tasks.call(Task::Forget(key.clone())).await? {
            Done::Forgotten(forgotten) => forgotten,
            other => return Err(mixed_up(&other)),
        };
        let was_known = forgotten.is_some();
        let Author { actor, reason } = author;
        let EventKey { team, event } = key;
        tracing::info!(target: AUDIT, team, event, was_known, actor, reason, "event forgotten");
        Ok(forgotten)
    }

    /// Counts what there is, of one team or of all.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn count(&self, team: Option<String>) -> Result<Counts, CallError> {
        match self.tasks.call(Task::Count(team)).await? {
            Done::Counted(counts) => Ok(counts),
            other => Err(mixed_up(&other)),
        }
    }

    async fn change(&self, task: Task) -> Result<bool, CallError> {
        match self.tasks.call(task).await? {
            Done::Changed(changed) => Ok(changed),
            other => Err(mixed_up(&other)),
        }
    }
}

/// What changes that were made by hand are logged as.
const AUDIT: &str = "oncegate::audit";

fn mixed_up(done: &Done) -> CallError {
    StoreError::fault(format!("the answer to another question: {done:?}")).into()
}
