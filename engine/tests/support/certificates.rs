//! Certificates made for the tests.

use std::sync::Arc;
use std::sync::OnceLock;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use sockeye::tls::ClientTls;
use sockeye::tls::ServerTls;

/// An authority that only the tests trust.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Certified {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for these names.
    pub fn issue(&self, names: &[&str]) -> Certified {
        self.issue_with(names, |_| {})
    }

    /// A certificate that was valid until the year 2001.
    pub fn issue_expired(&self, names: &[&str]) -> Certified {
        self.issue_with(names, |params| {
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        })
    }

    fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certified {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Certified {
            chain: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Certified {
    pub fn server(&self) -> ServerTls {
        let builder = ServerTls::builder();
        let builder = builder.certificate_pem(self.chain.as_bytes(), self.key.as_bytes());
        builder.build().expect("a certificate and its key")
    }
}

/// The tests' authority.
pub fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::new("sockeye tests"))
}

/// A server that the tests' authority vouches for, on this machine.
pub fn server_tls() -> &'static ServerTls {
    static TLS: OnceLock<ServerTls> = OnceLock::new();
    TLS.get_or_init(|| {
        let certified = authority().issue(&["localhost", "example.com", "127.0.0.1"]);
        certified.server()
    })
}

/// A client that trusts the tests' authority.
pub fn client_tls() -> &'static ClientTls {
    static TLS: OnceLock<ClientTls> = OnceLock::new();
    TLS.get_or_init(|| {
        let builder = ClientTls::builder().roots_pem(authority().pem.as_bytes());
        builder.build().expect("an authority")
    })
}

/// The client's end of a TLS connection, as rustls has it.
pub fn client_session(name: &'static str) -> rustls::ClientConnection {
    let name = name.try_into().expect("a name");
    rustls::ClientConnection::new(client_tls().config(), name).expect("it can begin")
}

/// As [`client_session`], for whoever trusts somebody else.
pub fn client_session_of(
    config: Arc<rustls::ClientConfig>,
    name: &'static str,
) -> rustls::ClientConnection {
    rustls::ClientConnection::new(config, name.try_into().expect("a name")).expect("it can begin")
}
