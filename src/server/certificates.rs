//! The server's certificates, read from files and again when those change.

use std::sync::{Arc, Mutex, PoisonError};

use super::reload::{Applied, Contents, Reloader};
use crate::{
    config::TlsConfig,
    sockets::{HandshakeError, Tls, TlsMaterial},
    telemetry::{HandshakeMetrics, LogThrottle, TlsMetrics},
};

/// Reads the certificates that `config` names, if any, and again whenever they change.
pub(super) async fn follow(
    config: &TlsConfig,
    reloader: &Reloader,
    metrics: &TlsMetrics,
) -> anyhow::Result<Option<Tls>> {
    let Some((certificate, key)) = config.pair() else { return Ok(None) };
    let (certificate, key) = (certificate.clone(), key.clone());
    let (authorities, client) = (config.tls_client_ca.clone(), config.client());
    let files: Vec<_> = [&certificate, &key].into_iter().chain(&authorities).cloned().collect();
    let metrics = metrics.clone();
    // Set by the first reading, which is done when this returns.
    let in_use = Arc::<Mutex<Option<Tls>>>::default();
    let set = Arc::clone(&in_use);
    let apply = move |contents: &Contents| {
        let authorities = authorities.as_ref().map(|path| contents.get(path)).transpose()?;
        let clients = authorities.map(|authorities| (authorities, client));
        let material =
            TlsMaterial::read(contents.get(&certificate)?, contents.get(&key)?, clients)?;
        let validity = material.validity;
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        match &*set {
            Some(tls) => tls.replace(material)?,
            None => *set = Some(Tls::new(material)),
        }
        metrics.valid(validity.map(|validity| (validity.not_before, validity.not_after)));
        Ok(Applied::Whole)
    };
    reloader.watch("tls", move |_| files.clone(), apply).await?;
    let tls = in_use.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(tls)
}

/// TLS on one kind of listener, and what became of its handshakes. Cheap to clone.
#[derive(Clone)]
pub(super) struct ListenerTls {
    pub(super) tls: Tls,
    metrics: HandshakeMetrics,
    warnings: Arc<Mutex<LogThrottle>>,
}

impl ListenerTls {
    pub(super) fn new(tls: Tls, listener: &'static str, metrics: &TlsMetrics) -> Self {
        let metrics = metrics.handshakes(listener, HandshakeError::ALL.map(HandshakeError::name));
        Self { tls, metrics, warnings: Arc::default() }
    }

    /// Notes how a handshake ended.
    pub(super) fn ended<T>(&self, how: &Result<T, HandshakeError>) {
        match how {
            Ok(_) => {
                self.metrics.completed.inc();
            }
            Err(refused) => {
                self.metrics.failed(refused.name());
                // Not of those that only look whether the port is open.
                let is_worth =
                    !matches!(refused, HandshakeError::Closed | HandshakeError::TimedOut);
                let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
                if is_worth && warnings.now() {
                    let reason = refused.name();
                    tracing::warn!(reason, "TLS handshake failed; the connection was closed");
                }
            }
        }
    }
}
