//! Where the server is.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use tonic::transport::Endpoint;

use crate::{Error, errors::misconfigured};

pub(crate) const DEFAULT_SERVER: &str = "127.0.0.1:7411";

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A Unix socket.
    Socket(String),
    /// Hosts with their ports, of which any will do.
    Hosts { hosts: Vec<String>, tls: bool },
}

impl Target {
    pub(crate) fn parse(address: &str) -> Result<Self, Error> {
        let (scheme, rest) = split_scheme(address);
        let plaintext = |hosts| Ok(Self::Hosts { hosts, tls: false });
        match scheme.as_str() {
            "http" | "https" => {
                if let Some(host) = rest.strip_prefix("//") {
                    let host = host.trim_end_matches('/');
                    if !is_host_and_port(host) {
                        return Err(no_address(&format!("{scheme}://HOST:PORT")));
                    }
                    let hosts = vec![host.to_owned()];
                    return Ok(Self::Hosts { hosts, tls: scheme == "https" });
                }
            }
            "unix" if !rest.trim_matches('/').is_empty() => {
                return Ok(Self::Socket(rest.strip_prefix("//").unwrap_or(rest).to_owned()));
            }
            "dns" => {
                let name = rest.strip_prefix("///").unwrap_or(rest);
                if is_host_and_port(name) {
                    return plaintext(vec![name.to_owned()]);
                }
            }
            "ipv4" | "ipv6" => {
                let hosts: Vec<_> = rest.split(',').map(str::to_owned).collect();
                if hosts.iter().all(|host| is_host_and_port(host)) {
                    return plaintext(hosts);
                }
            }
            _ => {}
        }
        if !is_host_and_port(address) {
            return Err(no_address("HOST:PORT, https://HOST:PORT, unix:PATH or dns:///NAME:PORT"));
        }
        plaintext(vec![address.to_owned()])
    }

    /// What connects to it, yet without TLS. Its scheme decides on TLS, so nothing stands in for an
    /// address that is none for HTTP.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, Error> {
        let uri = match self {
            // The zone is for the connection alone.
            Self::Hosts { hosts, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                let (host, port) = hosts[0].rsplit_once(':').unwrap_or_default();
                match host.split_once('%') {
                    Some((ip, _)) => format!("{scheme}://{ip}]:{port}"),
                    None => format!("{scheme}://{host}:{port}"),
                }
            }
            Self::Socket(_) => "http://localhost".to_owned(),
        };
        let endpoint = Endpoint::from_shared(uri);
        let endpoint = endpoint.map_err(|_| no_address("a host and a port in ASCII"))?;
        Ok(endpoint
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10)))
    }

    pub(crate) fn tls(&self) -> bool {
        matches!(self, Self::Hosts { tls: true, .. })
    }

    /// What is sent in plaintext stays on this host.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Hosts { hosts, .. } => hosts.iter().all(|host| is_loopback(host_of(host))),
        }
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Socket(path) => format!("unix:{path}"),
            Self::Hosts { hosts, .. } => hosts.join(","),
        }
    }
}

fn split_scheme(address: &str) -> (String, &str) {
    let Some((scheme, rest)) = address.split_once(':') else {
        return (String::new(), "");
    };
    let is_scheme = scheme.starts_with(|char: char| char.is_ascii_alphabetic())
        && scheme.chars().all(|char| char.is_ascii_alphanumeric() || "+.-".contains(char));
    if is_scheme { (scheme.to_ascii_lowercase(), rest) } else { (String::new(), "") }
}

/// Does not show the address: it may hold a password.
fn no_address(form: &str) -> Error {
    misconfigured("server", format!("the server must be {form}"))
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let has_port = port.len() <= 5
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port > 0);
    if !has_port {
        return false;
    }
    if let Some(inside) = host.strip_prefix('[') {
        let Some(inside) = inside.strip_suffix(']') else {
            return false;
        };
        let ip = inside.split_once('%').map_or(inside, |(ip, _)| ip);
        return ip.parse::<Ipv6Addr>().is_ok();
    }
    let is_other = |char: char| char.is_whitespace() || ":/@?#,[]\\".contains(char);
    !host.is_empty() && !host.contains(is_other)
}

/// The host of HOST:PORT, without brackets.
pub(crate) fn host_of(text: &str) -> &str {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.split_once('%').map_or(host, |(ip, _)| ip)
}

fn is_loopback(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (address, name, tls) in [
            ("gate:7411", "gate:7411", false),
            ("http://gate:7411/", "gate:7411", false),
            ("https://gate:7411", "gate:7411", true),
            ("https://[::1]:7411/", "[::1]:7411", true),
            ("HTTPS://gate:7411", "gate:7411", true),
            ("unix:/run/oncegate.sock", "unix:/run/oncegate.sock", false),
            ("unix:///run/oncegate.sock", "unix:/run/oncegate.sock", false),
            ("unix:////run/oncegate.sock", "unix://run/oncegate.sock", false),
            ("UNIX:/run/Oncegate.sock", "unix:/run/Oncegate.sock", false),
            ("dns:///gate:7411", "gate:7411", false),
            ("ipv4:10.0.0.1:1,10.0.0.2:1", "10.0.0.1:1,10.0.0.2:1", false),
            ("[fe80::1%eth0]:7411", "[fe80::1%eth0]:7411", false),
        ] {
            let target =
                Target::parse(address).unwrap_or_else(|error| panic!("{address}: {error}"));
            assert_eq!((target.name().as_str(), target.tls()), (name, tls), "{address}");
            let endpoint = target.endpoint().unwrap_or_else(|error| panic!("{address}: {error}"));
            let scheme = if tls { "https" } else { "http" };
            assert_eq!(endpoint.uri().scheme_str(), Some(scheme), "{address}");
        }
        for address in [
            "https://",
            "https://gate",
            "https://me:planted@gate:1",
            "http://gate:1/path",
            "https://:7411",
            ":7411",
            "gate",
            "gate:",
            "gate:0",
            "gate:65536",
            "::1:7411",
            "[::1]",
            "[127.0.0.1]:1",
            "[]:1",
            "https://gate:1,planted:1",
            "https:gate:1",
            "grpc://gate:1",
            "tcp://planted:1",
            "xds:///gate:1",
            "evil:1/localhost",
            "unix:",
            "unix-abstract:planted",
            "dns:///",
            " gate:1",
            "gate:1\n",
            "gate:+1",
        ] {
            let error = Target::parse(address).expect_err(address);
            assert!(matches!(error, Error::Misconfigured { option: "server", .. }), "{address}");
            assert!(!error.to_string().contains("planted"), "{error}");
        }
    }

    #[test]
    fn what_is_no_uri_does_not_become_another_one() {
        for address in
            ["https://g\u{e4}te:7411", "https://a%41:1", "https://a\"b:1", "https://{a}:1"]
        {
            let made = Target::parse(address).and_then(|target| target.endpoint());
            if let Ok(endpoint) = made {
                assert_eq!(endpoint.uri().scheme_str(), Some("https"), "{address}");
            }
        }
        let refused = Target::parse("https://g\u{e4}te:7411").and_then(|target| target.endpoint());
        assert!(matches!(refused, Err(Error::Misconfigured { option: "server", .. })));
    }

    #[test]
    fn local_addresses() {
        for (address, local) in [
            ("localhost:1", true),
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("http://LOCALHOST:1", true),
            ("dns:///localhost:1", true),
            ("ipv4:127.0.0.1:1,127.0.0.2:1", true),
            ("ipv6:[::1]:1", true),
            ("unix:/run/oncegate.sock", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("gate:1", false),
            ("10.0.0.1:1", false),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("dns:///gate:1", false),
            ("localhost.evil:1", false),
            ("ipv4:127.0.0.1:1,10.0.0.1:1", false),
        ] {
            assert_eq!(Target::parse(address).expect(address).is_local(), local, "{address}");
        }
    }
}
