//! The `--auth` file, read at the start and again whenever it changes.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;

use super::reload::{Applied, Reloader};
use crate::{auth::Policy, grpc::Door, telemetry::Metrics};

/// A door that follows the file at `path`, and the JWKS files that it names. If it is `insecure`,
/// tokens are accepted over plaintext from other hosts.
///
/// # Errors
/// When the files cannot be read or used.
pub(super) async fn follow(
    path: PathBuf,
    insecure: bool,
    reloader: &Reloader,
    metrics: &Metrics,
) -> anyhow::Result<Arc<Door>> {
    let door = Arc::new(Door::new(Policy::default(), insecure, metrics.auth.clone()));
    let (following, file) = (Arc::clone(&door), path.clone());
    let files = move |read: &super::Contents| {
        let mut files = vec![file.clone()];
        // What is wrong with it, `apply` says.
        files.extend(
            read.get(&file).ok().and_then(|text| Policy::files(text).ok()).into_iter().flatten(),
        );
        files
    };
    let apply = move |contents: &super::Contents| {
        let named = |file: &std::path::Path| contents.get(file).map(<[u8]>::to_vec);
        let previous = following.policy();
        let policy = Policy::parse(contents.get(&path)?, &named, Some(&previous))
            .with_context(|| format!("cannot use {}", path.display()))?;
        let stale = policy.stale().join("; ");
        following.replace(policy);
        Ok(if stale.is_empty() {
            Applied::Whole
        } else {
            Applied::AllBut(format!("cannot use all of {}: {stale}", path.display()))
        })
    };
    reloader.watch("auth", files, apply).await.context("--auth")?;
    Ok(door)
}
