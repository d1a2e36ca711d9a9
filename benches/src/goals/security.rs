//! What authentication and TLS cost.
//!
//! The client pays for TLS too: its share is on its own account, `client_cpu`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use oncegate::auth::token::{self, Digest};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;

use super::{
    Bound::{AtLeast, AtMost, None},
    Goal, Round, Subject, ratio,
    subjects::{EMPTY_ONCEGATE, Lazy, NO_SWEEP, fresh},
};
use crate::{
    bench::{Bench, GrpcLoad},
    load::{Access, Spec, Tls, Work},
    run::{self, Job, Watched},
};

/// The caller of the certificate.
const WORKLOAD: &str = "spiffe://bench/caller";

pub const SECURITY: Goal = Goal {
    name: "P16",
    title: "marks with authentication beside marks without",
    full_only: false,
    criteria: &[
        ratio("new events, 256 callers: token ÷ open", AtLeast(0.95), |round| {
            round.rates("new, token", "new, open")
        }),
        ratio("new events, 256 callers: mTLS ÷ open", AtLeast(0.85), |round| {
            round.rates("new, mTLS", "new, open")
        }),
        ratio("known events, 256 callers: token ÷ open", AtLeast(0.95), |round| {
            round.rates("known, token", "known, open")
        }),
        ratio("known events, 256 callers: mTLS ÷ open", AtLeast(0.85), |round| {
            round.rates("known, mTLS", "known, open")
        }),
        ratio("one caller, p50: token ÷ open", AtMost(1.05), |round| {
            p50s(round, "alone, token", "alone, open")
        }),
        ratio("one caller, p50: mTLS ÷ open", AtMost(1.15), |round| {
            p50s(round, "alone, mTLS", "alone, open")
        }),
        ratio("new events, server CPU per mark: token ÷ open", None, |round| {
            round.server_cpus("new, token", "new, open")
        }),
        ratio("new events, server CPU per mark: mTLS ÷ open", None, |round| {
            round.server_cpus("new, mTLS", "new, open")
        }),
        ratio("known events, server CPU per mark: token ÷ open", None, |round| {
            round.server_cpus("known, token", "known, open")
        }),
        ratio("known events, server CPU per mark: mTLS ÷ open", None, |round| {
            round.server_cpus("known, mTLS", "known, open")
        }),
    ],
    subjects: |bench| {
        let new = GrpcLoad::new(Work::Mark, 256);
        let known = GrpcLoad::new(Work::MarkKnown, 256);
        let alone = GrpcLoad::new(Work::Mark, 1);
        Ok(vec![
            marks(bench, "new, open", Way::Open, new),
            marks(bench, "new, token", Way::Token, new),
            marks(bench, "new, mTLS", Way::MutualTls, new),
            marks(bench, "known, open", Way::Open, known),
            marks(bench, "known, token", Way::Token, known),
            marks(bench, "known, mTLS", Way::MutualTls, known),
            marks(bench, "alone, open", Way::Open, alone),
            marks(bench, "alone, token", Way::Token, alone),
            marks(bench, "alone, mTLS", Way::MutualTls, alone),
        ])
    },
};

fn p50s(round: &Round<'_>, id: &str, other: &str) -> anyhow::Result<f64> {
    Ok(round.run(id)?.load.p50_us / round.run(other)?.load.p50_us)
}

/// How callers reach the server.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Without `--auth`, in plaintext.
    Open,
    /// With a bearer token, in plaintext.
    Token,
    /// With a client certificate.
    MutualTls,
}

fn marks<'a>(bench: &'a Bench, id: &'static str, way: Way, load: GrpcLoad) -> Subject<'a> {
    let database = Lazy::new(bench, "");
    let run = move || {
        let files = Files::new()?;
        let flags = files.flags(way);
        let flags: Vec<&str> =
            NO_SWEEP.into_iter().chain(flags.iter().map(String::as_str)).collect();
        let server = fresh(&database, &flags)?;
        let spec = Spec { access: files.access(way), ..bench.load(&[&server.address], load) };
        let watched = Watched { server: Some(server.pid()), cluster: Some(&bench.cluster) };
        let run = run::load(&Job::Grpc(spec), watched);
        database.get()?.execute(EMPTY_ONCEGATE)?;
        run
    };
    let what = format!("oncegate: {id}, {} callers", load.callers);
    Subject { id, what, run: Box::new(run) }
}

/// The credentials of a server and of its callers.
struct Files {
    directory: TempDir,
    token: String,
}

impl Files {
    fn new() -> anyhow::Result<Self> {
        let files = Self { directory: TempDir::new()?, token: token::generate()? };
        let digest = Digest::of(files.token.as_bytes()).to_hex();
        let auth = format!(
            "[[principal]]\nname = \"bench\"\nrole = \"bot\"\nteams = [\"*\"]\n\
             token_sha256 = [\"{digest}\"]\nspiffe = [\"{WORKLOAD}\"]\n"
        );
        fs::write(files.path("auth.toml"), auth)?;

        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(files.path("ca.pem"), authority.pem())?;
        let mut workload = CertificateParams::default();
        workload.subject_alt_names.push(SanType::URI(WORKLOAD.try_into()?));
        let server = CertificateParams::new(["127.0.0.1".to_owned()])?;
        for (name, params) in [("server", server), ("workload", workload)] {
            let key = KeyPair::generate()?;
            fs::write(
                files.path(name).with_extension("pem"),
                params.signed_by(&key, &authority)?.pem(),
            )?;
            fs::write(files.path(name).with_extension("key"), key.serialize_pem())?;
        }
        Ok(files)
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The flags of the server.
    fn flags(&self, way: Way) -> Vec<String> {
        const ALL: [(&str, &str); 4] = [
            ("--auth", "auth.toml"),
            ("--tls-cert", "server.pem"),
            ("--tls-key", "server.key"),
            ("--tls-client-ca", "ca.pem"),
        ];
        let used = match way {
            Way::Open => &[],
            Way::Token => &ALL[..1],
            Way::MutualTls => &ALL[..],
        };
        let flag = |(flag, name): &(&str, &str)| {
            [(*flag).to_owned(), self.path(name).display().to_string()]
        };
        used.iter().flat_map(flag).collect()
    }

    /// What a caller has.
    fn access(&self, way: Way) -> Access {
        let tls = Tls {
            ca: self.path("ca.pem"),
            cert: self.path("workload.pem"),
            key: self.path("workload.key"),
        };
        Access {
            token: (way == Way::Token).then(|| self.token.clone()),
            tls: (way == Way::MutualTls).then_some(tls),
        }
    }
}
