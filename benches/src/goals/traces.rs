//! What traces cost.

use super::{
    Bound::{AtLeast, None},
    Goal, Subject, ratio,
    subjects::{EMPTY_ONCEGATE, Lazy, NO_SWEEP, fresh},
};
use crate::{
    bench::{Bench, GrpcLoad},
    load::Work,
    run::{self, Job, Watched},
};

pub const TRACES: Goal = Goal {
    name: "traces",
    title: "marks with traces of 1 % of the calls beside marks without",
    full_only: false,
    criteria: &[
        ratio("256 callers: 1 % traced ÷ off", AtLeast(0.97), |round| round.rates("1 %", "off")),
        ratio("256 callers: off ÷ off, what is noise", None, |round| {
            round.rates("off again", "off")
        }),
        ratio("server CPU per mark: 1 % traced ÷ off", None, |round| {
            round.server_cpus("1 %", "off")
        }),
        ratio("server CPU per mark: off ÷ off, what is noise", None, |round| {
            round.server_cpus("off again", "off")
        }),
    ],
    subjects: |bench| {
        Ok(vec![
            marks(bench, "off", false),
            marks(bench, "1 %", true),
            marks(bench, "off again", false),
        ])
    },
};

fn marks<'a>(bench: &'a Bench, id: &'static str, traced: bool) -> Subject<'a> {
    let load = GrpcLoad::new(Work::Mark, 256);
    let database = Lazy::new(bench, "");
    let run = move || {
        // Takes the spans, and answers that it has no such method: to their sender that is the same work.
        let collector = traced.then(|| bench.serve("memory:", &[])).transpose()?;
        let endpoint = collector.as_ref().map(|to| format!("http://{}", to.address));
        let mut flags = NO_SWEEP.to_vec();
        if let Some(endpoint) = &endpoint {
            flags.extend(["--otlp-endpoint", endpoint, "--trace-ratio", "0.01"]);
        }
        let server = fresh(&database, &flags)?;
        let spec = bench.load(&[&server.address], load);
        let watched = Watched { server: Some(server.pid()), cluster: Some(&bench.cluster) };
        let run = run::load(&Job::Grpc(spec), watched);
        database.get()?.execute(EMPTY_ONCEGATE)?;
        run
    };
    Subject {
        id,
        what: format!("oncegate: traces {id}, {} callers", load.callers),
        run: Box::new(run),
    }
}
