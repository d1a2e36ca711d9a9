//! The two that hand a session to and fro over gRPC.

use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{Connection, Ended, Keys, Lease, Script, Step, etcd};
use crate::handover::Party;

struct Caller<S> {
    connection: Connection,
    script: S,
    message: Vec<u8>,
}

pub fn oncegate(target: &str, seed: u64) -> anyhow::Result<Box<dyn Party>> {
    let script = Lease::new(&Keys::new(seed, 0), 1).waiting();
    Ok(Box::new(Caller { connection: Connection::open(target)?, script, message: Vec::new() }))
}

pub fn etcd(target: &str, seed: u64) -> anyhow::Result<Box<dyn Party>> {
    let script = etcd::Lock::new(&Keys::new(seed, 0), 1);
    let connection = Connection::open(target)?;
    let mut caller = Caller { connection, script, message: Vec::new() };
    // The lease, under which it locks.
    caller.call()?;
    Ok(Box::new(caller))
}

impl<S: Script> Caller<S> {
    fn call(&mut self) -> anyhow::Result<Step> {
        let Self { connection, script, message } = self;
        let path = script.ask(0, message)?;
        connection.call(0, path, None, message)?;
        let mut step = None;
        while step.is_none() {
            connection.exchange(Some(Duration::from_millis(100)))?;
            connection.take(&mut |_, Ended { message: answer, .. }| {
                step = Some(script.hear(0, answer.context("the call failed")?)?);
                Ok(())
            })?;
        }
        step.context("no answer")
    }
}

impl<S: Script + Send> Party for Caller<S> {
    fn take(&mut self) -> anyhow::Result<()> {
        match self.call()? {
            Step::More => Ok(()),
            Step::Done(_) | Step::Wrong => bail!("it was not given"),
        }
    }

    fn give(&mut self) -> anyhow::Result<()> {
        match self.call()? {
            Step::Done(_) => Ok(()),
            Step::More | Step::Wrong => bail!("it was not held"),
        }
    }
}
