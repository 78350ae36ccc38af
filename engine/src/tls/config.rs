//! The operator's settings: certificates, whom to trust, reloading.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::RwLock;

use rustls::ClientConfig;
use rustls::Error as RustlsError;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::server::ClientHello;
use rustls::server::NoServerSessionStorage;
use rustls::server::ParsedCertificate;
use rustls::server::ResolvesServerCert;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;

/// The only application protocol that is spoken here (RFC 7301, RFC 6455 §3).
const ALPN: &[u8] = b"http/1.1";

/// Why TLS settings cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What came of it.
        error: Arc<io::Error>,
    },
    /// No certificate in what should hold some.
    #[error("no certificate in {0}")]
    NoCertificate(String),
    /// A private key that a password protects; none is asked for here.
    #[error(
        "the private key in {0} is encrypted: decrypt it first (openssl pkey -in KEY -out PLAIN)"
    )]
    EncryptedKey(String),
    /// No private key in what should hold one.
    #[error("no private key in {0}")]
    NoKey(String),
    /// A certificate for this name was announced and is for others.
    #[error("the certificate is not for {0}")]
    Name(String),
    /// The settings send or take early data, which an attacker can send once more.
    #[error("early data (0-RTT) can be replayed and is refused")]
    EarlyData,
    /// Settings that were not read from anywhere cannot be read again.
    #[error("these settings were given as a rustls configuration: replace it instead")]
    NotReloadable,
    /// The system trusts nobody.
    #[error("no certificate authorities on this system: {0}")]
    NoRoots(String),
    /// What rustls says.
    #[error(transparent)]
    Rustls(#[from] RustlsError),
    /// What rustls says of the authorities that client certificates come from.
    #[error("client certificates: {0}")]
    ClientVerifier(String),
}

/// PEM text, in a file or at hand.
#[derive(Clone)]
enum Pem {
    File(PathBuf),
    Text(Arc<[u8]>),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text may be a private key.
        write!(f, "Pem({self})")
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Text(_) => f.write_str("the PEM text"),
        }
    }
}

impl Pem {
    fn read(&self) -> Result<Arc<[u8]>, TlsError> {
        match self {
            Self::File(path) => fs::read(path).map(Arc::from).map_err(|error| {
                let (path, error) = (path.clone(), Arc::new(error));
                TlsError::Read { path, error }
            }),
            Self::Text(text) => Ok(Arc::clone(text)),
        }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let text = self.read()?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        certificates
            .ok()
            .filter(|certificates| !certificates.is_empty())
            .ok_or_else(|| TlsError::NoCertificate(format!("{self} ({})", pem_sections(&text))))
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let text = self.read()?;
        PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
            // PKCS #8 says so in the name of the section, OpenSSL's older format in a header.
            if memchr::memmem::find(&text, b"ENCRYPTED").is_some() {
                return TlsError::EncryptedKey(self.to_string());
            }
            TlsError::NoKey(format!("{self} ({})", pem_sections(&text)))
        })
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate)?;
        }
        Ok(roots)
    }
}

/// Says which sections PEM text has.
fn pem_sections(text: &[u8]) -> String {
    const SECTIONS_MAX: usize = 4;
    let text = String::from_utf8_lossy(text);
    let begins = text.split("-----BEGIN ").skip(1);
    let names = begins.filter_map(|rest| Some(rest.split_once("-----")?.0));
    let names: Vec<&str> = names.take(SECTIONS_MAX).collect();
    match names[..] {
        [] => "it is not PEM text".to_owned(),
        _ => format!("its sections: {}", names.join(", ").escape_debug()),
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(ring::default_provider())))
}

/// A server's TLS settings: shared by its threads, and changed while they run.
///
/// TLS 1.2 and 1.3, ALPN `http/1.1`, resumption by tickets, no early data.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<ServerShared>);

#[derive(Debug)]
struct ServerShared {
    config: RwLock<Arc<ServerConfig>>,
    /// Where the configuration was read from.
    source: Option<ServerTlsBuilder>,
}

/// What a server's TLS settings are read from.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ServerTlsBuilder {
    /// The first one is for clients that ask for no name, or for none of these.
    certificates: Vec<CertificateSource>,
    client_roots: Option<(Pem, bool)>,
}

#[derive(Clone, Debug)]
struct CertificateSource {
    name: Option<String>,
    chain: Pem,
    key: Pem,
}

impl ServerTls {
    /// One certificate chain, the server's own certificate first, and its private key.
    ///
    /// # Errors
    /// A file that cannot be read, or that does not hold what it should.
    pub fn from_pem_files(
        chain: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, TlsError> {
        Self::builder().certificate(chain, key).build()
    }

    /// Settings of several certificates, or with client certificates.
    pub fn builder() -> ServerTlsBuilder {
        ServerTlsBuilder::default()
    }

    /// A configuration of the caller's own. It should offer the application protocol
    /// `http/1.1`, or none.
    ///
    /// # Errors
    /// [`TlsError::EarlyData`], or what rustls finds wrong.
    pub fn from_config(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        Self::new(config, None)
    }

    fn new(config: Arc<ServerConfig>, source: Option<ServerTlsBuilder>) -> Result<Self, TlsError> {
        let config = RwLock::new(check(config)?);
        Ok(Self(Arc::new(ServerShared { config, source })))
    }

    /// Reads the files again. Connections that are open keep what they began with; new ones get
    /// the new certificates. If anything is wrong nothing changes.
    ///
    /// # Errors
    /// As when they were first read; [`TlsError::NotReloadable`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let source = self.0.source.as_ref().ok_or(TlsError::NotReloadable)?;
        self.replace(source.load()?)
    }

    /// Uses another configuration for new connections.
    ///
    /// # Errors
    /// As for [`from_config`](Self::from_config); nothing changes then.
    pub fn replace(&self, config: Arc<ServerConfig>) -> Result<(), TlsError> {
        let config = check(config)?;
        *self
            .0
            .config
            .write()
            .unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// The configuration that new connections get.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.config.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes sure that sessions of these settings can be made and are safe.
fn check(config: Arc<ServerConfig>) -> Result<Arc<ServerConfig>, TlsError> {
    // RFC 8446 §8: early data is not protected against replay.
    if config.max_early_data_size > 0 {
        return Err(TlsError::EarlyData);
    }
    rustls::server::UnbufferedServerConnection::new(Arc::clone(&config))?;
    Ok(config)
}

impl ServerTlsBuilder {
    /// A certificate chain, the server's own certificate first, and its private key, in PEM
    /// files. The first one given is also for clients that ask for no name, or for a name that
    /// no other one is for.
    pub fn certificate(self, chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.add(None, file(chain), file(key))
    }

    /// As [`certificate`](Self::certificate), for clients that ask for this name (SNI):
    /// `chat.example.com`, or `*.example.com`.
    pub fn certificate_for(
        self,
        name: &str,
        chain: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Self {
        self.add(Some(name.to_ascii_lowercase()), file(chain), file(key))
    }

    /// As [`certificate`](Self::certificate), with the PEM texts themselves.
    pub fn certificate_pem(self, chain: &[u8], key: &[u8]) -> Self {
        self.add(None, Pem::Text(chain.into()), Pem::Text(key.into()))
    }

    fn add(mut self, name: Option<String>, chain: Pem, key: Pem) -> Self {
        self.certificates
            .push(CertificateSource { name, chain, key });
        self
    }

    /// Asks clients for a certificate that one of these authorities (a PEM file) has issued,
    /// and refuses those that have none if they are `required` to. The handler finds it in
    /// `Context::tls`.
    pub fn client_certificates(mut self, roots: impl AsRef<Path>, required: bool) -> Self {
        self.client_roots = Some((file(roots), required));
        self
    }

    /// As [`client_certificates`](Self::client_certificates), with the PEM text itself.
    pub fn client_certificates_pem(mut self, roots: &[u8], required: bool) -> Self {
        self.client_roots = Some((Pem::Text(roots.into()), required));
        self
    }

    /// Reads the files.
    ///
    /// # Errors
    /// A file that cannot be read, or that does not hold what it should.
    pub fn build(self) -> Result<ServerTls, TlsError> {
        let config = self.load()?;
        ServerTls::new(config, Some(self))
    }

    fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let mut resolver = Resolver::default();
        for source in &self.certificates {
            resolver.add(source)?;
        }
        if resolver.certificates.is_empty() {
            return Err(TlsError::NoCertificate("the settings".to_owned()));
        }
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?;
        let builder = match &self.client_roots {
            None => builder.with_no_client_auth(),
            Some((roots, required)) => {
                let roots = Arc::new(roots.roots()?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier = if *required {
                    verifier
                } else {
                    verifier.allow_unauthenticated()
                };
                let verifier = verifier.build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| TlsError::ClientVerifier(error.to_string()))?,
                )
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Tickets hold the sessions; nothing is kept for them here. Their key is new with each
        // load: what a client was trusted for under other settings is not resumed.
        config.ticketer = ring::Ticketer::new()?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Sessions take the keys of TLS 1.3 themselves: they are smaller and faster so.
        config.enable_secret_extraction = true;
        Ok(Arc::new(config))
    }
}

fn file(path: impl AsRef<Path>) -> Pem {
    Pem::File(path.as_ref().to_owned())
}

/// Chooses a certificate by the name that a client asks for.
#[derive(Debug, Default)]
struct Resolver {
    certificates: Vec<(Option<String>, Arc<CertifiedKey>)>,
}

impl Resolver {
    fn add(&mut self, source: &CertificateSource) -> Result<(), TlsError> {
        let chain = source.chain.certificates()?;
        let key = source.key.key()?;
        let certified = CertifiedKey::from_der(chain, key, &provider())?;
        if let Some(name) = &source.name {
            let example = name.replacen('*', "any", 1);
            let fits = ServerName::try_from(example.as_str()).is_ok_and(|server_name| {
                let certificate = certified.end_entity_cert();
                let parsed = certificate.and_then(ParsedCertificate::try_from);
                parsed.is_ok_and(|parsed| {
                    rustls::client::verify_server_name(&parsed, &server_name).is_ok()
                })
            });
            if !fits {
                return Err(TlsError::Name(name.clone()));
            }
        }
        let entry = (source.name.clone(), Arc::new(certified));
        self.certificates.push(entry);
        Ok(())
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let named = |wanted: &str| {
            let mut entries = self.certificates.iter();
            entries.find(|(name, _)| name.as_deref() == Some(wanted))
        };
        // RFC 6125 §6.4.3: a wildcard stands for one label.
        let parent = name.split_once('.').map(|(_, parent)| parent);
        let found = named(&name).or_else(|| named(&format!("*.{}", parent?)));
        found.map(|(_, certified)| certified)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.find(name));
        let default = || self.certificates.first().map(|(_, certified)| certified);
        named.or_else(default).cloned()
    }
}

/// A client's TLS settings.
///
/// TLS 1.2 and 1.3, ALPN `http/1.1`, resumption of earlier sessions.
#[derive(Clone, Debug)]
pub struct ClientTls(Arc<ClientConfig>);

/// What a client's TLS settings are read from.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ClientTlsBuilder {
    roots: Option<Pem>,
    certificate: Option<(Pem, Pem)>,
}

impl ClientTls {
    /// Trusts the authorities that this system trusts (or the file or folder that the
    /// environment names in `SSL_CERT_FILE` or `SSL_CERT_DIR`). Read once per process.
    ///
    /// # Errors
    /// [`TlsError::NoRoots`].
    pub fn system() -> Result<Self, TlsError> {
        static SYSTEM: OnceLock<Result<ClientTls, TlsError>> = OnceLock::new();
        SYSTEM.get_or_init(|| Self::builder().build()).clone()
    }

    /// Trusts the authorities in this PEM file, and no others.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn from_roots_file(roots: impl AsRef<Path>) -> Result<Self, TlsError> {
        Self::builder().roots_file(roots).build()
    }

    /// Settings of another trust, or with a certificate of the client's own.
    pub fn builder() -> ClientTlsBuilder {
        ClientTlsBuilder::default()
    }

    /// A configuration of the caller's own. It should offer the application protocol
    /// `http/1.1`, or none.
    pub fn from_config(config: Arc<ClientConfig>) -> Self {
        Self(config)
    }

    /// The configuration.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}

impl ClientTlsBuilder {
    /// Trusts the authorities in this PEM file, and no others.
    pub fn roots_file(mut self, roots: impl AsRef<Path>) -> Self {
        self.roots = Some(file(roots));
        self
    }

    /// As [`roots_file`](Self::roots_file), with the PEM text itself.
    pub fn roots_pem(mut self, roots: &[u8]) -> Self {
        self.roots = Some(Pem::Text(roots.into()));
        self
    }

    /// The client's own certificate chain and private key, in PEM files, for servers that ask
    /// for one.
    pub fn certificate(mut self, chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.certificate = Some((file(chain), file(key)));
        self
    }

    /// As [`certificate`](Self::certificate), with the PEM texts themselves.
    pub fn certificate_pem(mut self, chain: &[u8], key: &[u8]) -> Self {
        self.certificate = Some((Pem::Text(chain.into()), Pem::Text(key.into())));
        self
    }

    /// Reads the files.
    ///
    /// # Errors
    /// A file that cannot be read, or that does not hold what it should.
    pub fn build(self) -> Result<ClientTls, TlsError> {
        let roots = match &self.roots {
            Some(roots) => roots.roots()?,
            None => system_roots()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                builder.with_client_auth_cert(chain.certificates()?, key.key()?)?
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_secret_extraction = true;
        Ok(ClientTls(Arc::new(config)))
    }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(TlsError::NoRoots(errors.join("; ")));
    }
    Ok(roots)
}
