//! Which addresses may be served without TLS and authentication.

use std::net::SocketAddr;

use anyhow::ensure;

use super::Address;

/// What protects the calls of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// Its TCP addresses use TLS.
    pub tls: bool,
    /// It authenticates callers.
    pub auth: bool,
    /// The operator accepts that it does neither.
    pub insecure: bool,
}

/// Whether only this machine reaches `address`. An address for all interfaces is not.
#[must_use]
pub fn is_local(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Refuses to serve other machines without TLS and authentication.
///
/// # Errors
/// Naming the address, and the flags that are missing.
pub fn check(listen: &[Address], protection: Protection) -> anyhow::Result<()> {
    let Protection { tls, auth, insecure } = protection;
    let missing = match (tls, auth) {
        (true, true) => return Ok(()),
        (false, true) => "--tls-cert and --tls-key",
        (true, false) => "--auth",
        (false, false) => "--tls-cert, --tls-key and --auth",
    };
    for address in listen {
        let Address::Tcp(tcp) = address else { continue };
        ensure!(
            insecure || is_local(tcp),
            "--listen {address} serves other machines, which needs TLS and authentication: set \
             {missing}, listen on a loopback address or a Unix socket, or accept the risk with \
             --insecure"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_need_tls_and_authentication_unless_waived() {
        let local = ["127.0.0.1:7411", "127.8.9.1:1", "[::1]:0", "[::ffff:127.0.0.1]:0", "unix:/s"];
        let open =
            ["0.0.0.0:7411", "[::]:0", "10.0.0.1:7411", "[::ffff:10.0.0.1]:0", "[fe80::1]:0"];
        for (tls, auth, insecure) in (0..8).map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0)) {
            let protection = Protection { tls, auth, insecure };
            for address in local {
                let listen = [address.parse().unwrap()];
                assert!(check(&listen, protection).is_ok(), "{address} {protection:?}");
            }
            for address in open {
                // One of several is enough.
                let listen = [local[0].parse().unwrap(), address.parse().unwrap()];
                let checked = check(&listen, protection);
                let may = (tls && auth) || insecure;
                assert_eq!(checked.is_ok(), may, "{address} {protection:?}");
                let Err(error) = checked else { continue };
                let text = error.to_string();
                assert!(text.contains(&listen[1].to_string()) && text.contains("--insecure"));
                assert_eq!(text.contains("--auth"), !auth, "{text}");
                assert_eq!(text.contains("--tls-cert"), !tls, "{text}");
            }
        }
    }
}
