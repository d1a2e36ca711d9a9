//! Repairs by an operator.

use std::time::Duration;

use oncegate::{
    admin::Author,
    domain::TeamFilter,
    store::{Age, Scope},
};
use tokio::time::{Instant, timeout};

use super::{
    super::{checker::Checker, world::REPAIR_TIMEOUT},
    Bot, CALL_TIMEOUT, EVENTS, SESSIONS, event, event_name, session, session_name,
};

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repair {
    Unbind,
    ForceRelease,
    Close,
    Forget(u64),
    ForgetOld,
    Sweep,
}

impl Bot {
    pub(super) async fn operate(&mut self) {
        let (sent, replica) = self.sends();
        let author = Author { principal: None, actor: self.name.clone(), reason: String::new() };
        let on = self.chance.below(SESSIONS);
        let key = session(on);
        let repair = match self.chance.below(6) {
            0 => Repair::Unbind,
            1 => Repair::ForceRelease,
            2 => Repair::Close,
            3 => Repair::Forget(self.chance.below(EVENTS)),
            4 => Repair::ForgetOld,
            _ => Repair::Sweep,
        };
        let subjects: Vec<String> = match repair {
            Repair::Unbind | Repair::ForceRelease | Repair::Close => vec![session_name(on)],
            Repair::Forget(number) => vec![event_name(number)],
            Repair::ForgetOld => (0..EVENTS).map(event_name).collect(),
            // What has expired is nobody's any more.
            Repair::Sweep => Vec::new(),
        };
        let each = |tell: fn(&mut Checker, &str)| {
            self.check(|checker| subjects.iter().for_each(|subject| tell(checker, subject)));
        };
        each(Checker::repair_begins);
        let done = async {
            match repair {
                Repair::Unbind => drop(replica.admin.bind_epic(key, None, author).await),
                Repair::ForceRelease => drop(replica.admin.force_release(key, author).await),
                Repair::Close => drop(replica.admin.close(key, author).await),
                Repair::Forget(number) => {
                    let is_gone = replica.admin.forget(event(number).key, author).await.is_ok();
                    // With an alias, it may be on record under that name alone.
                    if is_gone && event(number).aliases.is_empty() {
                        self.check(|checker| checker.forgotten(&event_name(number), sent));
                    }
                }
                Repair::ForgetOld | Repair::Sweep => {
                    let age = if repair == Repair::ForgetOld {
                        Age::AtLeast(Duration::from_secs(30))
                    } else {
                        Age::Expired
                    };
                    let scope = Scope {
                        team: TeamFilter::stored(None),
                        age,
                        dry_run: false,
                        elected: false,
                    };
                    let until = Instant::now() + CALL_TIMEOUT;
                    drop(replica.cleanup.run(&scope, 1_000, until).await);
                }
            }
        };
        let is_over = timeout(REPAIR_TIMEOUT, done).await.is_ok();
        self.note(|| format!("operator: {repair:?} on {subjects:?}: {is_over}"));
        if is_over {
            self.world.count("repair");
        } else {
            self.failed(sent, "repair", "no answer");
        }
        each(Checker::repair_ends);
    }
}
