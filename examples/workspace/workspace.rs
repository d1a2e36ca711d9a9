//! The workspace: delivers what is due, moves the clock, kills bots, and watches.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    mem,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::mpsc::{self, Receiver},
    time::timeout,
};

use crate::{
    CLAIM_TTL, SECOND, START,
    log::{Log, Run},
    plan::{Delivery, Mishap, Plan},
    process::{Bot, Word},
    wire::{Answer, FromBot, ToBot, Verdict},
};

/// When Slack delivers again what was not acknowledged; after that it gives up.
const RETRIES: [i64; 3] = [0, 60 * SECOND, 300 * SECOND];
/// After how long Slack takes a delivery for not acknowledged.
const PATIENCE: i64 = 3 * SECOND;
/// How far the clock moves at once.
const STEP: i64 = SECOND / 2;
/// For how long a replica that has died is taken for one that is there, and may be handed
/// a lease.
const PRESENCE: i64 = 8 * SECOND;
/// How long a bot may take to tell that it was granted a turn: less than a claim runs, so
/// that none lapses unless it is meant to.
const REACTION: i64 = 20 * SECOND;
/// The most deliveries that one bot has under way, but for those that must wait.
const WINDOW: usize = 24;
/// How long nothing may happen, in real time, until that counts as a failure.
const SILENCE: Duration = Duration::from_mins(2);
/// The most that may be wrong until it is not worth going on.
const MAX_WRONGS: usize = 20;

/// One try to deliver, until it is answered or its bot dies.
struct Call {
    delivery: usize,
    message: usize,
    thread: usize,
    tries: usize,
    bot: usize,
    sent: i64,
    /// Whether the event was known to be handled by then.
    was_handled: bool,
    /// Whether Slack has ceased to listen: what is answered does not matter to it.
    is_given_up: bool,
    run: Option<Run>,
    /// When it goes on, where it stands still.
    stands_until: Option<i64>,
    answered_at: i64,
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Figures {
    pub tries: u64,
    /// The first ones.
    pub delivered: u64,
    pub reordered: u64,
    pub kills: u64,
    pub stalls: u64,
    pub handled: u64,
    pub duplicates: u64,
    pub in_progress: u64,
    pub busy: u64,
    pub failed: u64,
    pub given_up: u64,
}

pub struct Workspace {
    pub plan: Plan,
    kill_every: u64,
    random: StdRng,
    pub now: i64,
    /// When to deliver what, for the how-manyeth time.
    due: BinaryHeap<Reverse<(i64, usize, usize)>>,
    calls: BTreeMap<usize, Call>,
    bots: Vec<Bot>,
    words: Receiver<Word>,
    /// Until when each thread may be held by a run that has died, or stands still.
    blocked: Vec<i64>,
    /// When each bot last answered for which threads, in this life.
    answered: Vec<HashMap<usize, i64>>,
    /// The latest message of each thread that was delivered.
    latest: Vec<usize>,
    pub log: Log,
    pub figures: Figures,
}

impl Workspace {
    pub fn start(
        plan: Plan,
        bots: usize,
        database_url: &str,
        kill_every: u64,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let (told, words) = mpsc::channel(4_096);
        let start = |number| Bot::start(number, database_url, told.clone());
        let bots = (0..bots).map(start).collect::<anyhow::Result<Vec<_>>>()?;
        let first = plan.deliveries.iter().enumerate();
        let due = first.map(|(index, delivery)| Reverse((delivery.due, index, 0))).collect();
        let log = Log::new(plan.threads, plan.messages.len());
        let threads = plan.threads;
        Ok(Self {
            plan,
            kill_every,
            random: StdRng::seed_from_u64(seed),
            now: START,
            due,
            calls: BTreeMap::new(),
            answered: vec![HashMap::new(); bots.len()],
            bots,
            words,
            blocked: vec![START; threads],
            latest: vec![0; threads],
            log,
            figures: Figures::default(),
        })
    }

    /// Delivers everything, until Slack has nothing left to deliver.
    pub async fn run(&mut self) -> anyhow::Result<()> {
        while !(self.due.is_empty() && self.calls.is_empty()) {
            self.go_on()?;
            self.deliver()?;
            if self.may_move() {
                self.now += STEP;
                for bot in self.bots.iter_mut().filter(|bot| bot.is_ready) {
                    bot.tell(ToBot::Tick(self.now))?;
                    bot.is_ticking = true;
                }
            }
            let word = timeout(SILENCE, self.words.recv()).await;
            let word = word.with_context(|| self.under_way())?.context("no bot is left")?;
            self.hear(word).await?;
            ensure!(self.log.wrongs.len() < MAX_WRONGS, "too much is wrong to go on");
        }
        Ok(())
    }

    /// What was going on when nothing happened any more.
    fn under_way(&self) -> String {
        let calls = self.calls.values().map(|call| {
            let Call { bot, thread, run, .. } = call;
            let blocked = (self.blocked[*thread] - START) / SECOND;
            format!("\nbot-{bot} thread {thread}, blocked {blocked}: {run:?}")
        });
        let now = (self.now - START) / SECOND;
        format!("nothing happens any more at {now} s:{}", calls.collect::<String>())
    }

    /// Whether the clock may move: once what is due is delivered, and as far as it makes
    /// no claim lapse but of those who died or stand still. Who waits behind them needs it
    /// to move.
    fn may_move(&self) -> bool {
        let until = |call: &Call| match &call.run {
            _ if call.stands_until.is_some() => i64::MAX,
            Some(run) => run.grant.until,
            None => self.blocked[call.thread].max(call.sent) + REACTION,
        };
        let next = self.due.peek().map_or(i64::MAX, |Reverse((due, ..))| *due);
        next > self.now
            && self.bots.iter().any(|bot| bot.is_ready)
            && !self.bots.iter().any(|bot| bot.is_ticking)
            && self.calls.values().all(|call| self.now + STEP < until(call))
    }

    /// A bot that serves and has room; any of them.
    fn choose(&mut self) -> Option<usize> {
        let mut busy = vec![0; self.bots.len()];
        for call in self.calls.values() {
            let waits = call.run.is_none() && self.blocked[call.thread] > self.now;
            busy[call.bot] += usize::from(!waits && call.stands_until.is_none());
        }
        let has_room = |bot: &usize| self.bots[*bot].is_ready && busy[*bot] < WINDOW;
        let free: Vec<usize> = (0..self.bots.len()).filter(has_room).collect();
        (!free.is_empty()).then(|| free[self.random.random_range(0..free.len())])
    }

    /// Whether it is time to kill a bot.
    fn kill_is_due(&self) -> bool {
        self.figures.delivered >= (self.figures.kills + 1) * self.kill_every
    }

    /// Delivers what is due, as far as bots have room.
    fn deliver(&mut self) -> anyhow::Result<()> {
        while let Some(&Reverse((due, delivery, tries))) = self.due.peek()
            && due <= self.now
        {
            // Killing keeps up with delivering, however fast the machine is.
            if self.kill_is_due() && !self.bots.iter().all(|bot| bot.is_ready) {
                break;
            }
            let Some(bot) = self.choose() else { break };
            self.due.pop();
            self.send(delivery, tries, bot)?;
        }
        Ok(())
    }

    fn send(&mut self, delivery: usize, tries: usize, bot: usize) -> anyhow::Result<()> {
        let Delivery { message, event_id, acknowledged_late, waits, keeps, .. } =
            &self.plan.deliveries[delivery];
        let of = &self.plan.messages[*message];
        let call = usize::try_from(self.figures.tries)?;
        self.bots[bot].tell(ToBot::Deliver(crate::wire::Delivery {
            call,
            event_id: event_id.clone(),
            channel: of.channel.clone(),
            ts: of.ts.clone(),
            thread_ts: of.thread_ts.clone(),
            has_twin: of.has_twin,
            waits: *waits || tries > 0,
            keeps: *keeps && tries == 0,
        }))?;
        let is_given_up = *acknowledged_late && tries == 0;
        self.calls.insert(
            call,
            Call {
                delivery,
                message: *message,
                thread: of.thread,
                tries,
                bot,
                sent: self.now,
                was_handled: self.log.is_handled(*message),
                is_given_up,
                run: None,
                stands_until: None,
                answered_at: self.now,
            },
        );
        self.figures.tries += 1;
        self.figures.delivered += u64::from(tries == 0);
        self.figures.reordered += u64::from(tries == 0 && *message < self.latest[of.thread]);
        self.latest[of.thread] = self.latest[of.thread].max(*message);
        if is_given_up {
            self.again(delivery, tries, PATIENCE);
        }
        Ok(())
    }

    /// A try was not acknowledged: there is another `after` a while, or none.
    fn again(&mut self, delivery: usize, tries: usize, after: i64) {
        match RETRIES.get(tries) {
            Some(retry) => {
                self.due.push(Reverse((self.now + after + retry, delivery, tries + 1)));
            }
            None => self.figures.given_up += 1,
        }
    }

    /// Lets runs go on that have stood still for long enough.
    fn go_on(&mut self) -> anyhow::Result<()> {
        let is_over = |call: &Call| call.stands_until.is_some_and(|until| until <= self.now);
        let over = self.calls.iter().filter(|(_, call)| is_over(call)).map(|(call, _)| *call);
        for call in over.collect::<Vec<_>>() {
            let mishap = self.plan.deliveries[self.calls[&call].delivery].mishap;
            let is_written = matches!(mishap, Some(Mishap::EndsLate(_)));
            let verdict = if is_written { Verdict::Taken } else { self.write(call)? };
            self.answer(call, verdict)?;
        }
        Ok(())
    }

    async fn hear(&mut self, (number, life, word): Word) -> anyhow::Result<()> {
        let bot = &mut self.bots[number];
        if bot.life != life {
            return Ok(());
        }
        match word {
            None => bail!("bot-{number} ended by itself"),
            Some(FromBot::Ready) => {
                bot.tell(ToBot::Tick(self.now))?;
                (bot.is_ready, bot.is_ticking) = (true, true);
            }
            Some(FromBot::Ticked) => bot.is_ticking = false,
            Some(FromBot::Granted(call, grant)) => {
                let told = self.calls.get_mut(&call).context("no such call")?;
                let run = Run { call, message: told.message, grant };
                if told.was_handled {
                    self.log.wrongs.push(format!("granted though handled: {run:?}"));
                }
                self.log.begin(told.thread, &run);
                told.run = Some(run);
            }
            Some(FromBot::Effect(call)) => self.effect(call).await?,
            Some(FromBot::Answer(call, answer)) => self.end(call, &answer)?,
        }
        Ok(())
    }

    fn write(&mut self, call: usize) -> anyhow::Result<Verdict> {
        let Call { thread, run, .. } = &self.calls[&call];
        let run = run.as_ref().context("an effect without a turn")?;
        Ok(self.log.write(*thread, run, self.now))
    }

    fn answer(&mut self, call: usize, verdict: Verdict) -> anyhow::Result<()> {
        let told = self.calls.get_mut(&call).context("no such call")?;
        told.stands_until = None;
        told.answered_at = self.now;
        self.log.answer(told.thread, call);
        self.bots[told.bot].tell(ToBot::Written(call, verdict))
    }

    /// A run writes its effect, unless something befalls it.
    async fn effect(&mut self, call: usize) -> anyhow::Result<()> {
        let Call { delivery, tries, bot, .. } = self.calls[&call];
        let mishap = self.plan.deliveries[delivery].mishap.filter(|_| tries == 0);
        let verdict = match mishap {
            Some(Mishap::Fails) => Verdict::Failed,
            Some(Mishap::WritesLate(late)) => return self.stand_still(call, late),
            Some(Mishap::EndsLate(late)) => {
                self.write(call)?;
                return self.stand_still(call, late);
            }
            None => self.write(call)?,
        };
        // A bot dies when an effect is there and its turn is not ended.
        if verdict == Verdict::Taken && self.kill_is_due() && self.may_die(bot) {
            return self.kill(bot).await;
        }
        self.answer(call, verdict)
    }

    /// A run stands still until its claim has lapsed, and `late` besides. Slack does not
    /// wait for it.
    fn stand_still(&mut self, call: usize, late: i64) -> anyhow::Result<()> {
        let stands = self.calls.get_mut(&call).context("no such call")?;
        let until = stands.run.as_ref().context("an effect without a turn")?.grant.until;
        stands.stands_until = Some(until + late);
        let was_given_up = mem::replace(&mut stands.is_given_up, true);
        let Call { delivery, thread, tries, .. } = *stands;
        self.blocked[thread] = self.blocked[thread].max(until);
        self.figures.stalls += 1;
        if !was_given_up {
            self.again(delivery, tries, PATIENCE);
        }
        Ok(())
    }

    /// Whether a bot may be killed: while the others serve; and not while it has a delivery
    /// that Slack will not repeat, for to lose that would be Slack's loss, not the bot's.
    fn may_die(&self, bot: usize) -> bool {
        let is_last = |call: &Call| call.bot == bot && call.tries == RETRIES.len();
        self.bots.iter().all(|bot| bot.is_ready) && !self.calls.values().any(is_last)
    }

    async fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        self.bots[number].kill().await?;
        self.figures.kills += 1;
        for call in self.calls.extract_if(.., |_, call| call.bot == number).collect::<Vec<_>>() {
            let (_, Call { delivery, thread, tries, is_given_up, .. }) = call;
            // Its run's claim may run on for so long; or that of a run that died waiting.
            self.blocked[thread] = self.now + PRESENCE + CLAIM_TTL;
            if !is_given_up {
                self.again(delivery, tries, 0);
            }
        }
        for (thread, at) in self.answered[number].drain() {
            // A lease that came to nothing may be given back after the answer: not by the
            // dead.
            self.blocked[thread] = self.blocked[thread].max(at + CLAIM_TTL);
        }
        Ok(())
    }

    /// A delivery has ended for its bot.
    fn end(&mut self, call: usize, answer: &Answer) -> anyhow::Result<()> {
        let call = self.calls.remove(&call).context("answered twice")?;
        self.answered[call.bot].insert(call.thread, self.now);
        let (message, run) = (call.message, call.run.as_ref());
        if call.was_handled && !matches!(answer, Answer::Duplicate(_)) {
            let ts = &self.plan.messages[message].ts;
            self.log.wrongs.push(format!("{answer:?} though handled: {ts}"));
        }
        let figures = &mut self.figures;
        match answer {
            Answer::Handled => {
                figures.handled += 1;
                self.log.handled(run.context("handled without a turn")?, call.answered_at);
            }
            Answer::Duplicate(told) => {
                figures.duplicates += 1;
                self.log.duplicate(message, &self.plan.messages, told);
            }
            Answer::InProgress => figures.in_progress += 1,
            Answer::Busy => figures.busy += 1,
            Answer::Failed => figures.failed += 1,
            Answer::Lost => self.log.lost(run.context("lost without a turn")?, self.now),
            Answer::Wrong(what) => self.log.wrongs.push(what.clone()),
        }
        let is_acknowledged = matches!(answer, Answer::Handled | Answer::Duplicate(_));
        if !is_acknowledged && !call.is_given_up {
            self.again(call.delivery, call.tries, 0);
        }
        Ok(())
    }
}
