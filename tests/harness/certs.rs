//! Certificates of a test's own, and clients that use them.

use std::{fs, path::PathBuf, sync::Arc};

use oncegate::config::Address;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
        version::{TLS12, TLS13},
    },
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// A certificate with what its holder sends of its chain, and its key, in PEM form.
#[derive(Clone)]
pub struct Pair {
    pub chain: String,
    pub key: String,
}

/// What signs certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// What its certificates are sent with.
    intermediates: String,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// A certificate with this common name, valid for decades.
pub fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2090, 1, 1);
    params
}

/// The certificate of a client.
pub fn client(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A client with this SPIFFE ID.
pub fn workload(id: &str) -> CertificateParams {
    let mut params = client("workload");
    params.subject_alt_names.push(SanType::URI(id.try_into().unwrap()));
    params
}

/// The certificate of a server on this machine.
pub fn server() -> CertificateParams {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let subject_alt_names = CertificateParams::new(names).unwrap().subject_alt_names;
    let mut params = named("oncegate");
    params.subject_alt_names = subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

/// The same, valid at another time.
pub fn valid(from: i32, until: i32, mut params: CertificateParams) -> CertificateParams {
    [params.not_before, params.not_after] = [from, until].map(|year| date_time_ymd(year, 1, 1));
    params
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(authority(name), key).unwrap();
        Self { issuer, intermediates: String::new() }
    }

    /// An authority that this one has signed.
    pub fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(authority(name), key, &self.issuer).unwrap();
        let intermediates = issuer.pem() + &self.intermediates;
        Self { issuer, intermediates }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn sign(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let own = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { chain: own + &self.intermediates, key: key.serialize_pem() }
    }
}

/// A certificate that only its holder vouches for.
pub fn self_signed(params: &CertificateParams) -> Pair {
    let key = KeyPair::generate().unwrap();
    Pair { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

/// The files of a server that uses TLS, and the authorities behind them.
pub struct Files {
    directory: TempDir,
    /// Signs servers.
    pub servers: Authority,
    /// Signs clients.
    pub clients: Authority,
}

impl Files {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [servers, clients] = ["servers", "clients"].map(Authority::new);
        let files = Self { directory, servers, clients };
        files.replace(&files.servers.sign(&server()));
        fs::write(files.path("client-ca.pem"), files.clients.pem()).unwrap();
        fs::write(files.path("ca.pem"), files.servers.pem()).unwrap();
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces the server's certificate and key.
    pub fn replace(&self, pair: &Pair) {
        self.put("cert.pem", &pair.chain);
        self.put("key.pem", &pair.key);
    }

    /// Replaces one file in one step.
    pub fn put(&self, name: &str, content: &str) {
        fs::write(self.path("new"), content).unwrap();
        fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    /// The flags of a server with these files.
    pub fn flags(&self) -> Vec<String> {
        self.named_flags(&[("--tls-cert", "cert.pem"), ("--tls-key", "key.pem")])
    }

    /// The same for one that asks clients for a certificate.
    pub fn mutual(&self, client: &str) -> Vec<String> {
        let mut flags = self.flags();
        flags.extend(self.named_flags(&[("--tls-client-ca", "client-ca.pem")]));
        flags.extend(["--tls-client".to_owned(), client.to_owned()]);
        flags
    }

    fn named_flags(&self, flags: &[(&str, &str)]) -> Vec<String> {
        let paths = flags.iter().map(|(flag, name)| [(*flag).to_owned(), self.shown(name)]);
        paths.flatten().collect()
    }

    pub fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// What a client over gRPC needs, with a certificate of its own or without.
    pub fn endpoint(&self, address: &Address, own: Option<&Pair>) -> Endpoint {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.servers.pem()));
        let tls = match own {
            Some(Pair { chain, key }) => tls.identity(Identity::from_pem(chain, key)),
            None => tls,
        };
        let uri = format!("https://localhost:{}", port(address));
        Endpoint::from_shared(uri).unwrap().tls_config(tls).unwrap()
    }

    pub async fn connect(&self, address: &Address, own: Option<&Pair>) -> Channel {
        self.endpoint(address, own).connect().await.unwrap()
    }

    /// What a client of another kind needs.
    pub fn connector(&self, protocols: &[&[u8]], own: Option<&Pair>) -> Connector {
        Connector::new(&self.servers, protocols, own, &[&TLS12, &TLS13])
    }
}

pub fn port(address: &Address) -> u16 {
    match address {
        Address::Tcp(address) => address.port(),
        Address::Unix(_) => panic!("not TCP"),
    }
}

/// A client of TLS alone.
#[derive(Clone)]
pub struct Connector(TlsConnector);

impl Connector {
    pub fn new(
        servers: &Authority,
        protocols: &[&[u8]],
        own: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(servers.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match own {
            Some(Pair { chain, key }) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
                let chain = chain.collect::<Result<_, _>>().unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Self(TlsConnector::from(Arc::new(config)))
    }

    pub async fn connect(&self, address: &Address) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(("127.0.0.1", port(address))).await?;
        self.0.connect(ServerName::try_from("localhost").unwrap(), socket).await
    }
}
